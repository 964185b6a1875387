"""The tables of RESULTS.md about goals and load."""

from __future__ import annotations

import os
import statistics

from goals import goals
from measure import Sample
from results import Results, client, cost, median, p50, p99, p999, rate, routing, serving
from workloads import (
    IDLE_WEBSOCKETS,
    NEW,
    OURS,
    PACED,
    PLAIN,
    POLLING,
    WORKLOADS,
)
from writing import quartiles, share, table

MIB = 1024


def of_goals(results: Results) -> str:
    """Each goal and what was measured."""
    rows = [[goal.name, goal.limit, goal.measured, "yes" if goal.met else "**no**"] for goal in goals(results)]
    return table(["", "goal", "measured", "met"], rows)


def routers(results: Results) -> str:
    """What routing costs, ours and others."""
    ours = results.median(NEW, OURS, routing)
    rows = []
    for server in results.servers(NEW):
        samples = results.samples[NEW.name, server]
        memories = results.memory.get((IDLE_WEBSOCKETS.name, server, "routers"), [])
        router = [server, *["-"] * 5]
        if server != PLAIN:
            of_router = results.median(NEW, server, routing)
            router[1] = f"{of_router:.1f}"
            router[2] = f"{ours / of_router:.2f}" if of_router else "-"
        if server != PLAIN and memories:
            router[3:] = [
                f"{statistics.median(each.before_kib for each in memories) / MIB:.1f}",
                f"{statistics.median(each.after_kib for each in memories) / MIB:.1f}",
                f"{statistics.median(each.kib_each for each in memories):.2f}",
            ]
        rows.append(
            [
                *router,
                f"{results.median(NEW, server, rate):.0f}",
                f"{results.median(NEW, server, cost):.0f}",
                share(sum(each.moved for each in samples), sum(each.repeats for each in samples)),
                str(sum(each.errors for each in samples)),
                f"{len(samples)}, {len(memories)}",
            ]
        )
    idle = results.memory[IDLE_WEBSOCKETS.name, OURS, "routers"][0].connections
    return table(
        [
            "router",
            "its CPU, µs per connection",
            "ours ÷ its",
            "its memory, MiB",
            f"with {idle:,} idle WebSockets",
            "KiB for each",
            "connections/s",
            "CPU of all processes, µs per connection",
            "moved",
            "errors",
            "runs",
        ],
        rows,
    )


def sessions(results: Results) -> str:
    """Whole Socket.IO sessions over long-polling."""
    rows = []
    for server in results.servers(POLLING):
        samples = results.samples[POLLING.name, server]
        rows.append(
            [
                server,
                f"{results.median(POLLING, server, rate):.0f}",
                f"{results.ratio(POLLING, OURS, server):.2f}",
                *(f"{results.median(POLLING, server, value):.0f}" for value in (routing, cost)),
                *(f"{results.median(POLLING, server, value):.1f}" for value in (p50, p99)),
                str(sum(each.lost for each in samples)),
                share(sum(each.moved for each in samples), sum(each.repeats for each in samples)),
                str(sum(each.errors for each in samples)),
                str(len(samples)),
            ]
        )
    return table(
        [
            "",
            "sessions/s",
            "ours ÷ its",
            "router's CPU, µs per session",
            "CPU of all processes",
            "p50 ms",
            "p99 ms",
            "lost",
            "moved",
            "errors",
            "runs",
        ],
        rows,
    )


def workers(results: Results) -> str:
    """Ours and others under load."""
    rows = []
    for workload in WORKLOADS:
        if workload is POLLING:
            continue
        ours = results.values(workload, OURS, rate)
        # Of the routers only what they cost compares, which the first table says.
        for other in (name for name in workload.servers if name != OURS and (workload is not NEW or name == PLAIN)):
            rates = results.values(workload, other, rate)
            costs = [results.median(workload, server, cost) for server in (OURS, other)]
            both = [each for server in (OURS, other) for each in results.samples[workload.name, server]]
            rows.append(
                [
                    f"{workload.name}, {other}",
                    f"{statistics.median(ours):.0f}",
                    f"{statistics.median(rates):.0f}",
                    f"{statistics.median(ours) / statistics.median(rates):.2f}",
                    quartiles([mine / theirs for mine, theirs in zip(ours, rates, strict=True)]),
                    *(f"{each:.0f}" for each in costs),
                    f"{costs[0] / costs[1]:.2f}",
                    str(sum(each.errors for each in both)),
                    str(len(rates)),
                ]
            )
    return table(
        [
            "",
            "ours, a second",
            "the other",
            "ratio",
            "of neighbours",
            "ours, server's CPU µs each",
            "the other",
            "ratio",
            "errors",
            "runs",
        ],
        rows,
    )


