"""Kept-alive connections of proxies while processes come and go: every request is answered, by its client's worker."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR2

import pytest

from harness import Server, alive, descriptors, wait_until
from midway import children_and_zombies
from pending import is_stopped, stopped
from sticky_session import Ring
from upstream import CLIENTS, ProxiedLoad, Upstream, clients_at, home, request

KEEP = ("--keep-alive", "60")
WORKERS = 4


def served(upstream: Upstream, clients: list[str] = CLIENTS) -> dict[str, tuple[int, int]]:
    """Client -> slot and pid, over one connection."""
    replies = {client: upstream.ask(client).json() for client in clients}
    return {client: (reply["slot"], reply["pid"]) for client, reply in replies.items()}


def homes(server: Server, workers: int = WORKERS) -> dict[str, tuple[int, int]]:
    """Client -> slot and pid, as it should be."""
    return {client: (home(client, workers), server.worker_pids[home(client, workers)]) for client in CLIENTS}


def assert_homes(load: ProxiedLoad, *workers: int) -> None:
    """No client was served at a slot that isn't its own under one of these numbers of workers."""
    for client, slot, _ in load.replies:
        assert slot in {home(client, count) for count in workers}, client


def test_more_and_less_workers() -> None:
    """TTIN and TTOU: connections from before find their way to a slot that their workers have no channel of."""
    with Server(workers=WORKERS, args=KEEP) as server, Upstream(server.port) as upstream:
        assert served(upstream) == homes(server)
        with ProxiedLoad(server.port) as load:
            for _ in range(2):
                mark = server.mark()
                server.signal(SIGTTIN)
                added = server.wait_for_worker(4, after=mark)
                server.wait_for_listener(after=mark)
                assert served(upstream) == homes(server, 5)
                load.wait_for(200)
                mark = server.mark()
                server.signal(SIGTTOU)
                server.wait_for_listener(after=mark)
                server.wait_for(rf"Worker exiting \(pid: {added}\)", after=mark)
                assert served(upstream) == homes(server)
                load.wait_for(200)
        assert load.failures == []
        assert_homes(load, 4, 5)
        assert load.resent <= 2 * 4
        print(f"resent {load.resent} of {load.replies.total()}")


def test_way_to_a_new_slot_while_there_is_no_listener() -> None:
    """What goes by the listener waits for the next one."""
    with Server(workers=2, args=KEEP) as server, ExitStack() as stack:
        clients = [client for client in CLIENTS if home(client, 3) == 2]
        upstreams = [stack.enter_context(Upstream(server.port)) for _ in clients]
        for upstream in upstreams:
            upstream.ask(CLIENTS[0])
        mark = server.mark()
        server.signal(SIGTTIN)
        added = server.wait_for_worker(2, after=mark)
        listener = server.wait_for_listener(after=mark)
        os.kill(listener, SIGSTOP)
        wait_until(lambda: is_stopped(listener))
        for upstream, client in zip(upstreams, clients, strict=True):
            upstream.sock.sendall(request(client))
        os.kill(listener, SIGKILL)
        for upstream in upstreams:
            assert upstream.answer().json()["pid"] == added


def test_shutdown_with_a_new_slot() -> None:
    """TERM: what would have gone to a slot that the worker has no channel of is answered all the same."""
    with Server(workers=WORKERS, args=KEEP) as server, ExitStack() as stack:
        mark = server.mark()
        server.signal(SIGTTIN)
        new = server.wait_for_worker(WORKERS, after=mark)
        server.wait_for_listener(after=mark)
        elsewhere = next(client for client in CLIENTS if home(client, 5) == 0)
        client = next(client for client in CLIENTS if home(client, 5) == WORKERS)
        upstreams = [stack.enter_context(Upstream(server.port)) for _ in range(10)]
        for upstream in upstreams:
            assert upstream.ask(elsewhere).json()["slot"] == 0
        listener = server.listener_pid
        # It goes on holding its slot.
        with stopped(new):
            server.signal(SIGTERM)
            wait_until(lambda: not alive(listener), what="the listener has ended")
            for upstream in upstreams:
                assert upstream.ask(client).json()["slot"] == 0


