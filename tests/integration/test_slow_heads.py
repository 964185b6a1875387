"""Heads of trusted proxies' requests that come in pieces, late, too large, or never; direct clients don't notice."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import statistics
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGTTIN

import pytest

from harness import HOST, Server, addresses, connect, descriptors, get, rss, wait_until
from pending import stopped
from proxying import CLIENTS, elsewhere, home, over, proxied
from sticky_session.identify import MAX_HEAD_BYTES
from wire import Wire

WORKERS = 4
MEGABYTE = 1 << 20
RESET = struct.pack("ii", 1, 0)
# What the listener takes for itself.
NO_TRACEBACK = "Traceback|The listener failed|was lost"
CLIENT = elsewhere(HOST, WORKERS)
BODY = b"GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"
HEAD = (
    f"\r\nPOST /?X-Forwarded-For:203.0.113.7 HTTP/1.1\r\nHost: a\r\ncookie: X-Forwarded-For: 203.0.113.7\r\n"
    f"x-forwarded-for: {CLIENT},\r\nContent-Length: {len(BODY)}\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
).encode()
NEXT = f"GET /echo HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {CLIENT}\r\nContent-Length: 4\r\n\r\nnext".encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Four workers, with time."""
    with Server(workers=WORKERS, env={"STICKY_SESSION_HEAD_TIMEOUT": "600"}) as server:
        yield server


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """One worker that lets clients take half a second for a head."""
    with Server(workers=1, door="serve", args=["--head-timeout", "0.5"]) as server:
        yield server


@pytest.fixture(autouse=True)
def _unharmed(server: Server, impatient: Server) -> Iterator[None]:
    """Whatever proxies send: the same listeners go on, have given back what they had, and log no traceback."""
    both = (server, impatient)
    before = [(one.listener_pid, descriptors(one.listener_pid), rss(one.listener_pid), one.mark()) for one in both]
    yield
    for one, (listener, used, size, mark) in zip(both, before, strict=True):
        wait_until(lambda pid=listener, used=used: descriptors(pid) <= used, what="the listener has closed everything")
        assert rss(listener) < size + 20 * MEGABYTE
        assert not one.find(NO_TRACEBACK, after=mark)
        assert one.listener_pid == listener


@contextlib.contextmanager
def waiting(server: Server, *firsts: bytes) -> Iterator[list[Wire]]:
    """Connections of a proxy that have sent something and that the listener waits for."""
    before = descriptors(server.listener_pid)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(proxied(server.port)) for _ in firsts]
        for wire, first in zip(wires, firsts, strict=True):
            wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.sock.sendall(first)
        wait_until(lambda: descriptors(server.listener_pid) == before + len(firsts), what="the listener waits for all")
        yield wires


# --- pieces


def test_every_position(server: Server) -> None:
    """A head cut at any position arrives at its client's worker whole, and so do its body and the next request."""
    sent = HEAD + BODY + NEXT
    # Only to be served without it: the worker would pass on what came to the wrong place.
    with stopped(server.worker_pids[home(HOST, WORKERS)]):
        with waiting(server, *(sent[:cut] for cut in range(len(HEAD)))) as wires:
            for cut, wire in enumerate(wires):
                wire.sock.sendall(sent[cut:])
            for wire in wires:
                assert wire.answer().json()["slot"] == home(CLIENT, WORKERS)
                assert wire.answer().body == b"next"


def test_byte_by_byte(server: Server) -> None:
    """A head that comes byte by byte, and one that comes at once with all that follows it."""
    sent = HEAD + BODY + NEXT
    with stopped(server.worker_pids[home(HOST, WORKERS)]), proxied(server.port) as slow, proxied(server.port) as fast:
        slow.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in sent:
            slow.sock.sendall(bytes((byte,)))
        fast.sock.sendall(sent)
        for wire in (slow, fast):
            assert wire.answer().json()["slot"] == home(CLIENT, WORKERS)
            assert wire.answer().body == b"next"


