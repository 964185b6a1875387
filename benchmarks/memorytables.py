"""The tables of RESULTS.md about memory."""

from __future__ import annotations

import statistics

from results import Results
from workloads import IDLE, OURS, PLAIN
from writing import table

MIB = 1024


def of_idle(results: Results) -> str:
    """What an idle connection costs in the workers."""
    rows = []
    for kind in IDLE:
        pair = [results.memory[kind.name, server, "workers"] for server in (OURS, PLAIN)]
        medians = [statistics.median(each.kib_each for each in memories) for memories in pair]
        rows.append(
            [
                f"{pair[0][0].connections} {kind.name}",
                *(f"{median:.1f}" for median in medians),
                f"{medians[0] / medians[1]:.2f}",
                *(f"{statistics.median(each.before_kib for each in each_) / MIB:.1f}" for each_ in pair),
                str(len(pair[0])),
            ]
        )
    return table(
        ["", "ours, KiB for each", "plain", "ratio", "ours, all workers before, MiB", "plain", "runs"],
        rows,
    )


def growth(results: Results) -> str:
    """The same for few and for many."""
    numbers = sorted({number for _, _, number in results.memory_by_clients})
    rows = []
    for name, server in dict.fromkeys((name, server) for name, server, _ in results.memory_by_clients):
        cells = [results.memory_by_clients[name, server, number] for number in numbers]
        rows.append(
            [f"{name}, {server}", *(f"{statistics.median(each.kib_each for each in cell):.1f}" for cell in cells)]
        )
    return table(["KiB for each", *(f"{number:,}" for number in numbers)], rows)
