"""Kept-alive connections of proxies at the limits: full queues, full workers, deadlines, and very many moves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from harness import Server, descriptors, rss, wait_until
from pending import stopped
from upstream import CLIENTS, Upstream, clients_at, digest, holders, home, inode_of, request, strangers, watchers

# More than a channel takes: net.core.wmem_default is 212992, and a frame takes some 800 bytes of it.
MANY = 400
MEGABYTE = 1 << 20
MOVES = 24_000


def test_full_queue() -> None:
    """Where the client's own worker has no place the request gets 503, and the next one is served."""
    here, there = clients_at(0, 2), clients_at(1, 2)
    with Server("homes:app", workers=2, args=("--keep-alive", "60")) as server, ExitStack() as stack:
        upstreams = [stack.enter_context(Upstream(server.port)) for _ in range(5)]
        for upstream in upstreams:
            upstream.ask(here[0])
        with stopped(server.worker_pids[1]):
            # So that each head is there when the listener accepts: then it takes connections in their order, and the
            # rest waits in its own queue.
            with stopped(server.listener_pid):
                waiting = [stack.enter_context(Upstream(server.port)) for _ in range(MANY)]
                for number, one in enumerate(waiting):
                    one.sock.sendall(request(there[number % len(there)], f"/digest?{number}", b"body"))
            with Upstream(server.port) as last:
                last.ask(here[0])
            for upstream in upstreams[:4]:
                for body in (None, b"", b"x", b"x" * 10_000, b"x" * 60_000):
                    pipelined = request(there[0], "/digest", body) + request(here[1], "/digest", b"after")
                    upstream.sock.sendall(pipelined)
                    refused = upstream.answer()
                    assert refused.status == 503
                    assert refused["Retry-After"] == "1"
                    assert not refused.closes
                    answer = upstream.answer()
                    assert answer.json()["slot"] == 0
                    assert answer.json()["digest"] == digest(b"after")
            upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
            refused = upstreams[0].ask(there[0], "/", *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
            assert refused.status == 503
            assert not refused.closes
            assert upstreams[0].ask(here[0]).json()["slot"] == 0
            # So much is not read only to keep a connection.
            upstreams[4].sock.sendall(request(there[0], "/digest", b"x" * 100_000))
            refused = upstreams[4].answer()
            assert refused.status == 503
            assert refused.closes
            assert upstreams[4].ended()
        for number, one in enumerate(waiting):
            who = one.answer().json()
            assert (who["slot"], who["query"], who["digest"]) == (1, str(number), digest(b"body"))
        for upstream in upstreams[:4]:
            for client in (*here[:3], *there[:3]):
                assert upstream.ask(client).json()["slot"] == home(client, 2)


def test_full_worker() -> None:
    """worker_connections: a connection that is sent to a full worker waits until another one has left it."""
    here, there = clients_at(0, 2), clients_at(1, 2)
    args = ("--keep-alive", "60", "--worker-connections", "3")
    with Server(workers=2, args=args) as server, ExitStack() as stack:
        pids = [server.worker_pids[slot] for slot in (0, 1)]
        upstreams = [stack.enter_context(Upstream(server.port)) for _ in range(3)]
        for upstream in upstreams:
            assert upstream.ask(there[0]).json()["slot"] == 1
        with Upstream(server.port) as late:
            assert late.ask(here[0]).json()["slot"] == 0
            inode = inode_of(server.port, late.sock.getsockname())
            late.sock.sendall(request(there[1]))
            wait_until(lambda: holders(inode, pids) == [], what="it is on its way")
            assert upstreams[0].ask(there[0]).json()["slot"] == 1
            # Moving one away makes the place.
            assert upstreams[1].ask(here[0]).json()["slot"] == 0
            assert late.answer().json()["slot"] == 1
            assert holders(inode, pids) == [pids[1]]


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server that soon ends what is idle or slow."""
    environment = {"STICKY_SESSION_HEAD_TIMEOUT": "2"}
    with Server(workers=2, args=("--keep-alive", "2"), env=environment) as server:
        yield server


def test_keep_alive_after_a_move(impatient: Server) -> None:
    """A connection that has moved and then stays idle is closed after the keep-alive time, without a word."""
    with Upstream(impatient.port) as upstream:
        *firsts, last = strangers(6, 2)
        for client in firsts:
            assert upstream.ask(client).json()["slot"] == home(client, 2)
        # Before the response, from which the time runs: when it is read here it may be old.
        began = time.monotonic()
        assert upstream.ask(last).json()["slot"] == home(last, 2)
        assert upstream.ended()
        assert 1.9 < time.monotonic() - began < 10


def test_slow_head_after_a_move(impatient: Server) -> None:
    """Half a head on a connection that has moved gets 408 after the head's time."""
    with Upstream(impatient.port) as upstream:
        for client in strangers(6, 2):
            assert upstream.ask(client).json()["slot"] == home(client, 2)
        began = time.monotonic()
        upstream.sock.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: " + CLIENTS[0].encode())
        assert upstream.answer().status == 408
        assert upstream.ended()
        assert 1.9 < time.monotonic() - began < 8


def test_slow_head_behind_a_request_that_moved(impatient: Server) -> None:
    """The same where the half head was read together with the request before it, by another worker."""
    first, second = strangers(2, 2)
    with Upstream(impatient.port) as upstream:
        assert upstream.ask(first).json()["slot"] == home(first, 2)
        upstream.sock.sendall(request(second) + b"GET / HTTP/1.1\r\nHost: te")
        assert upstream.answer().json()["slot"] == home(second, 2)
        assert upstream.answer().status == 408
        assert upstream.ended()


def test_very_many_moves() -> None:
    """Tens of thousands of moves: no process holds a descriptor more, and none grows."""
    with Server(workers=4, args=("--keep-alive", "60")) as server:
        pids = [server.arbiter_pid, server.listener_pid, *server.worker_pids.values()]
        used = [descriptors(pid) for pid in pids]

        def move(count: int) -> None:
            """Pipelined, so that the client needs little of the time."""
            plan = strangers(count)
            sent = b"".join(map(request, plan))
            with Upstream(server.port) as upstream:
                for start in range(0, len(sent), len(sent) // 50 + 1):
                    upstream.sock.sendall(sent[start : start + len(sent) // 50 + 1])
                for client in plan:
                    assert b'"slot": %d' % home(client) in upstream.answer().body

        with ThreadPoolExecutor(4) as pool:

            def storm(moves: int) -> None:
                for done in [pool.submit(move, 200) for _ in range(moves // 200)]:
                    done.result()

            storm(2000)
            before = [rss(pid) for pid in pids]
            began = time.monotonic()
            storm(MOVES)
            print(f"{MOVES / (time.monotonic() - began):.0f} moves/s")
        wait_until(lambda: [descriptors(pid) for pid in pids] == used, what="as many descriptors as before")
        after = [rss(pid) for pid in pids]
        assert all(new - old < MEGABYTE for old, new in zip(before, after, strict=True)), (before, after)
        assert "Traceback" not in server.log


def test_workers_that_a_connection_has_left() -> None:
    """Their epoll objects do not tell them of it any more."""
    with Server(workers=2, args=("--keep-alive", "60")) as server, Upstream(server.port) as upstream:
        pids = list(server.worker_pids.values())
        for client in strangers(5, 2):
            assert upstream.ask(client).json()["slot"] == home(client, 2)
            inode = inode_of(server.port, upstream.sock.getsockname())
            wait_until(lambda: watchers(inode, pids) == [server.worker_pids[home(client, 2)]])  # noqa: B023


def test_moves_of_many_connections() -> None:
    """Hundreds of connections that all move at the same time; afterwards each is in exactly one process."""
    with Server(workers=4, args=("--keep-alive", "60")) as server, ExitStack() as stack:
        pids = list(server.worker_pids.values())
        upstreams = [stack.enter_context(Upstream(server.port)) for _ in range(200)]
        last = {}
        for turn in range(10):
            for number, upstream in enumerate(upstreams):
                last[upstream] = strangers(40)[(number + turn) % 40]
                upstream.sock.sendall(request(last[upstream]))
            for upstream in upstreams:
                assert upstream.answer().json()["slot"] == home(last[upstream])
        for upstream in upstreams[::10]:
            inode = inode_of(server.port, upstream.sock.getsockname())
            wait_until(lambda: holders(inode, pids) == [server.worker_pids[home(last[upstream])]])  # noqa: B023