def test_upload(server: Server) -> None:
    """Of a body that is sent with the head nothing is lost, however large it is."""
    body = os.urandom(3_000_000)
    with proxied(server.port) as wire:
        assert wire.post("/echo", body, f"X-Forwarded-For: {CLIENT}").body == body
        assert wire.post("/echo", body, f"X-Forwarded-For: {CLIENT}").body == body


def test_pipelined_requests_of_several_clients(server: Server) -> None:
    """Requests of changing clients that come all at once are answered in order, each by its client's worker."""
    size = 200
    padding = "x" * 3000
    sent = [
        f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {CLIENTS[n % 7]}\r\nX: {padding}\r\n\r\n" for n in range(size)
    ]
    with proxied(server.port) as wire:
        wire.sock.sendall("".join(sent).encode())
        for number in range(size):
            assert wire.answer().json()["slot"] == home(CLIENTS[number % 7], WORKERS)


# --- heads that are refused


def accepted_later(server: Server) -> contextlib.AbstractContextManager[None]:
    """What is sent within the block has arrived when the time that the server gives it begins."""
    return stopped(server.listener_pid)


def test_late(impatient: Server) -> None:
    """A head that isn't whole in time is answered with 408, also while it grows; a silent connection is closed."""
    with contextlib.ExitStack() as stack:
        with accepted_later(impatient):
            late = [stack.enter_context(proxied(impatient.port)) for _ in range(20)]
            silent = stack.enter_context(proxied(impatient.port))
            for cut, wire in enumerate(late, 1):
                wire.sock.sendall(HEAD[: 5 * cut])
        for wire in late:
            # This far it is nobody's fault, and the answer must not be lost.
            wire.sock.sendall(b"x")
            answer = wire.answer()
            assert (answer.status, answer.closes, answer.whole) == (408, True, True)
            assert wire.ended()
        assert silent.ended()
        assert get(impatient.port).status == 200


def test_late_crowd(impatient: Server) -> None:
    """However many are late at once, all get their answer."""
    with contextlib.ExitStack() as stack:
        with accepted_later(impatient):
            late = [stack.enter_context(proxied(impatient.port)) for _ in range(600)]
            for wire in late:
                wire.sock.sendall(b"GET / HTTP/1.1\r\n")
        assert Counter(wire.answer().status for wire in late) == {408: 600}


def head_of(size: int) -> bytes:
    """A head of so many bytes, within gunicorn's limits."""
    head = f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {CLIENT}\r\n".encode()
    while len(head) < size - 4000:
        head += b"X: " + b"x" * 2000 + b"\r\n"
    return head + b"Y: " + b"y" * (size - len(head) - 7) + b"\r\n\r\n"


@pytest.mark.parametrize("piece", [10 * MEGABYTE, 500])
def test_large(server: Server, piece: int) -> None:
    """A head of 48 KiB is served, and one byte more is 431, which reaches the client though it goes on sending."""
    for size, status in [(MAX_HEAD_BYTES, 200), (MAX_HEAD_BYTES + 1, 431), (1_000_000, 431)]:
        sent = head_of(size)
        assert len(sent) == size
        with proxied(server.port) as wire:
            wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, size, piece):
                wire.sock.sendall(sent[start : start + piece])
            answer = wire.answer()
            assert answer.status == status
            if status == 200:
                assert answer.json()["slot"] == home(CLIENT, WORKERS)
            else:
                assert answer.closes
                assert wire.ended()


