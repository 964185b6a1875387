"""How tables and figures are written."""

from __future__ import annotations

import statistics
from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quartiles(values: list[float]) -> str:
    """The range that the middle half of the values is in."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low:.2f} to {high:.2f}"


def share(part: int, whole: int) -> str:
    """How much of the whole a part is."""
    return f"{100 * part / whole:.1f} % of {whole:,}" if whole else "-"
