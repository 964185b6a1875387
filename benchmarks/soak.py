"""Broadcasts on one machine while workers are killed: is anything lost, doubled or out of order?

    python benchmarks/soak.py                      60 seconds, 4 workers, 200 clients, a worker killed every 5 seconds
    python benchmarks/soak.py --seconds 600

Clients hold WebSockets from addresses of their own. One of each worker's speaks, as fast as all others hear it. Clients
of a killed worker come back. Every client checks each number that it hears; see tests/integration/crowd.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "integration"))

from crowd import Crowd
from harness import Server, rss
from midway import clients_of


def main() -> None:
    """Run, print, and end with status 1 if something was not as promised."""
    parser = argparse.ArgumentParser(description="Broadcast while workers are killed.")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=5, help="seconds between two kills")
    given = parser.parse_args()
    each = given.clients // given.workers
    began = time.monotonic()
    with Server("cluster:app", workers=given.workers) as server, Crowd(server.port) as crowd:
        groups = [crowd.join(clients_of(slot, each, workers=given.workers)) for slot in range(given.workers)]
        for group in groups:
            crowd.let_speak(group[0])
        survivors = list(groups[0])
        before = rss(server.worker_pids[0])
        kills = 0
        while time.monotonic() - began < given.seconds:
            time.sleep(given.every)
            # The clients of slot 0 live from the beginning to the end.
            victim = 1 + kills % (given.workers - 1)
            mark = server.mark()
            os.kill(server.worker_pids[victim], signal.SIGKILL)
            kills += 1
            crowd.wait_until(
                lambda victim=victim: not any(guest.open for guest in groups[victim]), "the killed worker's clients end"
            )
            server.wait_for_worker(victim, after=mark)
            groups[victim] = crowd.join(guest.address for guest in groups[victim])
            crowd.let_speak(groups[victim][0])
        crowd.settle()
        seconds = time.monotonic() - began
        said = sum(crowd.said.values())
        heard = sum(guest.heard[name] - first + 1 for guest in crowd.guests for name, first in guest.first.items())
        faults = crowd.faults()
        own = next(name for name, speaker in crowd.speakers.items() if speaker is groups[0][0])
        complete = sum(
            guest.open and (guest.first[own], guest.heard[own]) == (0, crowd.said[own] - 1) for guest in survivors
        )
        print(
            f"{given.workers} workers, {each * given.workers} clients, {seconds:.0f} s, {kills} workers killed\n"
            f"{said} messages, {heard} times heard ({heard / seconds:.0f} a second)\n"
            f"{len(faults)} gaps, repetitions or changes of order\n"
            f"{complete} of {len(survivors)} clients that lived throughout heard all {crowd.said[own]} messages of the "
            "speaker that did\n"
            f"memory of the worker that lived: {before / 2**20:.0f} MiB, then {rss(server.worker_pids[0]) / 2**20:.0f}"
        )
        for fault in faults[:10]:
            print(fault)
        if faults or complete != len(survivors):
            sys.exit(1)


if __name__ == "__main__":
    main()
