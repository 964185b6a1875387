"""The ``pywsgi-differences`` directive: every difference to pywsgi in the corpus of the tests, and its defence."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CORPUS = Path(__file__).parent.parent.parent / "tests" / "corpus"


class PywsgiDifferences(SphinxDirective):
    """How many cases there are, then a section for each kind of difference with a table of its cases."""

    def run(self) -> list[nodes.Node]:
        kinds: dict[str, dict[str, str]] = yaml.safe_load((CORPUS / "differences.yaml").read_text())
        cases = []
        for path in sorted(CORPUS.glob("*.yaml")):
            self.env.note_dependency(str(path))
            if path.name.startswith("rfc"):
                sections: dict[str, list[dict[str, Any]]] = yaml.safe_load(path.read_text())
                cases += [case for listed in sections.values() for case in listed]
        differing = defaultdict(list)
        for case in cases:
            if "because" in case:
                differing[case["because"]].append(case)
        total = sum(map(len, differing.values()))
        summary = nodes.paragraph("", f"The corpus has {len(cases)} requests; {total} are answered differently.")
        return [summary, *(_section(kinds[kind], differing[kind]) for kind in kinds)]


def _section(kind: dict[str, str], cases: list[dict[str, Any]]) -> nodes.section:
    title = kind["title"]
    section = nodes.section("", nodes.title(title, title), ids=[nodes.make_id(title)], names=[])
    section += nodes.paragraph("", f"pywsgi {kind['pywsgi']}")
    section += nodes.paragraph("", kind["defence"])
    section += _table(cases)
    return section


def _table(cases: list[dict[str, Any]]) -> nodes.table:
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (50, 20, 30)), cols=3)
    group += nodes.thead("", _row("Sent", "Here", "pywsgi"))
    group += nodes.tbody("", *(_row(case["name"], case["ours"], _pywsgi(case)) for case in cases))
    return nodes.table("", group)


def _pywsgi(case: dict[str, Any]) -> str:
    outcome: str = case.get("pywsgi", case["ours"])
    seen = case.get("pywsgi_saw")
    if outcome != case["ours"] or not isinstance(seen, dict):
        return outcome
    differing = (f"{name} {value!r}" for name, value in seen.items() if value != case["saw"][name])
    return f"{outcome}; the app sees {', '.join(differing)}"


def _row(*cells: str) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("pywsgi-differences", PywsgiDifferences)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
