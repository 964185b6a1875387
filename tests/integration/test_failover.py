"""What becomes of a slot's clients while its worker hangs, or can't boot: they wait, are refused, or go elsewhere."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from harness import ROUTERS, Load, Server, get, wait_until
from midway import Pending, clients_of, wait_until_handed_off
from pending import stopped
from sticky_session import Ring

WORKERS = 4
SICK = 1
# More than a channel takes: net.core.wmem_default is 212992, and a frame takes some 800 bytes of it.
MANY = 400


def stand_ins(address: str) -> list[int]:
    """The slots that an address goes to while its own is empty, in order."""
    return list(Ring(WORKERS).successors(socket.inet_aton(address)))


def healthy_clients(count: int) -> list[str]:
    """Addresses of all slots but the sick one."""
    return [address for slot in range(WORKERS) if slot != SICK for address in clients_of(slot, count, workers=WORKERS)]


@contextlib.contextmanager
def pending(port: int, clients: list[str], body: bytes = b"") -> Iterator[list[Pending]]:
    """A request of every client, sent whole."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Pending(port, address, body=body)) for address in clients]


@pytest.mark.parametrize("router", ROUTERS)
def test_hanging_worker(router: str) -> None:
    """Its clients wait, then get 503 with Retry-After, whole; others don't notice; --timeout replaces it."""
    args = ("--timeout", "6", "--queue-size", "10", "--failover", "7")
    client = clients_of(SICK, 1, workers=WORKERS)[0]
    others = healthy_clients(6)
    with Server(workers=WORKERS, door="serve", args=args, router=router) as server:
        hanging = server.worker_pids[SICK]
        with Load(server.port, others, threads=2, timeout=5) as load, stopped(hanging):
            with pending(server.port, [client] * MANY) as waiting:
                # Every one of these is answered while the worker still hangs.
                refused = [get(server.port, "/", client, timeout=5) for _ in range(5)]
                assert not server.find("WORKER TIMEOUT")
                assert {answer.status for answer in refused} == {503}
                assert {answer.headers["Retry-After"] for answer in refused} == {"8"}
                assert {answer.headers["Connection"] for answer in refused} == {"close"}
                answers = [one.answer() for one in waiting]
        assert load.failures == []
        statuses = Counter(answer.status for answer in answers)
        assert set(statuses) == {200, 503}
        # The first came first: those in the channel and in the queue were served by the replacement.
        assert [answer.status for answer in answers] == [200] * statuses[200] + [503] * statuses[503]
        served = {answer.json()["pid"] for answer in answers if answer.status == 200}
        assert served == {server.worker_pids[SICK]} - {hanging}
        assert server.find(rf"WORKER TIMEOUT \(pid:{hanging}\)")


@pytest.mark.parametrize("size", [100, 300_000], ids="{} bytes".format)
def test_refused_upload(size: int) -> None:
    """A client that sends a body before it reads gets its 503 too, and no reset."""
    client = clients_of(SICK, 1, workers=2)[0]
    other = clients_of(0, 1, workers=2)[0]
    with Server(workers=2, env={"STICKY_SESSION_QUEUE_SIZE": "0"}) as server:
        with stopped(server.worker_pids[SICK]), pending(server.port, [client] * MANY):
            wait_until_handed_off(server.port, other)
            with pending(server.port, [client] * 20, b"x" * size) as refused:
                assert {one.answer().status for one in refused} == {503}


def hook(place: Path, trouble: str) -> Path:
    """A configuration with which no worker can boot in a slot that there is a file for."""
    config = place / "trouble.py"
    config.write_text(
        "import os, sys, time\n"
        # The app has been imported: once the file is gone it takes no time.
        "def post_worker_init(worker):\n"
        f"    while os.path.exists(os.path.join({os.fspath(place)!r}, f'sick-{{worker.seat.slot}}')):\n"
        f"        {trouble}\n"
    )
    return config