def test_shutdown_under_load_with_a_new_slot() -> None:
    """TERM: what is on its way to a slot that is newer than the worker is answered, too."""
    with Server(workers=2, args=KEEP) as server:
        mark = server.mark()
        server.signal(SIGTTIN)
        server.wait_for_worker(2, after=mark)
        server.wait_for_listener(after=mark)
        with ProxiedLoad(server.port, threads=8) as load:
            load.wait_for(300)
            server.signal(SIGTERM)
            assert server.wait() == 0
        assert all("ConnectionRefusedError" in failure for failure in load.failures), load.failures
        # Who is about to end says so with an answer; only a moment is left in which that can't be known.
        assert load.resent <= 2


def test_new_slot_while_another_arbiter_accepts() -> None:
    """After USR2 the old arbiter's connections still find the way to a slot that their worker has no channel of."""
    with Server(workers=1, args=KEEP) as server, Upstream(server.port) as upstream:
        mark = server.mark()
        server.signal(SIGTTIN)
        server.wait_for_worker(1, after=mark)
        server.wait_for_listener(after=mark)
        clients = [next(client for client in CLIENTS if home(client, 2) == slot) for slot in (0, 1)]
        workers = served(upstream, clients)
        mark = server.mark()
        server.signal(SIGUSR2)
        server.wait_for_listener(after=mark)
        try:
            assert served(upstream, clients) == workers
        finally:
            mark = server.mark()
            os.kill(server.arbiter_pid, SIGTERM)
            server.wait_for_listener(after=mark)


def test_reload() -> None:
    """SIGHUP: every request is answered, by its slot's worker of the old or the new generation."""
    with Server(workers=WORKERS, args=KEEP) as server:
        former = descriptors(server.arbiter_pid)
        with ProxiedLoad(server.port) as load:
            for _ in range(3):
                load.wait_for(200)
                old = set(server.worker_pids.values())
                mark = server.mark()
                server.signal(SIGHUP)
                for slot in range(WORKERS):
                    server.wait_for_worker(slot, after=mark)
                for pid in old:
                    server.wait_for(rf"Worker exiting \(pid: {pid}\)", after=mark)
            load.wait_for(200)
        assert load.failures == []
        assert_homes(load, 4)
        print(f"resent {load.resent} of {load.replies.total()}")
        with Upstream(server.port) as upstream:
            assert served(upstream) == homes(server)
        wait_until(lambda: descriptors(server.arbiter_pid) == former, what="the old generations are closed")


def test_killed_worker() -> None:
    """SIGKILL: what was in that worker's hands is lost; requests of its clients wait for the next one."""
    with Server(workers=WORKERS, args=KEEP) as server, Upstream(server.port) as upstream:
        with ProxiedLoad(server.port) as load:
            for slot in (0, 1, 2, 3):
                load.wait_for(200)
                others = [client for client in CLIENTS if home(client) != slot]
                served(upstream, others)
                mark = server.mark()
                os.kill(server.worker_pids[slot], SIGKILL)
                # At once, and not over a connection that the dead one has: it waits for the replacement.
                who = [upstream.ask(client).json() for client in clients_at(slot)]
                replacement = server.wait_for_worker(slot, after=mark)
                assert {(reply["slot"], reply["pid"]) for reply in who} == {(slot, replacement)}
            load.wait_for(200)
        assert load.failures == []
        assert_homes(load, 4)
        # One at most on each connection.
        assert load.resent <= 4 * 4
        print(f"resent {load.resent} of {load.replies.total()}")


