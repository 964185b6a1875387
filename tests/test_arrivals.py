"""Connections that are waited for: looked at, taken out of the way, and given on or refused, without a leak."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sticky_session.arrivals import LOG_SECONDS, LOOK_BURST, MAX_RELEASED, SWEEP_BURST, Arrivals
from sticky_session.forwarded import ClientHeader
from sticky_session.identify import MAX_HEAD_BYTES, ByHeader, ByProxyProtocol, Client, Identification
from sticky_session.trust import Peers

SECONDS = 10.0
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
PROXY = b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 80\r\n"
PEER = ("127.0.0.1", 4000)
NOBODY = Peers([], [])


class Place:
    """Arrivals with a listening socket in front, and what became of the connections behind."""

    def __init__(self, identification: Identification, most: int = 1000) -> None:
        self.poll = select.epoll()
        self.delivered: list[tuple[int, Any, int, Client]] = []
        self.refused: list[tuple[int, int | None]] = []
        self.arrivals = Arrivals(
            self.poll,
            most,
            identification,
            lambda *connection: self.delivered.append(connection),
            lambda *connection: self.refused.append(connection),
            SECONDS,
            logging.getLogger("arrivals"),
        )
        self.server = socket.create_server(("127.0.0.1", 0), backlog=2000)

    def connect(self, first: bytes = b"") -> tuple[socket.socket, int]:
        """A client that has sent something, and the descriptor that has been added for it."""
        client = socket.create_connection(self.server.getsockname(), timeout=10)
        client.sendall(first)
        descriptor = self.server.accept()[0].detach()
        if first:
            select.select([descriptor], [], [], 10)
        self.arrivals.add(descriptor, PEER, 3)
        return client, descriptor

    def wait(self) -> None:
        """Handle the next events, as the listener's loop does."""
        assert select.select([self.arrivals], [], [], 10)[0]
        self.arrivals.handle()

    def take(self) -> socket.socket:
        """The one connection that has been delivered."""
        ((descriptor, peer, bind, _),) = self.delivered
        assert (peer, bind) == (PEER, 3)
        assert len(self.arrivals) == 0
        self.delivered.clear()
        sock = socket.socket(fileno=descriptor)
        sock.settimeout(10)
        return sock

    def close(self) -> None:
        self.arrivals.release()
        for descriptor, *_ in [*self.delivered, *self.refused]:
            os.close(descriptor)
        self.server.close()
        self.poll.close()


@pytest.fixture
def make(_no_collection: None) -> Iterator[Callable[..., Place]]:
    """Make one or several, and leave no descriptor open."""
    before = len(os.listdir("/proc/self/fd"))
    places = []

    def make(*args: Any) -> Place:
        places.append(Place(*args))
        return places[-1]

    yield make
    for place in places:
        place.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def by_header(make: Callable[..., Place]) -> Place:
    return make(ByHeader(NOBODY, ClientHeader("X-Forwarded-For", "first")))


@pytest.fixture
def by_proxy_protocol(make: Callable[..., Place]) -> Place:
    return make(ByProxyProtocol(NOBODY, "auto"))


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_whole_head(by_header: Place) -> None:
    """A head that is there is not waited for, and nothing of it is consumed."""
    client, _ = by_header.connect(HEAD + b"body")
    assert by_header.delivered[0][3] == Client("192.0.2.1")
    with client, by_header.take() as sock:
        assert sock.recv(1000) == HEAD + b"body"


@pytest.mark.parametrize("size", [1, 7, 30])
def test_head_in_pieces(by_header: Place, size: int) -> None:
    """A head in pieces is delivered with its last one, whole."""
    client, _ = by_header.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client:
        for start in range(0, len(HEAD), size):
            assert by_header.delivered == []
            client.sendall(HEAD[start : start + size])
            by_header.wait()
        assert by_header.delivered[0][3] == Client("192.0.2.1")
        with by_header.take() as sock:
            assert sock.recv(1000) == HEAD


def test_default_timeout(by_header: Place) -> None:
    """Where a preloaded app has called socket.setdefaulttimeout(), nothing is waited for all the same."""
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.001)
    try:
        client, _ = by_header.connect()
    finally:
        socket.setdefaulttimeout(former)
    with client:
        assert len(by_header.arrivals) == 1
        client.sendall(HEAD)
        by_header.wait()
        assert len(by_header.delivered) == 1