def test_too_many(tmp_path: Path) -> None:
    """Only so many heads are waited for; one more is 503. Whole heads and direct clients are served meanwhile."""
    config = tmp_path / "conf.py"
    config.write_text("import sticky_session.listener\nsticky_session.listener.MAX_ARRIVALS = 3\n")
    with Server(workers=2, args=["-c", str(config)], env={"STICKY_SESSION_FAILOVER": "5"}) as server:
        before = descriptors(server.listener_pid)
        with waiting(server, b"", b"G", HEAD[:50]) as wires:
            with proxied(server.port) as refused:
                refused.sock.sendall(b"GET / HTTP/1.1\r\n")
                answer = refused.answer()
                assert (answer.status, answer["Retry-After"]) == (503, "6")
                assert refused.ended()
            with contextlib.ExitStack() as stack:
                with stopped(server.listener_pid):
                    whole = stack.enter_context(proxied(server.port))
                    whole.sock.sendall(HEAD + BODY)
                assert whole.answer().status == 200
            assert get(server.port).status == 200
            wait_until(lambda: descriptors(server.listener_pid) == before + 3, what="only the first three are left")
            wires[0].close()
            wait_until(lambda: descriptors(server.listener_pid) == before + 2, what="there is room for one")
            with proxied(server.port) as other:
                other.sock.sendall(HEAD[:20])
                wires[2].sock.sendall(HEAD[50:] + BODY)
                assert wires[2].answer().status == 200
                other.sock.sendall(HEAD[20:] + BODY)
                assert other.answer().status == 200
        assert not server.find(NO_TRACEBACK)


def test_few_descriptors() -> None:
    """Slow heads never take the descriptors that direct clients need."""
    with Server(workers=2, prefix=("prlimit", "--nofile=800")) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(proxied(server.port)) for _ in range(900)]
        for wire in slow:
            wire.sock.sendall(b"GET / HTTP/1.1\r\n")
        for address in addresses(50):
            assert get(server.port, address=address).status == 200
        assert not server.find("Can't accept")


# --- clients that go


@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_gone_in_the_middle(server: Server, how: str) -> None:
    """A client that closes or resets in the middle of its head leaves nothing behind."""
    before = descriptors(server.listener_pid)
    with waiting(server, *(HEAD[: number % len(HEAD)] for number in range(200))) as wires:
        for wire in wires:
            if how == "reset":
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if how == "half":
                wire.sock.shutdown(socket.SHUT_WR)
            else:
                wire.close()
        wait_until(lambda: descriptors(server.listener_pid) <= before, what="the listener has closed them")
        if how == "half":
            for wire in wires:
                with contextlib.suppress(ConnectionResetError):
                    assert wire.ended()


def test_half_closed_after_the_head(server: Server) -> None:
    """A client that has closed its half after its request is answered."""
    with waiting(server, HEAD[:70]) as (wire,):
        wire.sock.sendall(HEAD[70:] + BODY)
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.answer().json()["slot"] == home(CLIENT, WORKERS)
        assert wire.ended()


# --- many


