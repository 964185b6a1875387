"""The speed of broadcasts across workers, beside python-socketio's RedisManager in the same run.

    python benchmarks/bus.py            two workers, 1 KB and 64 KB
    python benchmarks/bus.py --workers 8

Latency: one client has its worker emit, a client of another worker receives it; nothing else goes on. Throughput: one
worker emits as fast as it can be heard, and all others' clients receive. CPU time is that of all workers, and of Redis,
for each message emitted.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "integration"))

from measure import cpu_seconds, process_tree

from crowd import Guest
from harness import Server
from midway import clients_of
from redis_server import Redis

ROUNDS = 5
LATENCIES = 300
# Bytes that one round of throughput emits, and the most messages.
ROUND_BYTES = 60_000_000
ROUND_MESSAGES = 8000


@contextlib.contextmanager
def servers(workers: int) -> Iterator[dict[str, tuple[Server, list[int]]]]:
    """Ours and one with Redis, each with its processes."""
    with tempfile.TemporaryDirectory() as folder, Redis(Path(folder)) as redis:
        with Server("cluster:app", workers=workers) as ours:
            with Server("cluster:app", workers=workers, env={"MANAGER": redis.url}) as theirs:
                yield {
                    "ClusterManager": (ours, process_tree(ours.pid)),
                    "RedisManager": (theirs, [*process_tree(theirs.pid), *process_tree(redis.pid)]),
                }


def hear(listeners: list[Guest], others: list[Guest], number: int) -> None:
    """Wait until clients have heard a number; the others answer the server's pings meanwhile."""
    while not all(guest.heard.get("s", -1) >= number for guest in listeners):
        read([*listeners, *others], 20)


def read(guests: list[Guest], timeout: float) -> None:
    """Wait until some client receives something, and take it."""
    ready, _, _ = select.select([guest.sock for guest in guests], [], [], timeout)
    for guest in guests:
        if guest.sock in ready:
            guest.read()
            assert guest.open


def command(guest: Guest, event: str, *args: Any) -> None:
    """Have its worker do something."""
    words = ",".join(f'"{arg}"' if isinstance(arg, str) else str(arg) for arg in args)
    guest.send(f'42["{event}",{words}]')


def wait_for_link(speaker: Guest, listeners: list[Guest]) -> None:
    """With Redis a worker hears others only some time after its first client has come."""
    while not all("warm" in guest.heard for guest in listeners):
        command(speaker, "say", "warm", 0)
        read([speaker, *listeners], 1)


def measure(server: Server, pids: list[int], workers: int, size: int) -> tuple[list[float], float, float]:
    """One round: latencies in seconds, messages a second, CPU seconds for each message."""
    addresses = [clients_of(slot, 1, workers=workers)[0] for slot in range(workers)]
    guests = [Guest(server.port, address) for address in addresses]
    speaker, listeners = guests[0], guests[1:]
    try:
        wait_for_link(speaker, listeners)
        taken = []
        for _ in range(LATENCIES):
            for guest in listeners:
                guest.heard.pop("s", None)
            began = time.perf_counter()
            command(speaker, "flood", "s", 1, size)
            hear(listeners[:1], [speaker], 0)
            taken.append(time.perf_counter() - began)
            hear(listeners, [speaker], 0)
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Broadcast across workers.")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 64_000])
    given = parser.parse_args()
    print("workers  bytes  manager         p50 µs   p99 µs   messages/s   CPU µs each")
    for workers in given.workers:
        with servers(workers) as both:
            for size in given.sizes:
                samples: dict[str, list[tuple[list[float], float, float]]] = {name: [] for name in both}
                for _ in range(ROUNDS):
                    for name, (server, pids) in both.items():
                        samples[name].append(measure(server, pids, workers, size))
                for name, rounds in samples.items():
                    latencies = sorted(taken for sample in rounds for taken in sample[0])
                    print(
                        f"{workers:7}  {size:5}  {name:14} {latencies[len(latencies) // 2] * 1e6:7.0f}  "
                        f"{latencies[len(latencies) * 99 // 100] * 1e6:7.0f}  "
                        f"{statistics.median(sample[1] for sample in rounds):11.0f}  "
                        f"{statistics.median(sample[2] for sample in rounds) * 1e6:11.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
