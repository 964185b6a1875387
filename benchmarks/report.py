"""Turns measurements into the text of RESULTS.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import servers
from measure import Memory, Moves, Sample
from workloads import (
    CLIENTS,
    IDLE,
    IDLE_WEBSOCKETS,
    MANY_MOVES,
    MOVING,
    PEEKED,
    PEEKED_GOAL_US,
    ROUTED,
    ROUTER_GOAL_US,
    STAYING,
    STAYING_GOAL,
    WORKLOADS,
    Proxied,
    Workload,
)

MIB = 1024
FLAT_KIB = 0.1


@dataclass
class Results:
    """All measurements.

    :ivar samples: by name of workload and server
    :ivar proxied: the samples of proxies' load, by name of workload and "header" or "no header"
    :ivar moves: None until they have been measured
    :ivar memory: by name of the kind of connection, server, and part of the server ("workers" or "routers")
    """

    workers: int
    seconds: int
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    proxied: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    moves: Moves | None = None
    memory: dict[tuple[str, str, str], list[Memory]] = field(default_factory=dict)

    def values(self, workload: Workload, server: str, value: Callable[[Sample], float]) -> list[float]:
        """One value of every round."""
        return [value(each) for each in self.samples[workload.name, server]]

    def median(self, workload: Workload, server: str, value: Callable[[Sample], float]) -> float:
        """The median of one value."""
        return statistics.median(self.values(workload, server, value))

    def of_proxies(self, workload: Proxied, server: str, value: Callable[[Sample], float]) -> float:
        """The median of one value of proxies' load."""
        return statistics.median(value(each) for each in self.proxied[workload.name, server])

    def servers(self, workload: Workload) -> list[str]:
        """The servers that were measured."""
        return [server for name, server in self.samples if name == workload.name]


def rate(each: Sample) -> float:
    """Requests per second."""
    return each.requests_per_second


def cost(each: Sample) -> float:
    """CPU of the server for each request, microseconds."""
    return each.server_us


def routing(each: Sample) -> float:
    """CPU of the router for each connection, microseconds."""
    return each.router_us


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


def yes(met: bool) -> str:
    """How a goal is answered."""
    return "yes" if met else "**no**"


def share(part: int, whole: int) -> str:
    """How much of the whole a part is."""
    return f"{100 * part / whole:.1f} % of {whole:,}" if whole else "-"


def goals(results: Results) -> str:
    """Each goal and what was measured."""
    listener = results.median(ROUTED, "ours", routing)
    memories = results.memory[IDLE_WEBSOCKETS.name, "ours", "routers"]
    growth = statistics.median(each.kib_each for each in memories)
    rows = [
        [
            "listener's CPU for each connection",
            f"≤ {ROUTER_GOAL_US:.0f} µs",
            f"{listener:.1f} µs",
            yes(listener <= ROUTER_GOAL_US),
        ],
        ["listener's memory for each open connection", "0 KiB", f"{growth:.2f} KiB", yes(growth < FLAT_KIB)],
    ]
    peeking = results.of_proxies(PEEKED, "header", routing)
    staying = results.of_proxies(STAYING, "header", cost) / results.of_proxies(STAYING, "no header", cost)
    assert results.moves is not None
    kept = results.moves.kept_descriptors
    rows += [
        [
            "listener's CPU for each connection of a proxy",
            f"≤ {PEEKED_GOAL_US:.0f} µs",
            f"{peeking:.1f} µs",
            yes(peeking <= PEEKED_GOAL_US),
        ],
        [
            "CPU of a proxy's kept-alive request that stays, header read ÷ not",
            f"≤ {STAYING_GOAL:.2f}",
            f"{staying:.2f}",
            yes(staying <= STAYING_GOAL),
        ],
        [f"descriptors left over from {results.moves.count:,} moves", "0", str(kept), yes(kept <= 0)],
    ]
    for workload in WORKLOADS:
        ratio = results.median(workload, "ours", rate) / results.median(workload, "plain", rate)
        rows.append(
            [
                f"{workload.name}, requests/s ÷ plain's",
                f"≥ {workload.goal:.2f}",
                f"{ratio:.2f}",
                yes(ratio >= workload.goal),
            ]
        )
    return table(["", "goal", "measured", "met"], rows)


def routers(results: Results) -> str:
    """What routing costs, ours and others."""
    ours = results.median(ROUTED, "ours", routing)
    rows = []
    for server in results.servers(ROUTED):
        samples = results.samples[ROUTED.name, server]
        memories = results.memory[IDLE_WEBSOCKETS.name, server, "routers"]
        if server == "plain":
            router = ["plain, no router", *["-"] * 5]
        else:
            median = results.median(ROUTED, server, routing)
            router = [
                server,
                f"{median:.1f}",
                f"{ours / median:.2f}",
                f"{statistics.median(each.before_kib for each in memories) / MIB:.1f}",
                f"{statistics.median(each.after_kib for each in memories) / MIB:.1f}",
                f"{statistics.median(each.kib_each for each in memories):.2f}",
            ]
        rows.append(
            [
                *router,
                f"{results.median(ROUTED, server, rate):.0f}",
                f"{results.median(ROUTED, server, cost):.0f}",
                share(sum(each.moved for each in samples), sum(each.repeats for each in samples)),
                str(sum(each.errors for each in samples)),
                f"{len(samples)}, {len(memories)}",
            ]
        )
    idle = results.memory[IDLE_WEBSOCKETS.name, "ours", "routers"][0].connections
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


