"""What has been measured, and the values taken from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from measure import Memory, Moves, Sample
from workloads import Proxied, Workload

Value = Callable[[Sample], float]


@dataclass
class Results:
    """All measurements.

    :ivar samples: by name of workload and server
    :ivar by_workers: by name of workload, server, and how many workers
    :ivar by_clients: by name of workload, server, and how many clients at a time
    :ivar paced: the samples of requests at fixed times, by name of workload and server
    :ivar rates: how many of these requests a second, by name of workload
    :ivar proxied: the samples of proxies' load, by name of workload and "header" or "no header"
    :ivar moves: None until they have been measured
    :ivar memory: by name of the kind of connection, server, and part of the server ("workers" or "routers")
    :ivar memory_by_clients: the workers' memory, by name of the kind of connection, server, and how many connections
    """

    workers: int
    seconds: int
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    by_workers: dict[tuple[str, str, int], list[Sample]] = field(default_factory=dict)
    by_clients: dict[tuple[str, str, int], list[Sample]] = field(default_factory=dict)
    paced: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    rates: dict[str, int] = field(default_factory=dict)
    proxied: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    moves: Moves | None = None
    memory: dict[tuple[str, str, str], list[Memory]] = field(default_factory=dict)
    memory_by_clients: dict[tuple[str, str, int], list[Memory]] = field(default_factory=dict)

    def values(self, workload: Workload, server: str, value: Value) -> list[float]:
        """One value of every round."""
        return [value(each) for each in self.samples[workload.name, server]]

    def median(self, workload: Workload, server: str, value: Value) -> float:
        """The median of one value."""
        return statistics.median(self.values(workload, server, value))

    def ratio(self, workload: Workload, server: str, other: str) -> float:
        """Requests per second of one server divided by those of another."""
        return self.median(workload, server, rate) / self.median(workload, other, rate)

    def of_proxies(self, workload: Proxied, server: str, value: Value) -> float:
        """The median of one value of proxies' load."""
        return median(self.proxied[workload.name, server], value)

    def of_memory(self, kind: str, server: str, part: str) -> float:
        """The median of what a connection costs in a part of a server, KiB."""
        return statistics.median(each.kib_each for each in self.memory[kind, server, part])

    def servers(self, workload: Workload) -> list[str]:
        """The servers that were measured."""
        return [server for name, server in self.samples if name == workload.name]

    def all_samples(self) -> Iterator[Sample]:
        """Every sample of everything."""
        for group in (self.samples, self.by_workers, self.by_clients, self.paced, self.proxied):
            for samples in group.values():
                yield from samples


def median(samples: list[Sample], value: Value) -> float:
    """The median of one value of some samples."""
    return statistics.median(map(value, samples))


def rate(each: Sample) -> float:
    """Requests per second."""
    return each.requests_per_second


def cost(each: Sample) -> float:
    """CPU of the server for each request, microseconds."""
    return each.server_us


def routing(each: Sample) -> float:
    """CPU of the router for each connection, microseconds."""
    return each.router_us


def serving(each: Sample) -> float:
    """CPU of all that is no router, for each request, microseconds."""
    return each.server_us - each.router_us


def client(each: Sample) -> float:
    """CPU of the load generator for each request, microseconds."""
    return each.client_us


def p50(each: Sample) -> float:
    """Milliseconds."""
    return each.p50_ms


def p99(each: Sample) -> float:
    """Milliseconds."""
    return each.p99_ms


def p999(each: Sample) -> float:
    """Milliseconds."""
    return each.p999_ms
