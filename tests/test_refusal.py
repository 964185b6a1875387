"""Refusing connections in a way that the client receives."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest

from sticky_session.refusal import MAX_REFUSED, REFUSAL_SECONDS, Refusals, unavailable
from sticky_session.request import error_response


@pytest.fixture
def poll() -> Iterator[select.epoll]:
    """The listener's epoll object."""
    with select.epoll() as poll:
        yield poll


@pytest.fixture
def refusals(poll: select.epoll) -> Iterator[Refusals]:
    """Refusals that say that a place may be free in three seconds."""
    refusals = Refusals(poll, unavailable(3))
    yield refusals
    refusals.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A listening TCP socket."""
    with socket.create_server(("127.0.0.1", 0), backlog=MAX_REFUSED + 2) as server:
        yield server


def connect(server: socket.socket) -> tuple[socket.socket, int]:
    """A client, and the descriptor of the accepted connection."""
    client = socket.create_connection(server.getsockname(), timeout=10)
    return client, server.accept()[0].detach()


def handle(refusals: Refusals, poll: select.epoll, timeout: float = 10) -> int:
    """Handle what has happened, as the listener's loop does."""
    events = poll.poll(timeout)
    for descriptor, _ in events:
        assert descriptor in refusals
        refusals.handle(descriptor)
    return len(events)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_response(refusals: Refusals, poll: select.epoll, server: socket.socket) -> None:
    """A refused client gets a complete 503 that says when to come back and that the connection closes."""
    client, descriptor = connect(server)
    with client:
        refusals.add(descriptor)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        handle(refusals, poll)
        response = HTTPResponse(client)
        response.begin()
        assert response.status == 503
        assert response.getheader("Retry-After") == "3"
        assert response.getheader("Connection") == "close"
        assert b"Try again soon" in response.read()
        assert client.recv(1) == b""
    handle(refusals, poll)
    assert not is_open(descriptor)
    assert len(refusals) == 0


def test_waits_for_request(refusals: Refusals, poll: select.epoll, server: socket.socket) -> None:
    """Nothing is said before the client has asked."""
    client, descriptor = connect(server)
    with client:
        refusals.add(descriptor)
        assert handle(refusals, poll, timeout=0) == 0
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_long_request(refusals: Refusals, poll: select.epoll, server: socket.socket) -> None:
    """A client that sends a megabyte before it reads gets its answer all the same, and no reset."""
    client, descriptor = connect(server)
    with client:
        refusals.add(descriptor)
        client.setblocking(False)
        left = memoryview(bytes(1 << 20))
        while left:
            try:
                left = left[client.send(left) :]
            except BlockingIOError:
                handle(refusals, poll)
        client.settimeout(10)
        client.shutdown(socket.SHUT_WR)
        while len(refusals):
            handle(refusals, poll)
        with client.makefile("rb") as answer:
            assert answer.read() == unavailable(3)


def test_silent_client(refusals: Refusals, server: socket.socket) -> None:
    """A client that never asks is answered and closed when its time is up, not before."""
    client, descriptor = connect(server)
    with client:
        refusals.add(descriptor)
        refusals.sweep(time.monotonic())
        assert descriptor in refusals
        refusals.sweep(time.monotonic() + REFUSAL_SECONDS + 1)
        assert not is_open(descriptor)
        with client.makefile("rb") as answer:
            assert answer.read() == unavailable(3)


def test_client_that_never_closes(refusals: Refusals, poll: select.epoll, server: socket.socket) -> None:
    """A client that goes on sending after its answer is closed when its time is up, and answered once."""
    client, descriptor = connect(server)
    with client:
        refusals.add(descriptor)
        for _ in range(3):
            client.sendall(b"x")
            handle(refusals, poll)
        assert client.recv(10_000) == unavailable(3)
        refusals.sweep(time.monotonic() + REFUSAL_SECONDS + 1)
        assert not is_open(descriptor)


def test_vanished_client(refusals: Refusals, poll: select.epoll, server: socket.socket) -> None:
    """A client that closes before it was answered, or resets, costs no more than its event."""
    for how in (b"\0" * 8, b"\1\0\0\0\0\0\0\0"):
        client, descriptor = connect(server)
        refusals.add(descriptor)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
        client.close()
        handle(refusals, poll)
        assert not is_open(descriptor)
    assert len(refusals) == 0


def test_too_many(refusals: Refusals, server: socket.socket) -> None:
    """Only so many are waited for; the next ones are closed at once, with an answer if they have asked already."""
    clients = []
    for _ in range(MAX_REFUSED):
        client, descriptor = connect(server)
        clients.append(client)
        refusals.add(descriptor)
    assert len(refusals) == MAX_REFUSED
    for request, response, answer in [
        (b"", None, b""),
        (b"GET / HTTP/1.1\r\n", None, unavailable(3)),
        (b"x" * 49152, error_response(431), error_response(431)),
    ]:
        one_more, descriptor = connect(server)
        one_more.sendall(request)
        refusals.add(descriptor, response)
        assert len(refusals) == MAX_REFUSED
        assert not is_open(descriptor)
        with one_more.makefile("rb") as file:
            assert file.read() == answer
        clients.append(one_more)
    for client in clients:
        client.close()


def test_another_response(refusals: Refusals, poll: select.epoll, server: socket.socket) -> None:
    """A response of its own for one connection."""
    client, descriptor = connect(server)
    with client:
        client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        refusals.add(descriptor, error_response(408))
        handle(refusals, poll)
        with client.makefile("rb") as answer:
            assert answer.read() == error_response(408)
        client.shutdown(socket.SHUT_WR)
    handle(refusals, poll)
    assert not is_open(descriptor)


def test_tls(poll: select.epoll, server: socket.socket) -> None:
    """Where TLS is spoken nothing can be said: the connection is closed."""
    client, descriptor = connect(server)
    with client:
        Refusals(poll, None).add(descriptor)
        assert client.recv(1) == b""
        assert not is_open(descriptor)
    client, descriptor = connect(server)
    with client:
        Refusals(poll, None).add(descriptor, error_response(408))
        assert client.recv(1) == b""
        assert not is_open(descriptor)


def test_close(poll: select.epoll, server: socket.socket) -> None:
    """Closing ends them all and gives every descriptor back."""
    refusals = Refusals(poll, unavailable(1))
    pairs = [connect(server) for _ in range(3)]
    for _, descriptor in pairs:
        refusals.add(descriptor)
    refusals.close()
    assert not any(is_open(descriptor) for _, descriptor in pairs)
    for client, _ in pairs:
        client.close()


def test_not_a_socket(refusals: Refusals) -> None:
    """A descriptor that is no socket is closed and forgotten."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    refusals.add(descriptor)
    assert not is_open(descriptor)
    assert len(refusals) == 0
