"""The speed of broadcasts across workers, beside python-socketio's RedisManager in the same run.

    python benchmarks/bus.py                      about 11 minutes; writes BUS.md
    python benchmarks/bus.py --print --workers 2  a look

Latency: from when a worker's app emits to when a client of another worker has received it; nothing else goes on.
Throughput: one worker emits as fast as it can be heard, and all others' clients receive. CPU time is that of all
workers, and of Redis, for each message emitted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "integration"))

from crowd import Guest
from harness import Server
from measure import cpu_seconds, process_tree
from midway import clients_of
from redis_server import Redis
from report import output

ROUNDS = 27
LATENCIES = 1000
# Bytes that one round of throughput emits, and the most messages.
ROUND_BYTES = 60_000_000
ROUND_MESSAGES = 8000
# How the text of a message begins, up to its number.
_SAID = b'42["said","s",'


class Listener(Guest):
    """A client that looks at no more of a message than its number: where it is slow, others are not measured.

    :ivar delay: how long the last message took that it has heard, in nanoseconds from the app's emit
    """

    delay = 0
    _room = memoryview(bytearray(1 << 20))

    def read(self) -> None:
        """Take what has arrived."""
        size = self.sock.recv_into(self._room)
        now = time.perf_counter_ns()
        data = self._room[:size].tobytes()
        buffer = self._buffer + data if self._buffer else data
        start, size = 0, len(buffer)
        last = self.heard.get("s", -1)
        while size >= start + 2:
            length, body = buffer[start + 1], start + 2
            if length >= 126:
                body += 2 if length == 126 else 8
                length = int.from_bytes(buffer[start + 2 : body], "big")
            if size < body + length:
                break
            if buffer.startswith(_SAID, body):
                told = body + len(_SAID)
                number, emitted = buffer[told : buffer.index(b',"', told)].split(b",")
                assert int(number) == last + 1, f"{self.address} heard {number!r} after {last}"
                last = int(number)
                self.delay = now - int(emitted)
            else:
                self._other(bytes(buffer[body : body + length]))
            start = body + length
        self._buffer = bytearray(buffer[start:])
        self.open = bool(data)
        if last >= 0:
            self.heard["s"] = last

    def _other(self, payload: bytes) -> None:
        if payload == b"2":
            self.send("3")
        elif payload.startswith(b'42["said","warm"'):
            self.heard["warm"] = 0


@contextlib.contextmanager
def servers(workers: int) -> Iterator[dict[str, tuple[Server, list[int]]]]:
    """Ours and one with Redis, each with its processes."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(Redis(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        ours = stack.enter_context(Server("cluster:app", workers=workers))
        theirs = stack.enter_context(Server("cluster:app", workers=workers, env={"MANAGER": redis.url}))
        yield {
            "ClusterManager": (ours, process_tree(ours.pid)),
            "RedisManager": (theirs, [*process_tree(theirs.pid), *process_tree(redis.pid)]),
        }


def hear(listeners: list[Listener], others: list[Listener], number: int) -> None:
    """Wait until clients have heard a number; the others answer the server's pings meanwhile."""
    while not all(guest.heard.get("s", -1) >= number for guest in listeners):
        read([*listeners, *others], 20)


def read(guests: list[Listener], timeout: float) -> None:
    """Wait until some client receives something, and take it."""
    ready, _, _ = select.select([guest.sock for guest in guests], [], [], timeout)
    for guest in guests:
        if guest.sock in ready:
            guest.read()
            assert guest.open


def command(guest: Listener, event: str, *args: Any) -> None:
    """Have its worker do something."""
    words = ",".join(f'"{arg}"' if isinstance(arg, str) else str(arg) for arg in args)
    guest.send(f'42["{event}",{words}]')


def wait_for_link(speaker: Listener, listeners: list[Listener]) -> None:
    """With Redis a worker hears others only some time after its first client has come."""
    while not all("warm" in guest.heard for guest in listeners):
        command(speaker, "say", "warm", 0)
        read([speaker, *listeners], 1)


def measure_latencies(speaker: Listener, listeners: list[Listener], size: int) -> list[float]:
    """From when the speaker's worker emits to when a listener has received it, each in turn, in seconds."""
    wait_for_link(speaker, listeners)
    taken = []
    for number in range(LATENCIES):
        for guest in listeners:
            guest.heard.pop("s", None)
        measured = listeners[number % len(listeners)]
        command(speaker, "flood", "s", 1, size)
        while "s" not in measured.heard:
            measured.read()
            assert measured.open
        taken.append(measured.delay / 1e9)
        hear(listeners, [speaker], 0)
        read([speaker], 0)
    return taken


