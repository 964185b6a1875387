"""Takes measurements: CPU time and memory of processes, from /proc, and what the load generator sees."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

TICKS = os.sysconf("SC_CLK_TCK")
SETTLE_SECONDS = 0.5

# A server that has used less than this much of a core for so long has nothing left to do.
IDLE_CORES = 0.1
IDLE_SECONDS = 0.05
BUSY_SECONDS = 10.0


class MeasureError(Exception):
    """A measurement can't be taken, or can't be trusted."""


def process_tree(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # proc(5): pid (command) state ppid ...; the command may hold blanks and parentheses
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, ()))
    return tree


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """The CPU time of each process so far, of all its threads, to the nanosecond (schedstat).

    :raises OSError: a process is gone
    """
    return {
        pid: sum(int(path.joinpath("schedstat").read_text().split()[0]) for path in Path(f"/proc/{pid}/task").iterdir())
        / 1e9
        for pid in pids
    }


def private_kib(pids: Iterable[int]) -> int:
    """The memory that only these processes use, KiB. Socket buffers in the kernel are not in it."""
    return sum(
        int(size)
        for pid in pids
        for size in re.findall(r"^Private_\w+: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    )


def machine_seconds() -> tuple[float, float]:
    """The CPU time used on the whole machine so far, and the time that the hypervisor took from it."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / TICKS, steal / TICKS


@dataclass(frozen=True)
class Sample:
    """What one round of load on one server gave. Times of CPU are microseconds for each request.

    :ivar server_us: CPU of all the server's processes
    :ivar router_us: the routers' part of it
    :ivar client_us: CPU of the load generator
    :ivar client_cores: how much of a core the load generator used; it has one thread, so 1 would be its limit
    :ivar server_cores: how many cores all the server's processes used
    :ivar repeats: how many requests came from a client that had had an answer from a worker in this run
    :ivar moved: how many of these were answered by another worker than the time before
    :ivar lost: how many Socket.IO sessions ended because the server didn't know them
    :ivar errors: how many requests (or sessions, lost ones not counted) had no good answer
    :ivar others_cores: how many cores other processes, and the hypervisor, kept busy meanwhile
    """

    requests_per_second: float
    server_us: float
    router_us: float
    client_us: float
    client_cores: float
    server_cores: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    repeats: int
    moved: int
    lost: int
    errors: int
    others_cores: float


