"""Connections that wait for a request have no greenlet: what arrives, or does not, finds them all the same."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM

import pytest

from harness import Client, Server, connect, descriptors, make_certificate, wait_until
from pending import stopped
from upstream import Upstream, clients_at
from wire import Wire

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MANY = 100
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Hundreds that have sent nothing yet stay for as long as a busy machine takes.
    args, env = ("--keep-alive", "600"), {"STICKY_SESSION_HEAD_TIMEOUT": "600"}
    with Server("greenlets:app", workers=1, args=args, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_server(certificate: tuple[Path, Path]) -> Iterator[Server]:
    cert, key = map(os.fspath, certificate)
    args = ("--keep-alive", "60", "--certfile", cert, "--keyfile", key)
    with Server("greenlets:app", workers=1, args=args) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing goes wrong inside."""
    servers = [request.getfixturevalue(name) for name in ("server", "tls_server") if name in request.fixturenames]
    marks = [server.mark() for server in servers]
    yield
    for server, mark in zip(servers, marks, strict=True):
        assert not server.find("Traceback", after=mark)


def assert_rested(who: dict[str, int], connections: int) -> None:
    """So many are open, and only a handful has a greenlet."""
    assert who["connections"] >= connections
    assert who["greenlets"] < 10


def test_many(server: Server) -> None:
    """Clients that have sent nothing yet, and kept-alive ones, have no greenlet, and are served as soon as they ask."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.port)) for _ in range(2 * MANY)]
        for wire in wires[:MANY]:
            wire.get("/uncounted")
        wait_until(lambda: wires[0].get().json()["connections"] >= 2 * MANY)
        for _ in range(3):
            for wire in wires:
                wire.get("/uncounted")
            for wire in wires[::20]:
                assert_rested(wire.get().json(), 2 * MANY)
            # All at once.
            for wire in wires:
                wire.send("GET /uncounted HTTP/1.1", "Host: a")
            assert all(wire.answer().status == 200 for wire in wires)


def test_one_byte(server: Server) -> None:
    """The beginning of a head, and of a body, wakes it up; the rest is waited for."""
    with Wire(server.port) as wire:
        for _ in range(3):
            for byte in b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab":
                wire.sock.sendall(bytes((byte,)))
            assert wire.answer().status == 200


def test_more_than_one_request(server: Server) -> None:
    """What comes behind a request is served before the connection rests."""
    with Wire(server.port) as wire:
        for count in (2, 40, 3):
            wire.sock.sendall(REQUEST * count)
            assert [wire.answer().status for _ in range(count)] == [200] * count


def test_client_half_closes(server: Server) -> None:
    """Its last request is answered; where there is none the connection just ends."""
    with Wire(server.port) as wire:
        wire.get()
        wire.sock.sendall(REQUEST)
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.answer().status == 200
        assert wire.ended()
    for requests in (0, 1):
        with Wire(server.port) as wire:
            for _ in range(requests):
                wire.get()
            wire.sock.shutdown(socket.SHUT_WR)
            assert wire.ended()


def test_client_goes_away(server: Server) -> None:
    """Closing and resetting give everything back."""
    with Wire(server.port) as last:
        last.get()
        before = descriptors(server.worker_pids[0])
        for number in range(40):
            wire = Wire(server.port)
            if number % 4 < 2:
                wire.get()
            if number % 2:
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            wire.close()
        wait_until(lambda: descriptors(server.worker_pids[0]) <= before)
        wait_until(lambda: last.get().json()["connections"] == 1)


def test_time() -> None:
    """The time for the next request begins with each response, that for the first one with the connection."""
    args, env = ("--keep-alive", "2"), {"STICKY_SESSION_HEAD_TIMEOUT": "2"}
    with Server("greenlets:app", workers=1, args=args, env=env) as server:
        with Wire(server.port) as wire, Wire(server.port) as silent:
            for _ in range(12):
                wire.get("/slow")
            assert silent.ended()
            wire.get()
            assert wire.ended()
        assert "Traceback" not in server.log


def test_what_came_while_the_worker_was_busy() -> None:
    """A request that was sent in time is served, also where the worker comes to look only after the deadline."""
    args, env = ("--keep-alive", "2"), {"STICKY_SESSION_HEAD_TIMEOUT": "2"}
    with Server("greenlets:app", workers=1, args=args, env=env) as server, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.port)) for _ in range(20)]
        # The worker takes connections in order: it has the first ones, too, which have sent nothing yet.
        for wire in wires[10:]:
            wire.get()
        with stopped(server.worker_pids[0]):
            for wire in wires:
                wire.sock.sendall(REQUEST)
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > 2.5, what="their time is over")
        assert [wire.answer().status for wire in wires] == [200] * len(wires)


def test_worker_connections() -> None:
    """They take the places of worker_connections, those that have sent nothing, too."""
    with Server("greenlets:app", workers=1, args=("--worker-connections", "2", "--keep-alive", "60")) as server:
        with Wire(server.port) as wire, connect(server.port) as silent, Wire(server.port) as third:
            wire.get()
            third.sock.sendall(REQUEST)
            wait_until(lambda: wire.get().json()["connections"] == 2)
            for _ in range(20):
                assert wire.get().json()["connections"] == 2
            third.sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                third.sock.recv(1)
            third.sock.settimeout(20)
            silent.close()
            assert third.answer().json()["connections"] == 2


@pytest.mark.parametrize("path", ["/close", "/later"])
def test_app_closes_the_socket(path: str) -> None:
    """At the end of its response, or while the connection rests: its place is free at its deadline at the latest."""
    args = ("--worker-connections", "1", "--keep-alive", "2")
    with Server("greenlets:app", workers=1, args=args) as server:
        for requests_before in (0, 1):
            with Wire(server.port) as wire:
                for _ in range(requests_before):
                    wire.get()
                wire.get(path)
                assert wire.ended()
                with Wire(server.port) as next_one:
                    assert next_one.get().status == 200
        assert "Traceback" not in server.log


def test_worker_retires() -> None:
    """TERM ends kept-alive ones at once; a client that has just connected can still send its request."""
    with Server("greenlets:app", workers=1, args=("--keep-alive", "60")) as server:
        with Wire(server.port) as wire, Wire(server.port) as new, Wire(server.port) as silent:
            wire.get()
            server.signal(SIGTERM)
            assert wire.ended()
            new.sock.sendall(REQUEST)
            answer = new.answer()
            assert answer.status == 200
            assert answer.closes
            assert silent.ended()
        assert server.wait(10) == 0


def test_proxy() -> None:
    """A proxy's connection rests in one worker, then in another, and wakes up in the one where it is."""
    here, there = clients_at(0, 2), clients_at(1, 2)
    with Server("homes:app", workers=2, args=("--keep-alive", "60")) as two, contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Upstream(two.port)) for _ in range(20)]
        for client in (here[0], there[0], there[1], here[1]):
            for proxy in proxies:
                assert proxy.ask(client).json()["slot"] == (0 if client in here else 1)


