"""The ``proxy-config`` directive: what ``sticky-session proxy-config`` prints for the arguments given."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from pathlib import Path
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sticky_session import cli, proxyconfig

_LANGUAGES = {"nginx": "nginx", "apache": "apache", "traefik": "yaml", "ingress-nginx": "yaml"}


class ProxyConfig(SphinxDirective):
    """The command in the caption, and its output in a block; ``--help`` is its help."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        arguments = shlex.split(self.arguments[0])
        for path in (cli.__file__, proxyconfig.__file__, *_templates()):
            self.env.note_dependency(str(path))
        block = nodes.literal_block(text=_output(arguments), language=_LANGUAGES.get(arguments[0], "text"))
        if arguments == ["--help"]:
            return [block]
        command = nodes.literal("", f"sticky-session proxy-config {shlex.join(arguments)}")
        return [nodes.paragraph("", "", command, nodes.Text(" prints")), block]


def _templates() -> list[Path]:
    return sorted(Path(proxyconfig.__file__).with_name("proxyconfigs").iterdir())


def _output(arguments: list[str]) -> str:
    printed = io.StringIO()
    # argparse wraps its help at the width of the terminal.
    with mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"), contextlib.redirect_stdout(printed):
        with contextlib.suppress(SystemExit) if arguments == ["--help"] else contextlib.nullcontext():
            cli.main(["proxy-config", *arguments])
    return printed.getvalue()


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("proxy-config", ProxyConfig)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