@pytest.mark.parametrize(
    ("trouble", "router"),
    [("sys.exit(1)", "listener"), ("time.sleep(0.05)", "kernel")],
    ids=["exits", "hangs"],
)
def test_slot_that_cannot_boot(trouble: str, router: str, tmp_path: Path) -> None:
    """Its clients, those that waited too, go to the ring's next slot, and come back; nobody else moves."""
    sick = tmp_path / f"sick-{SICK}"
    clients = clients_of(SICK, MANY, workers=WORKERS)
    others = healthy_clients(6)
    args = ("--failover", "1", "-c", os.fspath(hook(tmp_path, trouble)))
    with Server(workers=WORKERS, door="serve", args=args, router=router) as server:
        first = dict(server.worker_pids)
        with Load(server.port, others, threads=2) as load:
            with stopped(first[SICK]), pending(server.port, clients) as waiting:
                wait_until_handed_off(server.port, others[0])
                sick.touch()
                os.kill(first[SICK], SIGKILL)
                answers = {one.address: one.answer() for one in waiting}
            assert {address: answer.json()["slot"] for address, answer in answers.items()} == {
                address: stand_ins(address)[0] for address in clients
            }
            server.wait_for(f"Slot {SICK} is empty for more than 1 s: its clients go to other slots")
            for address in clients[:20]:
                assert get(server.port, "/", address).json()["slot"] == stand_ins(address)[0]
            mark = server.mark()
            sick.unlink()
            replacement = server.wait_for_worker(SICK, after=mark)
            server.wait_for(f"Slot {SICK} is back", after=mark)
            for address in clients[:20]:
                who = get(server.port, "/", address).json()
                assert (who["slot"], who["pid"]) == (SICK, replacement)
        assert load.failures == []
        for address in others:
            assert load.slots(address) <= {get(server.port, "/", address).json()["slot"]}
            assert load.pids(address) <= set(first.values())


def test_two_slots_that_cannot_boot(tmp_path: Path) -> None:
    """With two empty slots a client goes to the first of its stand-ins that has a worker; with none it waits."""
    args = ("--failover", "1", "-c", os.fspath(hook(tmp_path, "time.sleep(0.05)")))
    clients = [address for slot in range(WORKERS) for address in clients_of(slot, 8, workers=WORKERS)]
    homes = {address: Ring(WORKERS).slot(socket.inet_aton(address)) for address in clients}
    with Server(workers=WORKERS, door="serve", args=args) as server:

        def fail(slot: int) -> None:
            mark = server.mark()
            (tmp_path / f"sick-{slot}").touch()
            os.kill(server.worker_pids[slot], SIGKILL)
            server.wait_for(f"Slot {slot} is empty", after=mark)

        def places() -> dict[str, int]:
            return {address: get(server.port, "/", address).json()["slot"] for address in clients}

        empty = set()
        for slot in (SICK, 3):
            fail(slot)
            empty.add(slot)
            assert places() == {
                address: next(slot for slot in [homes[address], *stand_ins(address)] if slot not in empty)
                for address in clients
            }
        fail(0)
        with stopped(server.worker_pids[2]), pending(server.port, clients) as waiting:
            (tmp_path / "sick-2").touch()
            os.kill(server.worker_pids[2], SIGKILL)
            mark = server.mark()
            (tmp_path / "sick-3").unlink()
            server.wait_for("Slot 3 is back", after=mark)
            assert {one.answer().json()["slot"] for one in waiting} == {3}
        for slot in (0, SICK, 2):
            mark = server.mark()
            (tmp_path / f"sick-{slot}").unlink()
            server.wait_for(f"Slot {slot} is back", after=mark)
        assert places() == homes


def test_workers_that_boot_slowly(tmp_path: Path) -> None:
    """While all slots are empty clients wait for their own, however long; the first to be ready gets its own only."""
    for slot in range(WORKERS):
        (tmp_path / f"sick-{slot}").touch()
    args = ("--failover", "3", "-c", os.fspath(hook(tmp_path, "time.sleep(0.05)")))
    with Server(workers=WORKERS, door="serve", args=args, ready=False) as server:
        server.wait_for("Listener ready")
        began = time.monotonic()
        clients = [address for slot in range(WORKERS) for address in clients_of(slot, 8, workers=WORKERS)]
        with pending(server.port, clients) as waiting:
            wait_until(lambda: time.monotonic() - began > 3.2, what="more than the failover time has passed")
            (tmp_path / "sick-0").unlink()
            server.wait_for(r"Worker ready \(slot:0, ")
            for slot in range(1, WORKERS):
                (tmp_path / f"sick-{slot}").unlink()
            for one in waiting:
                assert one.answer().json()["slot"] == Ring(WORKERS).slot(socket.inet_aton(one.address))
        assert not server.find("is empty")