def test_quiet_connection_costs_nothing(by_header: Place) -> None:
    """What has been looked at makes no event until more arrives."""
    client, _ = by_header.connect(HEAD[:20])
    with client:
        by_header.wait()
        assert not select.select([by_header.arrivals], [], [], 0)[0]
        client.sendall(b"x")
        by_header.wait()
        assert not select.select([by_header.arrivals], [], [], 0)[0]


def test_long_head(by_header: Place) -> None:
    """One that is longer than the first look, up to the limit; one byte more is 431."""
    filler = b"X: " + b"x" * 1021
    head = b"GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n" + (filler + b"\r\n") * 47
    for size, there in [(MAX_HEAD_BYTES, True), (MAX_HEAD_BYTES + 1, False)]:
        whole = head + b"Y: " + b"y" * (size - len(head) - 7) + b"\r\n\r\n"
        assert len(whole) == size
        client, descriptor = by_header.connect()
        with client:
            client.sendall(whole)
            while not by_header.delivered and not by_header.refused:
                by_header.wait()
            if there:
                with by_header.take() as sock:
                    assert len(sock.recv(2 * size)) == size
            else:
                assert by_header.refused == [(descriptor, 431)]


@pytest.mark.parametrize("first", [b"\r\n", b"\n\n", b"GET / HTTP/1.1\r\n", HEAD[:-1]])
def test_nothing_new(by_header: Place, first: bytes) -> None:
    """The first event may tell of what has been seen already."""
    client, _ = by_header.connect(first)
    by_header.wait()
    assert len(by_header.arrivals) == 1
    client.close()
    by_header.wait()
    assert len(by_header.arrivals) == 0


def test_garbage(by_header: Place) -> None:
    """What is no HTTP is the peer's worker's business at once."""
    client, _ = by_header.connect(b"\x16\x03\x01")
    client.close()
    assert by_header.delivered[0][3] == Client(None)


@pytest.mark.parametrize("first", [b"", HEAD[:30]])
@pytest.mark.parametrize("how", ["closes", "closes half", "resets"])
def test_client_that_goes(by_header: Place, first: bytes, how: str) -> None:
    """Nobody learns of a client that closes or resets in the middle of its head."""
    client, descriptor = by_header.connect(first)
    if how == "closes half":
        client.shutdown(socket.SHUT_WR)
    else:
        if how == "resets":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    while by_header.arrivals:
        by_header.wait()
    assert not is_open(descriptor)
    assert by_header.delivered == by_header.refused == []
    client.close()


@pytest.mark.parametrize("how", ["closes half", "resets"])
def test_client_that_goes_after_its_head(by_header: Place, how: str) -> None:
    """A client that has sent everything may have closed its half; what is left of one that has reset is no error."""
    client, descriptor = by_header.connect()
    with client:
        client.sendall(HEAD)
        if how == "resets":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            by_header.wait()
            assert len(by_header.delivered) + (not is_open(descriptor)) == 1
        else:
            client.shutdown(socket.SHUT_WR)
            by_header.wait()
            with by_header.take() as sock:
                assert sock.recv(1000) == HEAD


def test_time_is_up(by_header: Place) -> None:
    """Past its time a head that has begun is 408; a connection that has sent nothing is just closed."""
    begun, begun_descriptor = by_header.connect(b"G")
    silent, silent_descriptor = by_header.connect()
    with begun, silent:
        by_header.arrivals.sweep(time.monotonic() + SECONDS / 2)
        assert by_header.refused == []
        by_header.arrivals.sweep(time.monotonic() + SECONDS)
        assert by_header.refused == [(begun_descriptor, 408), (silent_descriptor, None)]
        assert len(by_header.arrivals) == 0


def test_not_looked_at_in_time(by_header: Place) -> None:
    """What has come in time, and is looked at only when the time is up, is delivered."""
    client, _ = by_header.connect()
    with client:
        client.sendall(HEAD)
        by_header.arrivals.sweep(time.monotonic() + SECONDS)
        assert by_header.refused == []
        with by_header.take() as sock:
            assert sock.recv(1000) == HEAD