def roles(results: Results) -> str:
    """Whose the CPU time is, and that the load generator is not the limit."""
    rows = []
    for workload in WORKLOADS:
        for server in results.servers(workload):
            samples = results.samples[workload.name, server]
            rows.append(
                [
                    f"{workload.name}, {server}",
                    *(f"{median(samples, value):.1f}" for value in (routing, serving, client)),
                    f"{median(samples, lambda each: each.server_cores):.2f}",
                    f"{median(samples, lambda each: each.client_cores):.2f}",
                ]
            )
    return table(
        [
            "",
            "router, µs each",
            "workers and the rest",
            "load generator",
            "the server's cores",
            "the load generator's cores",
        ],
        rows,
    )


def paced(results: Results) -> str:
    """Latencies at fixed times."""
    rows = []
    for each in PACED:
        for server in each.servers:
            samples: list[Sample] | None = results.paced.get((each.workload.name, server))
            if samples is None:
                continue
            rows.append(
                [
                    f"{each.workload.name}, {server}",
                    f"{results.rates[each.workload.name]:,}",
                    f"{median(samples, rate):,.0f}",
                    *(f"{median(samples, value):.2f}" for value in (p50, p99, p999)),
                    quartiles([p99(sample) for sample in samples]),
                    str(sum(sample.errors for sample in samples)),
                    str(len(samples)),
                ]
            )
    return table(
        ["", "due, a second", "answered", "p50 ms", "p99 ms", "p99.9 ms", "p99 of the middle half", "errors", "runs"],
        rows,
    )


def growth(samples: dict[tuple[str, str, int], list[Sample]], what: str) -> str:
    """How everything changes with a number.

    :param samples: by name of workload, server, and the number
    :param what: there is this number of
    """
    numbers = sorted({number for _, _, number in samples})
    rows = []
    for name, server in dict.fromkeys((name, server) for name, server, _ in samples):
        cells = [samples.get((name, server, number)) for number in numbers]
        rows.append(
            [
                f"{name}, {server}",
                *(f"{median(each, rate):,.0f}" if each else "-" for each in cells),
                *(f"{median(each, cost):,.0f}" if each else "-" for each in cells),
                *(f"{median(each, p99):,.1f}" if each else "-" for each in cells),
                str(sum(sample.errors + sample.lost for each in cells if each for sample in each)),
            ]
        )
    return table(
        [
            "",
            *(
                f"{head}{number:,}"
                for head in (f"a second, {what}: ", "CPU µs each: ", "p99 ms: ")
                for number in numbers
            ),
            "errors",
        ],
        rows,
    )


def saturated(results: Results) -> str:
    """Latencies of ours and plain gunicorn while all clients send as fast as they can."""
    rows = []
    for workload in WORKLOADS:
        if PLAIN in workload.servers:
            row = [workload.name]
            for value in (p50, p99, p999):
                row += [f"{results.median(workload, server, value):.2f}" for server in (OURS, PLAIN)]
            rows.append(row)
    return table(["", "ours, p50 ms", "plain", "ours, p99 ms", "plain", "ours, p99.9 ms", "plain"], rows)


def noise(results: Results) -> str:
    """How busy the machine was with something else."""
    others = [each.others_cores for each in results.all_samples()]
    return (
        f"While load ran, other processes and the hypervisor used {statistics.median(others):.2f} cores "
        f"(median; at most {max(others):.2f}) of {os.cpu_count()}."
    )