def measure(server: Server, pids: list[int], workers: int, size: int) -> tuple[list[float], float, float]:
    """One round: latencies in seconds, messages a second, CPU seconds for each message."""
    addresses = [clients_of(slot, 1, workers=workers)[0] for slot in range(workers)]
    guests = [Listener(server.port, address) for address in addresses]
    speaker, listeners = guests[0], guests[1:]
    try:
        taken = measure_latencies(speaker, listeners, size)
        count = min(ROUND_MESSAGES, ROUND_BYTES // size)
        for guest in listeners:
            guest.heard.pop("s", None)
        before = cpu_seconds(pids)
        began = time.perf_counter()
        command(speaker, "flood", "s", count, size)
        hear(listeners, [speaker], count - 1)
        seconds = time.perf_counter() - began
        after = cpu_seconds(pids)
        cpu = sum(after.values()) - sum(before.values())
        return taken, count / seconds, cpu / count
    finally:
        for guest in guests:
            guest.sock.close()


@dataclass
class Figures:
    """What all rounds of one manager have in common."""

    p50: float
    p99: float
    rate: float
    cpu: float

    @classmethod
    def of(cls, rounds: list[tuple[list[float], float, float]]) -> Figures:
        """The median of the rounds, of each figure."""
        latencies = [sorted(taken) for taken, _, _ in rounds]
        return cls(
            statistics.median(taken[len(taken) // 2] for taken in latencies),
            statistics.median(taken[len(taken) * 99 // 100] for taken in latencies),
            statistics.median(rate for _, rate, _ in rounds),
            statistics.median(cpu for _, _, cpu in rounds),
        )


def compare(workers: int, size: int, ours: Figures, redis: Figures) -> str:
    """A row of the table: ours, that of Redis, and the ratio."""
    cells = [
        (ours.p50 * 1e6, redis.p50 * 1e6, ours.p50 / redis.p50),
        (ours.p99 * 1e6, redis.p99 * 1e6, ours.p99 / redis.p99),
        (ours.rate, redis.rate, ours.rate / redis.rate),
        (ours.cpu * 1e6, redis.cpu * 1e6, ours.cpu / redis.cpu),
    ]
    row = [
        f"{workers}",
        f"{size:,}",
        *(f"{first:,.0f} / {second:,.0f} = {ratio:.2f}" for first, second, ratio in cells),
    ]
    return f"| {' | '.join(row)} |"


def render(rows: list[str]) -> str:
    """The whole text."""
    redis = output("redis-check-rdb", "--version").split()[1]
    names = {"python-socketio": "python-socketio", "redis-py": "redis", "gevent": "gevent"}
    packages = ", ".join(f"{name} {importlib.metadata.version(package)}" for name, package in names.items())
    return f"""# Broadcasts

Made by `make bench` (`python benchmarks/bus.py`). {os.cpu_count()} cores, Python {platform.python_version()},
{packages}, Redis {redis} on the same machine.

One app with `sticky_session.ClusterManager` and with python-socketio's `RedisManager`, by turns, each under
`gunicorn -k sticky_session.Worker`. Each cell is ours / RedisManager's = ratio, of the medians of {ROUNDS} rounds.

- Latency: from when a worker's app calls `emit` to when a client of another worker has received it; nothing else goes
  on. The time of the call is in the message, by the clock that all processes have in common.
- Messages: one worker emits as fast as it can, and a client on each of the others receives them all.
- CPU: of all workers, and of Redis, for each message emitted.

| workers | bytes | latency p50, µs | p99, µs | messages/s | CPU, µs per message |
| ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}

Goals: half the latency, three times the messages, less CPU.
"""


def main() -> None:
    """Measure, print, and write BUS.md."""
    parser = argparse.ArgumentParser(description="Broadcast across workers, beside RedisManager.")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 64_000])
    parser.add_argument("--print", action="store_true", help="print the text only")
    given = parser.parse_args()
    rows = []
    for workers in given.workers:
        with servers(workers) as both:
            for size in given.sizes:
                samples: dict[str, list[tuple[list[float], float, float]]] = {name: [] for name in both}
                for number in range(ROUNDS):
                    print(
                        f"{workers} workers, {size} bytes, round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True
                    )
                    for name, (server, pids) in both.items():
                        samples[name].append(measure(server, pids, workers, size))
                figures = [Figures.of(samples[name]) for name in both]
                rows.append(compare(workers, size, *figures))
    text = render(rows)
    print(text)
    if not given.print:
        Path(__file__).with_name("BUS.md").write_text(text)


if __name__ == "__main__":
    main()