def test_request_in_the_channel_of_a_killed_worker() -> None:
    """A connection that was sent to a worker that never took it is served by its replacement, body and all."""
    with Server("homes:app", workers=2, args=KEEP) as server, ExitStack() as stack:
        here, there = clients_at(0, 2), clients_at(1, 2)
        upstreams = [stack.enter_context(Upstream(server.port)) for _ in there]
        for upstream in upstreams:
            assert upstream.ask(here[0]).json()["slot"] == 0
        victim, first = server.worker_pids[1], server.worker_pids[0]
        mark = server.mark()
        with stopped(victim):
            count = descriptors(first)
            for client, upstream in zip(there, upstreams, strict=True):
                upstream.sock.sendall(request(client, "/digest?a", b"body") + request(here[1], "/digest?b"))
            wait_until(lambda: descriptors(first) == count - len(upstreams), what="the first worker has sent them")
            os.kill(victim, SIGKILL)
        replacement = server.wait_for_worker(1, after=mark)
        for upstream in upstreams:
            assert upstream.answer().json()["pid"] == replacement
            assert upstream.answer().json()["pid"] == first


def test_killed_listener() -> None:
    """SIGKILL of the listener: kept-alive connections don't need it."""
    with Server(workers=WORKERS, args=KEEP) as server, Upstream(server.port) as upstream:
        # A connection that has not said whose it is is in the listener's hands.
        upstream.ask(CLIENTS[0])
        with ProxiedLoad(server.port) as load:
            load.wait_for(100)
            for _ in range(2):
                mark = server.mark()
                os.kill(server.listener_pid, SIGKILL)
                assert served(upstream) == homes(server)
                load.wait_for(200)
                server.wait_for_listener(after=mark)
        assert load.failures == []
        assert load.resent == 0
        assert_homes(load, 4)


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    """A configuration with which no worker can boot in slot 1 while there is a file called sick beside it."""
    config = tmp_path / "trouble.py"
    config.write_text(
        "import os, sys\n"
        "def post_fork(server, worker):\n"
        f"    if worker.seat.slot == 1 and os.path.exists({os.fspath(tmp_path / 'sick')!r}):\n"
        "        sys.exit(1)\n"
    )
    return config


def test_slot_that_cannot_boot(trouble: Path) -> None:
    """Its clients' requests wait at first, then go to the ring's next slot, and come back."""
    sick = trouble.parent / "sick"
    args = ("--failover", "1", "-c", os.fspath(trouble), *KEEP)
    lost = clients_at(1)
    stand_ins = {client: next(Ring(WORKERS).successors(socket.inet_aton(client))) for client in lost}
    with Server(workers=WORKERS, door="serve", args=args) as server, Upstream(server.port) as upstream:
        others = {client: place for client, place in homes(server).items() if client not in lost}
        with ProxiedLoad(server.port) as load:
            load.wait_for(100)
            assert served(upstream, list(others)) == others
            sick.touch()
            os.kill(server.worker_pids[1], SIGKILL)
            # It waits in the channel until the listener gives it to another slot.
            waited = upstream.ask(lost[0]).json()
            assert waited["slot"] == stand_ins[lost[0]]
            server.wait_for("Slot 1 is empty for more than 1 s")
            assert {client: slot for client, (slot, _) in served(upstream, lost).items()} == stand_ins
            assert served(upstream, list(others)) == others
            mark = server.mark()
            sick.unlink()
            server.wait_for("Slot 1 is back", after=mark)
            assert served(upstream) == homes(server)
        assert load.failures == []
        assert load.resent <= 4
        for client, slot, _ in load.replies:
            assert slot in (home(client), stand_ins.get(client)), client


@pytest.mark.parametrize("round_", range(3))
def test_shutdown(round_: int) -> None:
    """TERM: whatever has been sent is answered, the last requests by whoever is left."""
    with Server(workers=WORKERS, args=KEEP) as server:
        with ProxiedLoad(server.port, threads=6) as load:
            load.wait_for(100 + 10 * round_)
            server.signal(SIGTERM)
            assert server.wait() == 0
        # A thread that has to connect again is refused: nobody listens any more.
        print(load.failures, f"resent {load.resent} of {load.replies.total()}")
        assert all("ConnectionRefusedError" in failure for failure in load.failures), load.failures