# --- TLS


def over_tls(server: Server, certificate: tuple[Path, Path]) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=certificate[0])
    return context.wrap_socket(connect(server.port), server_hostname="127.0.0.1")


def test_tls(tls_server: Server, certificate: tuple[Path, Path]) -> None:
    """The same over TLS, where several requests may have come in one record, or one in several."""
    context = ssl.create_default_context(cafile=certificate[0])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(tls_server.port, tls=context)) for _ in range(20)]
        for client in clients:
            assert client.get().status == 200
        assert_rested(clients[0].get().json(), 20)
    with over_tls(tls_server, certificate) as sock, sock.makefile("rb") as file:

        def answers(count: int) -> None:
            for _ in range(count):
                assert file.readline() == b"HTTP/1.1 200 OK\r\n"
                length = 0
                while (line := file.readline()) != b"\r\n":
                    if line.startswith(b"Content-Length"):
                        length = int(line.split()[1])
                file.read(length)

        for count in (1, 3, 2):
            sock.sendall(REQUEST * count)
            answers(count)
        # More than a record holds, and more than is read at once.
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\n" + b"x" * 40000 + REQUEST)
        answers(2)
        for byte in REQUEST:
            sock.sendall(bytes((byte,)))
        answers(1)


def test_tls_client_goes_away(tls_server: Server, certificate: tuple[Path, Path]) -> None:
    """Closing, with or without TLS's goodbye, gives everything back."""
    context = ssl.create_default_context(cafile=certificate[0])
    with Client(tls_server.port, tls=context) as last:
        last.get()
        before = descriptors(tls_server.worker_pids[0])
        for number in range(20):
            sock = over_tls(tls_server, certificate)
            if number % 4 == 1:
                sock.sendall(REQUEST)
                sock.recv(1)
            if number % 4 == 2:
                # Nobody says goodbye to it.
                with contextlib.suppress(ssl.SSLError):
                    sock.unwrap()
            if number % 4 == 3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        wait_until(lambda: descriptors(tls_server.worker_pids[0]) <= before)
        wait_until(lambda: last.get().json()["connections"] == 1)
