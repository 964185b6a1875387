"""SIGTTIN and SIGTTOU: the ring grows and shrinks, and only the share of one slot moves."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGKILL, SIGTTIN, SIGTTOU

import pytest

from harness import ROUTERS, Load, Server, addresses, alive, children, get, wait_until
from pending import Gate, client_of, receive, send, stopped, take_turn, wait_for_workers
from sticky_session import Ring
from sticky_session.address import pack

CLIENTS = addresses(150)
LOAD = addresses(40, start=1000)


def expected(clients: list[str], workers: int) -> dict[str, int]:
    """Address -> slot, as the ring says."""
    ring = Ring(workers)
    return {address: ring.slot(pack(address)) for address in clients}


def served(port: int, clients: list[str] = CLIENTS) -> dict[str, tuple[int, int]]:
    """Address -> slot and pid, as clients see it."""
    replies = {address: get(port, "/", address).json() for address in clients}
    return {address: (reply["slot"], reply["pid"]) for address, reply in replies.items()}


def slots(seen: dict[str, tuple[int, int]]) -> dict[str, int]:
    return {address: slot for address, (slot, _) in seen.items()}


@pytest.mark.parametrize("router", ROUTERS)
def test_one_more_and_one_less_under_load(router: str) -> None:
    """TTIN moves about 1/N of the clients, all to the new slot; TTOU moves just them back; no request fails."""
    with Server(workers=4, router=router) as server:
        before = served(server.port)
        assert slots(before) == expected(CLIENTS, 4)
        with Load(server.port, LOAD, threads=2) as load:
            load.wait_for(50)
            mark = server.mark()
            server.signal(SIGTTIN)
            added = server.wait_for_worker(4, after=mark)
            server.wait_for_ring(after=mark)
            grown = served(server.port)
            load.wait_for(50)

            mark = server.mark()
            server.signal(SIGTTOU)
            server.wait_for_ring(after=mark)
            server.wait_for(rf"Worker exiting \(pid: {added}\)", after=mark)
            shrunk = served(server.port)
            load.wait_for(50)

        moved = {address for address in CLIENTS if grown[address] != before[address]}
        assert slots(grown) == expected(CLIENTS, 5)
        assert {grown[address] for address in moved} == {(4, added)}
        assert len(CLIENTS) * 0.1 < len(moved) < len(CLIENTS) * 0.3
        assert shrunk == before
        assert load.failures == []
        assert all(load.slots(address) <= {expected(LOAD, 4)[address], 4} for address in LOAD)


def test_down_to_one_worker_and_no_further() -> None:
    """TTOU works down to one worker, which keeps its process; the next TTOU changes nothing."""
    with Server(workers=3) as server:
        with Load(server.port, LOAD, threads=2) as load:
            load.wait_for(50)
            last = server.worker_pids[0]
            for _ in range(4):
                server.signal(SIGTTOU)
                take_turn(server, server.pid)
            wait_for_workers(server, server.pid, [last])
            load.wait_for(50)
            assert set(served(server.port, LOAD).values()) == {(0, last)}
        assert load.failures == []


def test_more_and_less_in_quick_succession() -> None:
    """Any number of TTIN and TTOU at once ends with the number of workers they add up to; no request fails."""
    with Server(workers=2) as server:
        before = served(server.port)
        with Load(server.port, LOAD, threads=2) as load:
            load.wait_for(50)
            # The kernel keeps one signal of each kind, so the next ones wait until these have been handled.
            for numbers in ((SIGTTIN, SIGTTOU), (SIGTTIN,), (SIGTTIN, SIGTTOU), (SIGTTOU,)):
                mark = server.mark()
                for number in numbers:
                    server.signal(number)
                server.wait_for("Handling signal: tt(in|ou)", after=mark, count=len(numbers))
            take_turn(server, server.pid)
            wait_for_workers(server, server.pid, [server.worker_pids[slot] for slot in (0, 1)])
            load.wait_for(50)
        wait_until(lambda: len(children(server.pid)) == 3, what="two workers and a listener are left")
        assert served(server.port) == before
        assert load.failures == []


def test_ring_grows_only_when_the_new_worker_has_booted(tmp_path: Path) -> None:
    """While a worker that TTIN asked for boots, nobody is moved and nobody waits."""
    gate = Gate(tmp_path)
    with Server("gated:app", workers=2, env=gate.env) as server:
        before = served(server.port)
        gate.close()
        mark = server.mark()
        server.signal(SIGTTIN)
        with Load(server.port, LOAD, threads=2) as load:
            server.wait_for(r"Booting worker", after=mark)
            take_turn(server, server.pid)
            assert served(server.port) == before
            assert not server.find("Listener ready", after=mark)
            gate.open()
            added = server.wait_for_worker(2, after=mark)
            server.wait_for_listener(after=mark)
            grown = served(server.port)
        assert slots(grown) == expected(CLIENTS, 3)
        assert {grown[address] for address in CLIENTS if grown[address] != before[address]} == {(2, added)}
        assert load.failures == []


def test_slot_taken_back_while_its_worker_boots(tmp_path: Path) -> None:
    """A worker that was told to stop while it booted leaves the slot to the one that has come after it."""
    gate = Gate(tmp_path)
    with Server("gated:app", workers=2, env=gate.env) as server:
        gate.hold_next()
        mark = server.mark()
        server.signal(SIGTTIN)
        slow = gate.held()
        server.signal(SIGTTOU)
        take_turn(server, server.pid)
        server.signal(SIGTTIN)
        quick = server.wait_for_worker(2, after=mark)
        assert quick != slow
        gate.release()
        server.wait_for(rf"Worker exiting \(pid: {slow}\)", after=mark)
        wait_until(lambda: not alive(slow), what="the slow worker is gone")
        take_turn(server, server.pid)
        wait_for_workers(server, server.pid, [server.worker_pids[0], server.worker_pids[1], quick])
        assert slots(served(server.port)) == expected(CLIENTS, 3)
        assert {pid for slot, pid in served(server.port).values() if slot == 2} == {quick}


def test_last_slot_leaves_nothing_undone() -> None:
    """TTOU: requests under way in the last slot finish, and what waits in its channel is served.

    By its worker, or, if that has left the slot and not come to it yet, by the one that has the client from now on.
    """
    with Server(workers=3) as server:
        client, leaving = client_of(2, 3), server.worker_pids[2]
        heir = server.worker_pids[expected([client], 2)[client]]
        slow = send(server.port, "/slow?seconds=1", client)
        assert get(server.port, "/", client).json()["pid"] == leaving
        mark = server.mark()
        with stopped(leaving):
            waiting = [send(server.port, "/", client) for _ in range(30)]
            server.signal(SIGTTOU)
            server.wait_for("Handling signal: ttou", after=mark)
        assert {receive(it).json()["pid"] for it in waiting} <= {leaving, heir}
        assert receive(slow).json()["pid"] == leaving
        server.wait_for_listener(after=mark)
        assert get(server.port, "/", client).json()["slot"] == expected([client], 2)[client]


def test_last_slot_dies_with_connections_in_its_channel() -> None:
    """TTOU: what waits in the channel of the last slot, whose worker was killed, is served by the other slots."""
    with Server(workers=3) as server:
        client, leaving = client_of(2, 3), server.worker_pids[2]
        heir = server.worker_pids[expected([client], 2)[client]]
        mark = server.mark()
        with stopped(leaving):
            waiting = [send(server.port, "/", client) for _ in range(8)]
            server.signal(SIGTTOU)
            server.wait_for_listener(after=mark)
            os.kill(leaving, SIGKILL)
        assert [receive(it).json()["pid"] for it in waiting] == [heir] * 8


def test_no_more_workers_than_partitions() -> None:
    """TTIN beyond the number of partitions is refused with one line, and everything goes on."""
    with Server(workers=2, door="serve", args=["--partitions", "2"]) as server:
        server.signal(SIGTTIN)
        server.wait_for("workers=3: expected at most 2 with 2 partitions")
        take_turn(server, server.pid)
        wait_for_workers(server, server.pid, server.worker_pids.values())
        assert len(server.find("expected at most")) == 1
        assert get(server.port).json()["pid"] in server.worker_pids.values()