def test_max_requests() -> None:
    """Workers that retire all the time: every request is answered."""
    with Server(workers=WORKERS, args=("--max-requests", "60", *KEEP)) as server:
        with ProxiedLoad(server.port) as load:
            server.wait_for("Autorestarting worker", count=20, timeout=40)
        assert load.failures == []
        print(f"resent {load.resent} of {load.replies.total()}")
        wait_until(lambda: children_and_zombies(server.arbiter_pid) == 5, what="four workers and the listener")
        strays = sum(count for (client, slot, _), count in load.replies.items() if slot != home(client))
        print(f"strays {strays}")
        assert_homes(load, 4)


def test_request_that_waits_for_the_next_generation() -> None:
    """SIGHUP: what is sent to an old worker that has left goes to the new one, while the old one is still busy."""
    here, there = clients_at(0, 2), clients_at(1, 2)
    with Server("homes:app", workers=2, args=KEEP) as server, ExitStack() as stack:
        upstream, slow, idle = (stack.enter_context(Upstream(server.port)) for _ in range(3))
        upstream.ask(here[0])
        first, second = server.worker_pids[0], server.worker_pids[1]
        # Under way until the client sends the rest of it.
        under_way = request(there[0], "/digest", b"body")
        slow.sock.sendall(under_way[:-1])
        # Behind the slow one.
        idle.ask(there[0])
        mark = server.mark()
        with stopped(first):
            upstream.sock.sendall(request(there[1]) + request(here[1]))
            server.signal(SIGHUP)
            # The old worker of that slot has left, and finishes what it has.
            assert idle.ended()
        who = upstream.answer().json()
        assert who["slot"] == 1
        assert who["pid"] == server.wait_for_worker(1, after=mark)
        assert upstream.answer().json()["pid"] == server.wait_for_worker(0, after=mark)
        assert alive(second)
        slow.sock.sendall(under_way[-1:])
        answer = slow.answer()
        assert answer.json()["pid"] == second
        assert answer.closes


def test_way_to_a_new_slot_after_a_reload() -> None:
    """What goes by a listener that has been replaced finds its way to the new generation."""
    with Server(workers=2, args=KEEP) as server, Upstream(server.port) as upstream:
        client = next(client for client in CLIENTS if home(client, 3) == 2)
        upstream.ask(clients_at(0, 2)[0])
        old = server.worker_pids[0]
        mark = server.mark()
        server.signal(SIGTTIN)
        server.wait_for_worker(2, after=mark)
        server.wait_for_listener(after=mark)
        upstream.ask(next(client for client in CLIENTS if home(client, 3) == 0))
        with stopped(old):
            upstream.sock.sendall(request(client))
            mark = server.mark()
            server.signal(SIGHUP)
            # gunicorn forgets at a reload how many workers were asked for.
            for slot in (0, 1):
                server.wait_for_worker(slot, after=mark)
            server.wait_for_listener(after=mark)
            server.wait_for("Worker exiting", count=2, after=mark)
        who = upstream.answer().json()
        assert (who["slot"], who["pid"]) == (home(client, 2), server.worker_pids[home(client, 2)])


def test_stray_in_the_channel_of_a_failed_slot(trouble: Path) -> None:
    """A connection that comes to a slot's channel after others have begun to stand in for it is not forgotten."""
    with open(trouble, "a") as config:
        config.write(
            "    if worker.seat.slot == 0:\n"
            "        from sticky_session import rehoming\n"
            "        target = rehoming.Homes.target\n"
            "        def late(homes, head, peer):\n"
            "            return 1 if head.target == '/?late' else target(homes, head, peer)\n"
            "        rehoming.Homes.target = late\n"
        )
    args = ("--failover", "1", "-c", os.fspath(trouble), *KEEP)
    lost = clients_at(1)
    with Server(workers=WORKERS, door="serve", args=args) as server, Upstream(server.port) as upstream:
        upstream.ask(clients_at(0)[0])
        (trouble.parent / "sick").touch()
        os.kill(server.worker_pids[1], SIGKILL)
        server.wait_for("Slot 1 is empty for more than 1 s")
        late = next(client for client in lost if next(Ring(WORKERS).successors(socket.inet_aton(client))) != 0)
        answer = upstream.ask(late, "/?late")
        assert answer.json()["slot"] == next(Ring(WORKERS).successors(socket.inet_aton(late)))
