"""The tables of RESULTS.md about what comes through proxies."""

from __future__ import annotations

import statistics

from results import Results, cost, rate, routing
from workloads import MANY_MOVES, MOVING, PEEKED, STAYING
from writing import quartiles, share, table


def proxied(results: Results) -> str:
    """What it costs to find out who a proxy's clients are."""
    rows = []
    for workload in (STAYING, MOVING, PEEKED):
        read = results.proxied[workload.name, "header"]
        unread = results.proxied.get((workload.name, "no header"), [])
        costs = [statistics.median(map(cost, each)) for each in (read, unread) if each]
        routers = [statistics.median(map(routing, each)) for each in (read, unread) if each]
        neighbours = [cost(with_) / cost(without) for with_, without in zip(read, unread, strict=False)]
        rows.append(
            [
                workload.name,
                f"{costs[0]:.1f}",
                *([f"{costs[1]:.1f}", f"{costs[0] / costs[1]:.2f}", quartiles(neighbours)] if unread else ["-"] * 3),
                *([f"{each:.1f}" for each in routers] if workload is PEEKED else ["-"] * 2),
                f"{statistics.median(map(rate, read)):.0f}",
                share(sum(each.moved for each in read), sum(each.repeats for each in read)),
                str(sum(each.errors for each in read + unread)),
                str(len(read)),
            ]
        )
    return table(
        [
            "",
            "header read, CPU µs per request",
            "not read",
            "ratio",
            "of neighbours",
            "listener's CPU, header read",
            "not read",
            "requests/s",
            "answered elsewhere",
            "errors",
            "runs",
        ],
        rows,
    )


def many_moves(results: Results) -> str:
    """What very many moves took and left."""
    moves = results.moves
    assert moves is not None
    return (
        f"{moves.count:,} moves of {MANY_MOVES.connections} connections between {MANY_MOVES.workers} workers took "
        f"{moves.seconds:.1f} s ({moves.count / moves.seconds:.0f} moves/s); {moves.wrong} requests were answered by\n"
        f"another worker than the client's, {moves.errors} not at all. No process had more than "
        f"{moves.kept_descriptors} descriptors more than before, nor {moves.kept_kib} KiB of memory."
    )