class Load:
    """The load generator, compiled when its source is newer.

    :raises MeasureError: it does not compile
    """

    def __init__(self, compiler: str) -> None:
        sources = [HERE / "load.c", HERE / "session.c"]
        parts = [*sources, HERE / "session.h"]
        self.path = HERE / "build" / "load"
        if self.path.exists() and self.path.stat().st_mtime > max(part.stat().st_mtime for part in parts):
            return
        self.path.parent.mkdir(exist_ok=True)
        command = [
            *(compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"),
            *("-o", str(self.path), *map(str, sources), "-lm"),
        ]
        result = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own source
        if result.returncode != 0:
            raise MeasureError(f"{' '.join(command)}:\n{result.stderr}")

    def _start(self, port: int, mode: str, options: dict[str, int | str], *more: str) -> subprocess.Popen[str]:
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return subprocess.Popen(  # noqa: S603 - our own program
            [str(self.path), "--port", str(port), "--mode", mode, *flags, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, port: int, mode: str, **options: int | str) -> dict[str, Any]:
        """Run it to its end, and return what it reports.

        :raises MeasureError: it fails
        """
        with self.ready(port, mode, **options) as go:
            return go()

    @contextlib.contextmanager
    def ready(self, port: int, mode: str, **options: int | str) -> Iterator[Callable[[], dict[str, Any]]]:
        """Have it open its connections, and give a function that has it do the rest and returns what it reports.

        Connections that stay open are closed when the context is left.

        :raises MeasureError: it fails
        """
        with self._start(port, mode, options, "--wait") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            stdin, stdout = process.stdin, process.stdout

            def line() -> str:
                text = stdout.readline()
                if not text:
                    raise failure(process, mode)
                return text

            def go() -> dict[str, Any]:
                stdin.write("\n")
                stdin.flush()
                report: dict[str, Any] = json.loads(line())
                return report

            line()
            yield go
            process.communicate()
        if process.returncode != 0:
            raise MeasureError(f"load, mode {mode}: exit status {process.returncode}")

    @contextlib.contextmanager
    def hold(self, port: int, mode: str, connections: int) -> Iterator[None]:
        """Keep idle connections open for as long as the context lasts."""
        with self._start(port, mode, {"connections": connections, "seconds": 60}) as process:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise failure(process, mode)
            yield
            process.communicate()
        if process.returncode != 0:
            raise MeasureError(f"load, mode {mode}: exit status {process.returncode}")


def failure(process: subprocess.Popen[str], mode: str) -> MeasureError:
    """What to say of a load generator that has ended too early."""
    _, text = process.communicate()
    return MeasureError(f"mode {mode}: {text.strip()} (exit status {process.returncode})")


def sample(load: Load, processes: list[int], routers: list[int], port: int, mode: str, **options: int | str) -> Sample:
    """Put load on a server and measure. When this returns, the server is idle again.

    :raises MeasureError: nothing was answered, or a process of the server was replaced meanwhile
    """
    try:
        with load.ready(port, mode, **options) as go:
            machine, stolen = machine_seconds()
            before, begin = cpu_seconds(processes), time.monotonic()
            report = go()
            elapsed = time.monotonic() - begin
            after = cpu_seconds(processes)
            machine_after, stolen_after = machine_seconds()
        settle(processes)
    except OSError as error:
        raise MeasureError(f"a process of the server went away: {error}") from error
    used = {pid: after[pid] - before[pid] for pid in processes}
    requests = report["requests"]
    if requests == 0:
        raise MeasureError(f"load, mode {mode}: nothing was answered: {report['first_error']}")
    others = machine_after - machine - sum(used.values()) - report["cpu_seconds"] + stolen_after - stolen
    return Sample(
        requests_per_second=report["requests_per_second"],
        server_us=sum(used.values()) / requests * 1e6,
        router_us=sum(used[pid] for pid in routers) / requests * 1e6,
        client_us=report["cpu_seconds"] / requests * 1e6,
        client_cores=report["cpu_seconds"] / elapsed,
        server_cores=sum(used.values()) / elapsed,
        p50_ms=report["p50_ms"],
        p99_ms=report["p99_ms"],
        p999_ms=report["p999_ms"],
        repeats=report["repeats"],
        moved=report["violations"],
        lost=report["lost"],
        errors=report["errors"] - report["lost"] + report["unfinished"],
        others_cores=max(0.0, others / elapsed),
    )


def settle(pids: Iterable[int]) -> None:
    """Wait until processes have dealt with what a load has left behind, such as thousands of closed connections.

    One that is never idle is waited for no longer than :data:`BUSY_SECONDS`.

    :raises OSError: a process is gone
    """
    pids = list(pids)
    until = time.monotonic() + BUSY_SECONDS
    before, since = sum(cpu_seconds(pids).values()), time.monotonic()
    while time.monotonic() < until:
        time.sleep(IDLE_SECONDS)
        after, now = sum(cpu_seconds(pids).values()), time.monotonic()
        if after - before < IDLE_CORES * (now - since):
            return
        before, since = after, now


@dataclass(frozen=True)
class Moves:
    """What very many moves of connections between workers have left behind, for each process.

    :ivar wrong: how many answers came from another worker than the client's
    """

    count: int
    seconds: float
    wrong: int
    errors: int
    descriptors_before: list[int]
    descriptors_after: list[int]
    kib_before: list[int]
    kib_after: list[int]

    @property
    def kept_descriptors(self) -> int:
        """The most that one process has more of than before."""
        return max(
            after - before for before, after in zip(self.descriptors_before, self.descriptors_after, strict=True)
        )

    @property
    def kept_kib(self) -> int:
        """The most that one process has grown by."""
        return max(after - before for before, after in zip(self.kib_before, self.kib_after, strict=True))


def descriptors(pids: Iterable[int]) -> list[int]:
    """How many descriptors each process has open."""
    return [sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()) for pid in pids]


def moves(load: Load, pids: list[int], port: int, seconds: int, count: int, **options: int | str) -> Moves:
    """Have connections move ``count`` times. The server should have served some already.

    :raises MeasureError: it took longer than ``seconds``
    """
    before, kib_before = descriptors(pids), [private_kib([pid]) for pid in pids]
    report = load.run(port, "moving", seconds=seconds, count=count, **options)
    if report["requests"] < count:
        raise MeasureError(f"only {report['requests']} of {count} moves in {seconds} s: {report['first_error']}")
    time.sleep(SETTLE_SECONDS)
    return Moves(
        count=count,
        seconds=report["seconds"],
        wrong=report["violations"],
        errors=report["errors"] + report["unfinished"],
        descriptors_before=before,
        descriptors_after=descriptors(pids),
        kib_before=kib_before,
        kib_after=[private_kib([pid]) for pid in pids],
    )


@dataclass(frozen=True)
class Memory:
    """The memory of some processes before and while connections are open, KiB."""

    before_kib: int
    after_kib: int
    connections: int

    @property
    def kib_each(self) -> float:
        """What one connection costs."""
        return (self.after_kib - self.before_kib) / self.connections


def memory(load: Load, groups: list[list[int]], port: int, mode: str, connections: int) -> list[Memory]:
    """Open idle connections and measure groups of processes.

    The server must be fresh, but have served something.
    """
    befores = [private_kib(group) for group in groups]
    with load.hold(port, mode, connections):
        time.sleep(SETTLE_SECONDS)
        afters = [private_kib(group) for group in groups]
    return [Memory(before, after, connections) for before, after in zip(befores, afters, strict=True)]
