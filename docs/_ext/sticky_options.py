"""The ``sticky-options`` directive: one entry for each of :data:`sticky_session.config.OPTIONS`."""

from __future__ import annotations

from collections.abc import Iterable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sticky_session import config
from sticky_session.config import OPTIONS


class StickyOptions(SphinxDirective):
    """A table of all options, then a definition list that explains each."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(config.__file__)
        return [_table(), _explanations()]


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"


def _table() -> nodes.table:
    heads = ("Flag", "Environment variable", "Default", "Unit")
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (30, 40, 12, 18)), cols=len(heads))
    group += nodes.thead("", _row(nodes.Text(head) for head in heads))
    body = nodes.tbody()
    for option in OPTIONS:
        link = nodes.reference("", "", nodes.literal("", option.flag), refid=f"option-{option.name}", internal=True)
        body += _row(
            (
                link,
                nodes.literal("", option.environment),
                nodes.Text(_text(option.default)),
                nodes.Text(option.unit),
            )
        )
    group += body
    return nodes.table("", group, classes=["sticky-options"])


def _row(cells: Iterable[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def _explanations() -> nodes.definition_list:
    entries = nodes.definition_list()
    for option in OPTIONS:
        facts = nodes.paragraph(
            "",
            "",
            nodes.literal("", option.flag),
            nodes.Text(", "),
            nodes.literal("", option.environment),
            nodes.Text(", or "),
            nodes.literal("", option.setting),
            nodes.Text(f" in a configuration file; {option.unit}, "),
            nodes.Text(f"{option.values}, default {_text(option.default)}."),
        )
        term = nodes.term("", "", nodes.literal("", option.name), ids=[f"option-{option.name}"])
        definition = nodes.definition("", nodes.paragraph("", option.help), facts)
        entries += nodes.definition_list_item("", term, definition)
    return entries


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("sticky-options", StickyOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
