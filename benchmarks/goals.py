"""The goals, and whether what was measured meets them."""

from __future__ import annotations

from dataclasses import dataclass

from measure import Sample
from results import Results, cost, median, p99, routing
from workloads import (
    ECHO,
    ECHO_4K,
    IDLE_CLIENTS,
    IDLE_CONNECTIONS,
    IDLE_WEBSOCKETS,
    KEPT_ALIVE,
    KERNEL,
    NEW,
    NGINX_KEEPALIVE,
    OURS,
    PACED,
    PEEKED,
    PLAIN,
    POLLING,
    SIMPLE,
    STAYING,
    Workload,
)

# What is no more than a page or two of a process's memory, for each of some thousand connections.
FLAT_KIB = 0.1


@dataclass(frozen=True)
class Goal:
    """What was to be reached, and what was.

    :ivar limit: the goal, as it is written
    :ivar measured: what was measured, as it is written
    """

    name: str
    limit: str
    measured: str
    met: bool


def at_most(name: str, limit: float, value: float, unit: str = "", digits: int = 2) -> Goal:
    """A goal that is met by a value not above the limit."""
    unit = f" {unit}" if unit else ""
    return Goal(name, f"≤ {limit:.{digits}f}{unit}", f"{value:.{digits}f}{unit}", value <= limit)


def at_least(name: str, limit: float, value: float) -> Goal:
    """A goal that is met by a ratio not below the limit."""
    return Goal(name, f"≥ {limit:.2f}", f"{value:.2f}", value >= limit)


def nothing(name: str, value: float, unit: str) -> Goal:
    """A goal that is met by as good as nothing."""
    return Goal(name, f"0 {unit}", f"{value:.2f} {unit}", value < FLAT_KIB)


def routers(results: Results) -> list[Goal]:
    """What routing may cost."""
    goals = [
        at_most("listener's CPU for each connection", 15, results.median(NEW, OURS, routing), "µs", 1),
        nothing(
            "listener's memory for each open connection",
            results.of_memory(IDLE_WEBSOCKETS.name, OURS, "routers"),
            "KiB",
        ),
    ]
    if KERNEL in results.servers(NEW):
        kernel = results.median(NEW, KERNEL, routing)
        goals.append(nothing("CPU of a router process for each connection, kernel router", kernel, "µs"))
    return goals


def ratios(results: Results) -> list[Goal]:
    """How much more than others ours has to answer."""
    limits: list[tuple[Workload, str, float]] = [
        (NEW, PLAIN, 1.6),
        (NEW, NGINX_KEEPALIVE, 1.0),
        (KEPT_ALIVE, PLAIN, 2.0),
        (POLLING, NGINX_KEEPALIVE, 1.3),
        (ECHO, PLAIN, 1.15),
        (ECHO_4K, PLAIN, 10.0),
        (ECHO_4K, SIMPLE, 1.3),
    ]
    goals = []
    for workload, other, limit in limits:
        for server in (OURS, KERNEL):
            if server in results.servers(workload):
                how = ", kernel router" if server == KERNEL else ""
                name = f"{workload.name}{how}, {workload.unit}/s ÷ {other}"
                goals.append(at_least(name, limit, results.ratio(workload, server, other)))
    for server in (OURS, KERNEL):
        if server in results.servers(POLLING):
            lost = sum(each.lost for each in results.samples[POLLING.name, server])
            goals.append(Goal(f"polling sessions lost, {server}", "0", str(lost), lost == 0))
    return goals


def latencies(results: Results) -> list[Goal]:
    """How long ours may take at a load that is fixed."""
    goals = []
    for paced in PACED:
        theirs = median(results.paced[paced.workload.name, PLAIN], p99)
        for server in (OURS, KERNEL):
            samples: list[Sample] | None = results.paced.get((paced.workload.name, server))
            if samples:
                how = ", kernel router" if server == KERNEL else ""
                name = f"{paced.workload.name}{how}, p99 at {100 * paced.share:.0f} % load, no more than plain's"
                goals.append(at_most(name, theirs, median(samples, p99), "ms"))
    return goals


def memories(results: Results) -> list[Goal]:
    """What an idle client may cost in the workers."""
    return [
        at_most(
            f"workers' memory for each of {kind.name}", limit, results.of_memory(kind.name, OURS, "workers"), "KiB", 1
        )
        for kind, limit in ((IDLE_CLIENTS, 42), (IDLE_WEBSOCKETS, 42), (IDLE_CONNECTIONS, 10))
    ]


def proxies(results: Results) -> list[Goal]:
    """What finding out who a proxy's clients are may cost."""
    assert results.moves is not None
    kept = results.moves.kept_descriptors
    staying = results.of_proxies(STAYING, "header", cost) / results.of_proxies(STAYING, "no header", cost)
    return [
        at_most(
            "listener's CPU for each connection of a proxy", 35, results.of_proxies(PEEKED, "header", routing), "µs", 1
        ),
        at_most("CPU of a proxy's kept-alive request that stays, header read ÷ not", 1.05, staying),
        Goal(f"descriptors left over from {results.moves.count:,} moves", "0", str(kept), kept <= 0),
    ]


def goals(results: Results) -> list[Goal]:
    """All goals."""
    return [*routers(results), *ratios(results), *latencies(results), *memories(results), *proxies(results)]
