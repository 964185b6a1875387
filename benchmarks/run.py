"""Measures ours beside its peers, in one interleaved run, and writes RESULTS.md.

    python benchmarks/run.py            about 14 minutes
    python benchmarks/run.py --quick    about 3 minutes, only prints

Load generator and servers share the cores of this machine, and its speed may drift. Therefore each workload
is put on each server in turn, for a few seconds, many times over, and only medians and ratios of medians are
reported. CPU time for each request depends less on what else is going on than requests per second do.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import servers
from measure import Load, MeasureError, Sample, memory, moves, sample
from report import Results, render
from workloads import CLIENTS, IDLE, MANY_MOVES, MOVING, PEEKED, STAYING, WORKLOADS

Start = Callable[[contextlib.ExitStack, int], servers.Server]

PAIR: dict[str, Start] = {"ours": servers.ours, "plain": servers.plain}
ROUTERS: dict[str, Start] = {
    "nginx": servers.nginx,
    "nginx, kept-alive upstreams": servers.nginx_keepalive,
    "HAProxy": servers.haproxy,
    "Node sticky-session": servers.node_sticky_session,
    "Node @socket.io/sticky": servers.node_socketio_sticky,
}
# With proxies in front: with the header that says who their clients are, and without.
BEHIND_PROXIES: dict[str, Start] = {"header": servers.ours_behind_proxies, "no header": servers.ours_without_header}
# What is measured on them in a round: first the small difference, several times, on servers that did nothing else.
PROXIED = (
    *((STAYING, "header"), (STAYING, "no header")) * 3,
    *((PEEKED, "header"), (PEEKED, "no header")),
    (MOVING, "header"),
)


@dataclass(frozen=True)
class Plan:
    """How often and how long everything is measured."""

    rounds: int
    seconds: int
    idle_rounds: int
    idle_connections: int


FULL = Plan(rounds=9, seconds=3, idle_rounds=3, idle_connections=2000)
QUICK = Plan(rounds=5, seconds=1, idle_rounds=1, idle_connections=1000)


class Progress:
    """Says on standard error what is going on and how long it will take."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done, self._begin = steps, 0, time.monotonic()

    def __call__(self, text: str) -> None:
        """A step is done."""
        self._done += 1
        elapsed = time.monotonic() - self._begin
        left = elapsed / self._done * (self._steps - self._done)
        print(f"[{self._done}/{self._steps}, {left:.0f} s left] {text}", file=sys.stderr, flush=True)


def measured(routed: bool) -> dict[str, Start]:
    """The servers that something is measured on."""
    return PAIR | ROUTERS if routed else PAIR


def measure_load(results: Results, plan: Plan, workers: int, load: Load, progress: Progress) -> None:
    """Put every workload on every server in turn, again and again."""
    with contextlib.ExitStack() as stack:
        started = {name: start(stack, workers) for name, start in measured(True).items()}
        processes = {name: server.processes for name, server in started.items()}
        for number in range(plan.rounds):
            for workload in WORKLOADS:
                for name in measured(workload.routed):
                    server = started[name]
                    taken: Sample = sample(
                        load,
                        processes[name],
                        server.routers,
                        server.port,
                        workload.mode,
                        seconds=plan.seconds,
                        sources=CLIENTS,
                        **workload.options,
                    )
                    results.samples.setdefault((workload.name, name), []).append(taken)
                    progress(
                        f"round {number + 1}, {workload.name}, {name}: {taken.requests_per_second:.0f}/s, "
                        f"{taken.server_us:.0f} µs each"
                    )
                    server.check()


def measure_proxied(results: Results, plan: Plan, workers: int, load: Load, progress: Progress) -> None:
    """Put the load of proxies on a server that reads who their clients are, and on one that doesn't."""
    for number in range(plan.rounds):
        # New ones each time: a process is some percent faster or slower than another of its kind for all of its life.
        with contextlib.ExitStack() as stack:
            started = {name: start(stack, workers) for name, start in BEHIND_PROXIES.items()}
            processes = {name: server.processes for name, server in started.items()}
            for workload, name in PROXIED:
                server = started[name]
                taken = sample(
                    load,
                    processes[name],
                    server.routers,
                    server.port,
                    workload.mode,
                    seconds=plan.seconds,
                    **workload.options(workers),
                )
                results.proxied.setdefault((workload.name, name), []).append(taken)
                progress(
                    f"round {number + 1}, proxies' {workload.name}, {name}: {taken.requests_per_second:.0f}/s, "
                    f"{taken.server_us:.0f} µs each"
                )
                server.check()


def measure_moves(results: Results, load: Load, progress: Progress) -> None:
    """Have connections move very many times."""
    plan = MANY_MOVES
    with contextlib.ExitStack() as stack:
        server = servers.ours_behind_proxies(stack, plan.workers)
        load.run(server.port, "moving", seconds=5, count=5000, **MOVING.options(plan.workers))
        options = {**MOVING.options(plan.workers), "connections": plan.connections}
        results.moves = moves(load, server.processes, server.port, plan.seconds, plan.count, **options)
        server.check()
    progress(f"{plan.count} moves in {results.moves.seconds:.1f} s")


def measure_memory(results: Results, plan: Plan, workers: int, load: Load, progress: Progress) -> None:
    """Open idle connections on fresh servers: memory that a process got back would hide what they need."""
    for _ in range(plan.idle_rounds):
        for kind in IDLE:
            for name, start in measured(kind.routed).items():
                with contextlib.ExitStack() as stack:
                    server = start(stack, workers)
                    load.run(server.port, kind.warm_up, connections=16, count=500, seconds=5)
                    of_workers, of_routers = memory(
                        load, [server.workers, server.routers], server.port, kind.mode, plan.idle_connections
                    )
                results.memory.setdefault((kind.name, name, "workers"), []).append(of_workers)
                results.memory.setdefault((kind.name, name, "routers"), []).append(of_routers)
                progress(
                    f"{plan.idle_connections} {kind.name}, {name}: {of_workers.kib_each:.1f} KiB each in the "
                    f"workers, {of_routers.kib_each:.1f} in the router"
                )


def steps(plan: Plan) -> int:
    """How many steps the plan has."""
    loads = sum(len(measured(each.routed)) for each in WORKLOADS)
    idles = sum(len(measured(each.routed)) for each in IDLE)
    return plan.rounds * (loads + len(PROXIED)) + 1 + plan.idle_rounds * idles


def main() -> int:
    """Run the benchmarks; the exit status is 0 if they could be run."""
    parser = argparse.ArgumentParser(description="Measure ours beside its peers.")
    parser.add_argument("--quick", action="store_true", help="a rough look in 3 minutes, only printed")
    parser.add_argument("--workers", type=int, default=2, help="workers of each server (default: 2)")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    results = Results(arguments.workers, plan.seconds)
    progress = Progress(steps(plan))
    try:
        servers.install()
        load = Load(servers.tool("cc"))
        measure_load(results, plan, arguments.workers, load, progress)
        measure_proxied(results, plan, arguments.workers, load, progress)
        measure_moves(results, load, progress)
        measure_memory(results, plan, arguments.workers, load, progress)
    except (servers.ServerError, MeasureError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    text = render(results)
    print(text)
    if not arguments.quick:
        Path(__file__).with_name("RESULTS.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
