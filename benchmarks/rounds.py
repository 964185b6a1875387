"""Takes all measurements: which load is put on which server, in which order, and how often."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import servers
from measure import Load, Memory, Sample, memory, moves, sample
from results import Results, rate
from workloads import (
    CLIENTS,
    IDLE,
    KERNEL,
    MANY_MOVES,
    MOVING,
    OURS,
    PACED,
    PEEKED,
    PLAIN,
    STARTS,
    STAYING,
    WORKLOADS,
    Idle,
    crowds,
)

# With proxies in front: with the header that says who their clients are, and without.
BEHIND_PROXIES = {"header": servers.ours_behind_proxies, "no header": servers.ours_without_header}
# What is measured on them in a round: first the small difference, several times, on servers that did nothing else.
PROXIED = (
    *((STAYING, "header"), (STAYING, "no header")) * 3,
    *((PEEKED, "header"), (PEEKED, "no header")),
    (MOVING, "header"),
)


@dataclass(frozen=True)
class Plan:
    """How often and how long everything is measured.

    :ivar rounds: of load on every server
    :ivar proxied_rounds: of proxies' load
    :ivar growth_rounds: of load on growing numbers of workers and clients
    :ivar seconds: of load in each round
    :ivar workers: the numbers of workers that growth is measured with
    :ivar clients: the numbers of clients
    :ivar moves: of connections between workers
    :ivar idle_rounds: of idle connections
    :ivar idle_clients: the numbers of them that growth is measured with
    """

    rounds: int
    proxied_rounds: int
    growth_rounds: int
    seconds: int
    workers: tuple[int, ...]
    clients: tuple[int, ...]
    moves: int
    idle_rounds: int
    idle_connections: int
    idle_clients: tuple[int, ...]


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


def at_work(names: Iterable[str]) -> list[str]:
    """Those of the servers that there are: ours may not be able to have the kernel route."""
    return [name for name in names if name != KERNEL or servers.kernel_routes()]


class Rounds:
    """The measurements of one run.

    :ivar results: what has been measured so far
    """

    def __init__(self, plan: Plan, workers: int, load: Load) -> None:
        self.results = Results(workers, plan.seconds)
        self._plan, self._load = plan, load
        # In the order in which they take turns.
        self._runs = [(workload, name) for workload in WORKLOADS for name in at_work(workload.servers)]
        self._paced_runs = [(paced, name) for paced in PACED for name in at_work(paced.servers)]
        self._crowd_runs = [
            (workload, clients, name)
            for workload in WORKLOADS
            for clients in plan.clients
            for name in at_work(workload.grown)
            if clients in crowds(workload, name, plan.clients)
        ]
        self._worker_runs = [
            (workload, workers, name)
            for workload in WORKLOADS
            for workers in plan.workers
            for name in at_work(workload.grown)
        ]
        self._idle_runs = [(kind, name) for kind in IDLE for name in at_work(kind.servers)]
        self._idle_crowds = [
            (kind, clients, name) for kind in IDLE for clients in plan.idle_clients for name in (OURS, PLAIN)
        ]
        self._progress = Progress(
            plan.rounds * (len(self._runs) + len(self._paced_runs))
            + plan.growth_rounds * (len(self._crowd_runs) + len(self._worker_runs))
            + plan.proxied_rounds * len(PROXIED)
            + 1
            + plan.idle_rounds * len(self._idle_runs)
            + len(self._idle_crowds)
        )

    def take_all(self) -> None:
        """Take all measurements.

        :raises servers.ServerError, measure.MeasureError: one can't be taken
        """
        self._take_load()
        self._take_workers()
        self._take_proxied()
        self._take_moves()
        self._take_memory()

    def _take(self, server: servers.Server, mode: str, what: str, unit: str, **options: int | str) -> Sample:
        taken = sample(
            self._load,
            server.processes,
            server.routers,
            server.port,
            mode,
            seconds=self._plan.seconds,
            **{"sources": CLIENTS, **options},
        )
        self._progress(f"{what}: {taken.requests_per_second:.0f} {unit}/s, {taken.server_us:.0f} µs each")
        server.check()
        return taken

    def _take_load(self) -> None:
        """Put every workload on every server in turn, again and again; then growing numbers of clients."""
        workers, plan, results = self.results.workers, self._plan, self.results
        with contextlib.ExitStack() as stack:
            started: dict[tuple[str, str], servers.Server] = {}
            for workload, name in self._runs:
                if (workload.app, name) not in started:
                    started[workload.app, name] = STARTS[name](stack, workers, workload.app)
            for number in range(1, plan.rounds + 1):
                for workload, name in self._runs:
                    taken = self._take(
                        started[workload.app, name],
                        workload.mode,
                        f"round {number}, {workload.name}, {name}",
                        workload.unit,
                        connections=workload.connections,
                        **workload.options,
                    )
                    results.samples.setdefault((workload.name, name), []).append(taken)
            for number in range(1, plan.rounds + 1):
                for paced, name in self._paced_runs:
                    slowest = min(results.median(paced.workload, each, rate) for each in at_work(paced.servers))
                    a_second = round(paced.share * slowest)
                    taken = self._take(
                        started[paced.workload.app, name],
                        paced.workload.mode,
                        f"round {number}, {a_second}/s of {paced.workload.name}, {name}",
                        paced.workload.unit,
                        connections=paced.connections,
                        rate=a_second,
                        **paced.workload.options,
                    )
                    results.paced.setdefault((paced.workload.name, name), []).append(taken)
                    results.rates[paced.workload.name] = a_second
            for number in range(1, plan.growth_rounds + 1):
                for workload, clients, name in self._crowd_runs:
                    taken = self._take(
                        started[workload.app, name],
                        workload.mode,
                        f"round {number}, {clients} clients, {workload.name}, {name}",
                        workload.unit,
                        connections=clients,
                        **workload.options,
                    )
                    results.by_clients.setdefault((workload.name, name, clients), []).append(taken)

    def _take_workers(self) -> None:
        """Put workloads on servers with growing numbers of workers."""
        with contextlib.ExitStack() as stack:
            started: dict[tuple[str, int, str], servers.Server] = {}
            for workload, workers, name in self._worker_runs:
                key = workload.app, workers, name
                if key not in started:
                    started[key] = STARTS[name](stack, workers, workload.app)
            for number in range(1, self._plan.growth_rounds + 1):
                for workload, workers, name in self._worker_runs:
                    taken = self._take(
                        started[workload.app, workers, name],
                        workload.mode,
                        f"round {number}, {workers} workers, {workload.name}, {name}",
                        workload.unit,
                        connections=workload.connections,
                        **workload.options,
                    )
                    self.results.by_workers.setdefault((workload.name, name, workers), []).append(taken)

    def _take_proxied(self) -> None:
        """Put the load of proxies on a server that reads who their clients are, and on one that doesn't."""
        workers = self.results.workers
        for number in range(1, self._plan.proxied_rounds + 1):
            # New ones each time: a process is some percent faster or slower than another of its kind all its life.
            with contextlib.ExitStack() as stack:
                started = {name: start(stack, workers) for name, start in BEHIND_PROXIES.items()}
                for workload, name in PROXIED:
                    taken = self._take(
                        started[name],
                        workload.mode,
                        f"round {number}, proxies' {workload.name}, {name}",
                        "requests",
                        **workload.options(workers),
                    )
                    self.results.proxied.setdefault((workload.name, name), []).append(taken)

    def _take_moves(self) -> None:
        """Have connections move very many times."""
        with contextlib.ExitStack() as stack:
            workers, count = MANY_MOVES.workers, self._plan.moves
            server = servers.ours_behind_proxies(stack, workers)
            options = MOVING.options(workers)
            self._load.run(server.port, "moving", seconds=5, count=5000, **options)
            options["connections"] = MANY_MOVES.connections
            taken = moves(self._load, server.processes, server.port, MANY_MOVES.seconds, count, **options)
            server.check()
        self.results.moves = taken
        self._progress(f"{count} moves in {taken.seconds:.1f} s")

    def _take_memory(self) -> None:
        """Open idle connections on fresh servers: memory that a process got back would hide what they need."""
        results, connections = self.results, self._plan.idle_connections
        for _ in range(self._plan.idle_rounds):
            for kind, name in self._idle_runs:
                of_workers, of_routers = self._idle(kind, name, connections)
                results.memory.setdefault((kind.name, name, "workers"), []).append(of_workers)
                results.memory.setdefault((kind.name, name, "routers"), []).append(of_routers)
        for kind, clients, name in self._idle_crowds:
            of_workers, _ = self._idle(kind, name, clients)
            results.memory_by_clients.setdefault((kind.name, name, clients), []).append(of_workers)

    def _idle(self, kind: Idle, name: str, connections: int) -> list[Memory]:
        """The memory of workers and routers."""
        with contextlib.ExitStack() as stack:
            server = STARTS[name](stack, self.results.workers, kind.app)
            self._load.run(server.port, kind.warm_up, connections=16, count=500, seconds=5)
            taken = memory(self._load, [server.workers, server.routers], server.port, kind.mode, connections)
        self._progress(
            f"{connections} {kind.name}, {name}: {taken[0].kib_each:.1f} KiB each in the workers, "
            f"{taken[1].kib_each:.1f} in the router"
        )
        return taken