def workers(results: Results) -> str:
    """Ours and plain gunicorn under load."""
    rows = []
    for workload in WORKLOADS:
        rates = [results.values(workload, server, rate) for server in ("ours", "plain")]
        costs = [results.median(workload, server, cost) for server in ("ours", "plain")]
        medians = [statistics.median(each) for each in rates]
        neighbours = [ours / plain for ours, plain in zip(*rates, strict=True)]
        both = [each for server in ("ours", "plain") for each in results.samples[workload.name, server]]
        rows.append(
            [
                workload.name,
                *(f"{median:.0f}" for median in medians),
                f"{medians[0] / medians[1]:.2f}",
                quartiles(neighbours),
                *(f"{each:.0f}" for each in costs),
                f"{costs[0] / costs[1]:.2f}",
                f"{statistics.median(each.client_us for each in both):.0f}",
                str(sum(each.errors for each in both)),
                str(len(neighbours)),
            ]
        )
    return table(
        [
            "",
            "ours, requests/s",
            "plain",
            "ratio",
            "of neighbours",
            "ours, server's CPU µs per request",
            "plain",
            "ratio",
            "client's CPU µs",
            "errors",
            "runs",
        ],
        rows,
    )


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


def latency(results: Results) -> str:
    """Latencies of ours and plain gunicorn while all clients send as fast as they can."""
    rows = []
    for workload in WORKLOADS:
        row = [workload.name]
        for value in (lambda each: each.p50_ms), (lambda each: each.p99_ms), (lambda each: each.p999_ms):
            row += [f"{results.median(workload, server, value):.2f}" for server in ("ours", "plain")]
        rows.append(row)
    return table(["", "ours, p50 ms", "plain", "ours, p99 ms", "plain", "ours, p99.9 ms", "plain"], rows)


def memory(results: Results) -> str:
    """What an idle connection costs in the workers."""
    rows = []
    for kind in IDLE:
        pair = [results.memory[kind.name, server, "workers"] for server in ("ours", "plain")]
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


def noise(results: Results) -> str:
    """How busy the machine was with something else."""
    everything = [*results.samples.values(), *results.proxied.values()]
    others = [each.others_cores for samples in everything for each in samples]
    return (
        f"While load ran, other processes and the hypervisor used {statistics.median(others):.2f} cores "
        f"(median; at most {max(others):.2f}) of {os.cpu_count()}."
    )


def output(*command: str) -> str:
    """What a command prints, on either stream."""
    result = subprocess.run(  # noqa: S603 - asks the peers for their versions
        [servers.tool(command[0]), *command[1:]], capture_output=True, text=True, check=True
    )
    return result.stdout + result.stderr


def versions() -> str:
    """The machine and the software."""
    processor = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    packages = json.loads((servers.PEERS / "package-lock.json").read_text())["packages"]
    npm = ("sticky-session", "@socket.io/sticky")
    python = ("gunicorn", "gevent", "gevent-websocket")
    return ", ".join(
        [
            f"{os.cpu_count()} cores ({processor[1] if processor else platform.machine()})",
            f"Linux {'.'.join(platform.release().split('.')[:2])}",
            f"Python {platform.python_version()}",
            *(f"{name} {importlib.metadata.version(name)}" for name in python),
            re.findall(r"nginx/[\d.]+", output("nginx", "-v"))[0].replace("/", " "),
            "HAProxy " + re.findall(r"version ([\d.]+)", output("haproxy", "-v"))[0],
            "Node " + output("node", "--version").strip().removeprefix("v"),
            *(f"{name} {packages[f'node_modules/{name}']['version']}" for name in npm),
        ]
    )


def render(results: Results) -> str:
    """The whole text."""
    move = results.of_proxies(MOVING, "header", cost) - results.of_proxies(STAYING, "header", cost)
    return f"""# Results

Made by `make bench`. {versions()}.

Every server has {results.workers} workers. Each run is {results.seconds} s of load from one load
generator on the same machine, whose clients have {CLIENTS:,} addresses; workloads and servers take turns, and the
figures are medians of all runs. Only ratios mean anything elsewhere, and differences under 10 % are ties.
{noise(results)}

"Ours" is `gunicorn -k sticky_session.Worker`; "plain" is `gunicorn -k {servers.PLAIN_WORKER}`,
which is not sticky.

## Goals

{goals(results)}

## Routing

Each request comes on a new connection. nginx and HAProxy stand in front of {results.workers} plain
gunicorns of one worker each; the two Node routers hand connections on to Node workers, so only the routers'
CPU and memory compare. "Moved" is how many of the requests from clients that had been answered before, in the
same run, were answered by another worker than the time before (@socket.io/sticky routes by session id, which
these requests have none of).

{routers(results)}

## Workers

{workers(results)}

"Of neighbours" is the middle half of the ratios of runs that followed each other.

## Behind proxies

Each request says in X-Forwarded-For whose it is. "Not read" is the same server with
`STICKY_SESSION_CLIENT_HEADER=off`, and the same requests; they go to the same workers. A request that moves costs
{move:.0f} µs more than one that stays.

{proxied(results)}

{many_moves(results)}

## Latency

All clients send as fast as they are answered, so this is the time in the queue.

{latency(results)}

## Memory of an idle connection in the workers

Private memory of the worker processes; the kernel's socket buffers are not in it.

{memory(results)}
"""