def test_five_thousand_slow_heads(server: Server) -> None:
    """While 5,000 heads trickle in, direct clients are served at once (figures are printed) by their own workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(5000, hard - 500)
    clients = addresses(200)
    listener = server.listener_pid
    before, size = descriptors(listener), rss(listener)

    def milliseconds() -> list[float]:
        taken = []
        for address in clients:
            began = time.perf_counter()
            who = get(server.port, "/", address).json()
            taken.append((time.perf_counter() - began) * 1000)
            assert who["slot"] == home(address, WORKERS)
        return sorted(taken)

    with contextlib.ExitStack() as stack:
        alone = milliseconds()
        slow = [stack.enter_context(connect(server.port, HOST)) for _ in range(count)]
        for sock in slow:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(HEAD[:10])
        wait_until(lambda: descriptors(listener) == before + count, 30, "all are waited for")
        beside = milliseconds()
        bursts = []
        for turn in range(5):
            with stopped(listener):
                for sock in slow:
                    sock.sendall(HEAD[10 + turn : 11 + turn])
                direct = stack.enter_context(over(connect(server.port, clients[turn])))
                direct.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            began = time.perf_counter()
            assert direct.answer().json()["slot"] == home(clients[turn], WORKERS)
            bursts.append((time.perf_counter() - began) * 1000)
        # All of them still wait: nobody's request was served at another's cost.
        wait_until(lambda: descriptors(listener) == before + count, what="the direct clients are handed off")
        assert rss(listener) - size < 40 * MEGABYTE
        for name, taken in [("alone", alone), (f"beside {count}", beside), (f"behind {count} bytes", sorted(bursts))]:
            print(
                f"direct clients {name}: median {statistics.median(taken):.2f} ms, longest {taken[-1]:.2f} ms",
                file=sys.stderr,
            )
        for sock in slow[:20]:
            sock.sendall(HEAD[15:] + BODY)
            assert over(sock).answer().json()["slot"] == home(CLIENT, WORKERS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- signals


def test_term() -> None:
    """TERM while heads are half there: they are served to their end, and the server ends in order."""
    with Server(workers=2) as server:
        with waiting(server, *(HEAD[:cut] for cut in range(1, 60, 4))) as wires:
            listener = server.listener_pid
            server.signal(SIGTERM)
            wait_until(lambda: not os.path.exists(f"/proc/{listener}/fd/0"), what="the listener has ended")
            for cut, wire in zip(range(1, 60, 4), wires, strict=True):
                wire.sock.sendall(HEAD[cut:] + BODY)
                assert wire.answer().status == 200
        assert server.wait() == 0
        assert not server.find(NO_TRACEBACK)


def test_hup() -> None:
    """HUP while heads are half there: they are served to their end."""
    with Server(workers=2) as server:
        mark = server.mark()
        with waiting(server, *(HEAD[:cut] for cut in range(1, 60, 4))) as wires:
            server.signal(SIGHUP)
            server.wait_for_listener(after=mark)
            for cut, wire in zip(range(1, 60, 4), wires, strict=True):
                wire.sock.sendall(HEAD[cut:] + BODY)
                assert wire.answer().status == 200
        assert get(server.port, headers={"X-Forwarded-For": CLIENT}, address=HOST).json()["slot"] == home(CLIENT, 2)
        assert not server.find(NO_TRACEBACK)


def test_many_at_a_change_of_listeners() -> None:
    """TTIN while more heads are half there than a worker takes connections: it serves others, and them to their end."""
    with Server(workers=2, args=["--worker-connections", "300"]) as server, contextlib.ExitStack() as stack:
        before = descriptors(server.listener_pid)
        slow = [stack.enter_context(proxied(server.port)) for _ in range(600)]
        for wire in slow:
            wire.sock.sendall(HEAD[:10])
        wait_until(lambda: descriptors(server.listener_pid) == before + len(slow), what="all are waited for")
        mark = server.mark()
        server.signal(SIGTTIN)
        server.wait_for_worker(2, after=mark)
        server.wait_for_listener(after=mark)
        neighbours = [address for address in addresses(50) if home(address, 2) == home(address, 3) == home(HOST, 2)]
        assert neighbours
        for address in neighbours:
            assert get(server.port, address=address, timeout=5).json()["slot"] == home(HOST, 2)
        for wire in slow:
            wire.sock.sendall(HEAD[10:] + BODY)
            assert wire.answer().json()["slot"] == home(CLIENT, 3)
            wire.close()
        assert not server.find(NO_TRACEBACK)


def test_kill() -> None:
    """KILL of the listener while heads are half there: these connections end, and nothing else changes."""
    with Server(workers=2) as server:
        arbiter, workers = descriptors(server.arbiter_pid), dict(server.worker_pids)
        mark = server.mark()
        with waiting(server, *(HEAD[:cut] for cut in range(60))) as wires:
            os.kill(server.listener_pid, SIGKILL)
            for wire in wires:
                with contextlib.suppress(ConnectionResetError):
                    assert wire.ended()
            server.wait_for_listener(after=mark)
            with proxied(server.port) as wire:
                wire.sock.sendall(HEAD + BODY)
                assert wire.answer().json()["slot"] == home(CLIENT, 2)
        assert server.worker_pids == workers
        wait_until(lambda: descriptors(server.arbiter_pid) <= arbiter, what="the arbiter has closed the former's")
        assert not server.find(NO_TRACEBACK)
