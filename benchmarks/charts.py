"""What the plots show, of whatever kind they are: named values in panels."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from results import Results, client, median, p50, p99, p999, rate, routing, serving
from workloads import IDLE, NEW, PACED, POLLING, WORKLOADS


@dataclass(frozen=True)
class Panel:
    """Bars, or lines, that share a scale.

    :ivar values: what is drawn, by name of the server; each is one value for each of ``labels``
    :ivar labels: of the bars of one server, or of the points of its line
    """

    title: str
    unit: str
    labels: tuple[str, ...]
    values: dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Chart:
    """Panels that make one picture.

    :ivar file: its name, without the suffix
    :ivar across: what lines run over; None if these are bars
    :ivar stacked: the bars of a server are parts of a whole
    :ivar log: the values are that far apart that only a logarithmic scale shows them all
    """

    file: str
    title: str
    panels: tuple[Panel, ...]
    across: str | None = None
    stacked: bool = False
    log: bool = False


def throughput(results: Results) -> Chart:
    """What every server answers in a second."""
    panels = tuple(
        Panel(
            workload.name,
            f"{workload.unit}/s",
            ("",),
            {server: (results.median(workload, server, rate),) for server in results.servers(workload)},
        )
        for workload in WORKLOADS
    )
    return Chart("throughput", f"Throughput, {results.workers} workers", panels)


def costs(results: Results) -> Chart:
    """The CPU time of every process."""
    panels = tuple(
        Panel(
            workload.name,
            f"µs of CPU per {each}",
            ("router", "workers and the rest", "load generator"),
            {
                server: tuple(results.median(workload, server, value) for value in (routing, serving, client))
                for server in results.servers(workload)
            },
        )
        for workload, each in ((NEW, "connection"), (POLLING, "session"))
    )
    return Chart("cpu", "CPU by role", panels, stacked=True)


def latencies(results: Results) -> Chart:
    """Latencies at fixed times."""
    panels = tuple(
        Panel(
            f"{paced.workload.name}, {results.rates[paced.workload.name]:,}/s",
            "ms",
            ("p50", "p99", "p99.9"),
            {
                server: tuple(median(samples, value) for value in (p50, p99, p999))
                for (name, server), samples in results.paced.items()
                if name == paced.workload.name
            },
        )
        for paced in PACED
    )
    return Chart("latency", "Latency at 70 % of the slowest server's throughput", panels, log=True)


def by_workers(results: Results) -> Chart:
    """How throughput grows with the workers."""
    numbers = sorted({number for _, _, number in results.by_workers})
    panels = []
    for workload in WORKLOADS:
        names = dict.fromkeys(server for name, server, _ in results.by_workers if name == workload.name)
        values = {
            server: tuple(median(results.by_workers[workload.name, server, number], rate) for number in numbers)
            for server in names
        }
        panels.append(Panel(workload.name, f"{workload.unit}/s", tuple(map(str, numbers)), values))
    return Chart("workers", "Throughput by number of workers", tuple(panels), across="workers")


def by_clients(results: Results) -> Chart:
    """How throughput holds with more clients, and what their idle connections cost."""
    numbers = sorted({number for _, _, number in results.by_clients})
    panels = []
    for workload in WORKLOADS:
        names = dict.fromkeys(server for name, server, _ in results.by_clients if name == workload.name)
        values: dict[str, tuple[float | None, ...]] = {}
        for server in names:
            samples = [results.by_clients.get((workload.name, server, number)) for number in numbers]
            values[server] = tuple(median(each, rate) if each else None for each in samples)
        if values:
            panels.append(Panel(workload.name, f"{workload.unit}/s", tuple(f"{each:,}" for each in numbers), values))
    return Chart("clients", "Throughput by number of clients at a time", tuple(panels), across="clients")


def memory(results: Results) -> Chart:
    """What an idle connection costs in the workers."""
    numbers = sorted({number for _, _, number in results.memory_by_clients})
    panels = []
    for kind in IDLE:
        names = dict.fromkeys(server for name, server, _ in results.memory_by_clients if name == kind.name)
        values = {
            server: tuple(
                statistics.median(each.kib_each for each in results.memory_by_clients[kind.name, server, number])
                for number in numbers
            )
            for server in names
        }
        panels.append(Panel(kind.name, "KiB each", tuple(f"{each:,}" for each in numbers), values))
    return Chart("memory", "Workers' memory for an idle connection", tuple(panels), across="connections")


def all_charts(results: Results) -> list[Chart]:
    """All there are."""
    return [chart(results) for chart in (throughput, costs, latencies, by_workers, by_clients, memory)]