def test_not_all_at_once(by_header: Place) -> None:
    """However many have sent something, or are late, others get their turn in between."""
    count = SWEEP_BURST + 100
    clients = [by_header.connect()[0] for _ in range(count)]
    looks = 0
    for client in clients:
        client.sendall(b"G")
    while select.select([by_header.arrivals], [], [], 0)[0]:
        by_header.arrivals.handle()
        looks += 1
    assert looks >= count / LOOK_BURST
    late = time.monotonic() + SECONDS
    by_header.arrivals.sweep(late)
    assert len(by_header.arrivals) == count - SWEEP_BURST
    by_header.arrivals.sweep(late)
    assert len(by_header.arrivals) == 0
    assert [status for _, status in by_header.refused] == [408] * count
    for client in clients:
        client.close()


def test_too_many(make: Callable[..., Place]) -> None:
    """So many are waited for and no more; those that need not be waited for are delivered all the same."""
    place = make(ByHeader(NOBODY, ClientHeader("X-Forwarded-For", "first")), 2)
    clients = [place.connect(b"GET ")[0] for _ in range(2)]
    one_more, descriptor = place.connect(b"GET ")
    assert place.refused == [(descriptor, 503)]
    assert len(place.arrivals) == 2
    whole, _ = place.connect(HEAD)
    assert len(place.delivered) == 1
    for client in [*clients, one_more, whole]:
        client.close()


def test_release(by_header: Place) -> None:
    """Those that are still waited for go to the peer's worker, with all that has arrived."""
    client, _ = by_header.connect(HEAD[:30])
    with client:
        by_header.arrivals.release()
        assert by_header.delivered[0][3] == Client(None)
        assert not select.select([by_header.arrivals], [], [], 0)[0]
        with by_header.take() as sock:
            assert sock.recv(1000) == HEAD[:30]


def test_release_of_many(by_header: Place) -> None:
    """No more than a worker has room for, and the others are waited for as before."""
    clients = [by_header.connect(HEAD[:30])[0] for _ in range(MAX_RELEASED + 1)]
    by_header.arrivals.release()
    assert len(by_header.delivered) == MAX_RELEASED
    assert len(by_header.arrivals) == 1
    clients[-1].sendall(HEAD[30:])
    by_header.wait()
    assert by_header.delivered[-1][3] == Client("192.0.2.1")
    for client in clients:
        client.close()


@pytest.mark.parametrize("size", [1, 10, len(PROXY), 1000])
def test_proxy_header_is_consumed(by_proxy_protocol: Place, size: int) -> None:
    """A PROXY header is taken out, exactly, however it comes."""
    sent = PROXY + HEAD
    client, _ = by_proxy_protocol.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client:
        for start in range(0, len(sent), size):
            client.sendall(sent[start : start + size])
            if not by_proxy_protocol.delivered:
                by_proxy_protocol.wait()
        assert by_proxy_protocol.delivered[0][3] == Client("192.0.2.1", 5000, len(PROXY))
        with by_proxy_protocol.take() as sock, sock.makefile("rb") as rest:
            assert rest.read(len(HEAD)) == HEAD


def test_large_proxy_header(by_proxy_protocol: Place) -> None:
    """Version 2 with 40 KB of extensions."""
    size = 12 + 40_000
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H4s4sHH", size, b"\1\2\3\4", b"\5\6\7\x08", 5000, 80)
    client, _ = by_proxy_protocol.connect()
    with client:
        client.sendall(header + bytes(40_000) + HEAD)
        while not by_proxy_protocol.delivered:
            by_proxy_protocol.wait()
        assert by_proxy_protocol.delivered[0][3] == Client("1.2.3.4", 5000, 16 + size)
        with by_proxy_protocol.take() as sock, sock.makefile("rb") as rest:
            assert rest.read(len(HEAD)) == HEAD


def test_malformed(by_proxy_protocol: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed header is closed without a word and counted each time, and logged once in a while."""
    caplog.set_level(logging.DEBUG, "arrivals")
    now = time.monotonic()
    for number in range(5):
        if number == 3:
            monkeypatch.setattr(time, "monotonic", lambda: now + LOG_SECONDS + 60)
        client, descriptor = by_proxy_protocol.connect(b"PROXY TCP5 ")
        client.close()
        assert by_proxy_protocol.refused[-1] == (descriptor, None)
    counted = [record for record in caplog.records if getattr(record, "metric", "") == "sticky_session.malformed"]
    assert [(record.mtype, record.value) for record in counted] == [("counter", 1)] * 5  # type: ignore[attr-defined]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert warnings[0].startswith("Malformed PROXY header from 127.0.0.1: b'TCP5'")
    assert "(1 since the listener started)" in warnings[0]
    assert "(4 since the listener started)" in warnings[1]
