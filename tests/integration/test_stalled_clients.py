"""Clients that stop taking or sending in the middle of something: they end, and slow ones and idle ones don't."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from harness import Server, connect, descriptors, make_certificate, wait_until
from websocket_wire import TEXT, WebSocketWire, frame
from wire import Wire

STALL_SECONDS = 1.0
# So much that it doesn't fit into the kernel's buffers.
MUCH = 50_000_000
ACCESS_LOG = '%({REMOTE_PORT}e)s "%(r)s" %(s)s'


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Those of a server that is less patient."""
    config = tmp_path_factory.mktemp("stall") / "impatient.py"
    config.write_text(
        "def post_fork(server, worker):\n"
        "    import sticky_session.connection\n"
        f"    sticky_session.connection.STALL_SECONDS = {STALL_SECONDS}\n"
    )
    return ["-c", os.fspath(config), "--keep-alive", "60", "--access-logfile", "-", "--access-logformat", ACCESS_LOG]


@pytest.fixture(scope="module")
def answers(arguments: list[str]) -> Iterator[Server]:
    """A server of plain requests."""
    with Server("answers:app", workers=1, args=arguments) as server:
        yield server


@pytest.fixture(scope="module")
def tls(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same over TLS."""
    cert, key = map(os.fspath, make_certificate(tmp_path_factory.mktemp("tls")))
    with Server("answers:app", workers=1, args=[*arguments, "--certfile", cert, "--keyfile", key]) as server:
        yield server


@pytest.fixture(scope="module")
def websockets(arguments: list[str]) -> Iterator[Server]:
    """A server of WebSockets."""
    with Server("echo_websocket:app", workers=1, args=arguments) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """A client that stalls is no error of the app's."""
    names = [name for name in ("answers", "tls", "websockets") if name in request.fixturenames]
    servers = [request.getfixturevalue(name) for name in names]
    marks = [server.mark() for server in servers]
    yield
    for server, mark in zip(servers, marks, strict=True):
        assert not server.find("Traceback|Error handling", after=mark)


def open_descriptors(server: Server) -> int:
    """How many the only worker has, those of clients that are about to be closed left out."""
    return descriptors(server.worker_pids[0])


def assert_broken_off(sock: socket.socket) -> None:
    """What the connection still brings ends before the response does."""
    size = 0
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 20):
            size += len(data)
    assert 0 < size < MUCH


def test_response(answers: Server) -> None:
    """A client that doesn't read its response gives back what it holds, and has its line in the access log."""
    with Wire(answers.port) as wire:
        wire.get("/list")
        before = open_descriptors(answers)
        mark = answers.mark()
        wire.send(f"GET /big?bytes={MUCH} HTTP/1.1", "Host: a")
        port = wire.sock.getsockname()[1]
        answers.wait_for(f'{port} "GET /big.bytes={MUCH} HTTP/1.1" 200', after=mark)
        wait_until(lambda: open_descriptors(answers) < before, what="the connection was closed")
        assert_broken_off(wire.sock)


@contextlib.contextmanager
def connected(server: Server, *, over_tls: bool) -> Iterator[socket.socket]:
    """A connection to it."""
    with connect(server.port) as sock:
        if not over_tls:
            yield sock
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(sock, server_hostname="test") as wrapped:
            yield wrapped


def test_response_over_tls(tls: Server) -> None:
    """The same over TLS."""
    mark = tls.mark()
    with connected(tls, over_tls=True) as sock:
        sock.sendall(f"GET /big?bytes={MUCH} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        tls.wait_for(f'"GET /big.bytes={MUCH} HTTP/1.1" 200', after=mark)
        with contextlib.suppress(ssl.SSLError):
            assert_broken_off(sock)


def slowly(sock: socket.socket, seconds: float) -> int:
    """Take a little again and again, each time well within the limit; how much it was."""
    size = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(4):
            size += len(sock.recv(32 * 1024))
        time.sleep(STALL_SECONDS / 5)  # the client's own slowness
    return size


@pytest.mark.parametrize("over_tls", [False, True])
def test_slow_response(answers: Server, tls: Server, over_tls: bool) -> None:
    """A client that takes a little every now and then gets all of it, however rarely the kernel has room for more."""
    server = tls if over_tls else answers
    mark = server.mark()
    with connected(server, over_tls=over_tls) as sock:
        sock.sendall(f"GET /big?bytes={MUCH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        size = slowly(sock, 5 * STALL_SECONDS)
        while data := sock.recv(1 << 20):
            size += len(data)
    assert size > MUCH
    assert not server.find("Traceback", after=mark)


def test_silent_app(answers: Server) -> None:
    """An app that says nothing for longer, in the middle of its response too, is let be."""
    with Wire(answers.port) as wire:
        assert wire.get("/thinks").body == b"onetwo"


@pytest.mark.parametrize("body", [b"", b"abc"])
def test_body(answers: Server, body: bytes) -> None:
    """A client that stops sending its body is told so."""
    with Wire(answers.port) as wire:
        wire.send("POST /echo HTTP/1.1", "Host: a", "Content-Length: 10", body=body)
        answer = wire.answer()
        assert answer.status == 408
        assert answer.closes
        assert wire.ended()


def test_body_after_response(answers: Server) -> None:
    """When the response has begun nothing can be told: it breaks off, and has its line in the access log."""
    mark = answers.mark()
    with Wire(answers.port) as wire:
        wire.send("POST /read-late HTTP/1.1", "Host: a", "Content-Length: 10", body=b"abc")
        answer = wire.answer()
        assert (answer.status, answer.body, answer.whole) == (200, b"first", False)
        port = wire.sock.getsockname()[1]
    answers.wait_for(f'{port} "POST /read-late HTTP/1.1" 200', after=mark)


@pytest.mark.parametrize("path", ["/echo", "/read-late"])
def test_slow_body(answers: Server, path: str) -> None:
    """A client that sends a little every now and then is served, before the response has begun and after it."""
    body = b"0123456789"
    with Wire(answers.port) as wire:
        wire.send(f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}")
        for byte in body:
            time.sleep(STALL_SECONDS / 4)  # the client's own slowness
            wire.sock.sendall(bytes((byte,)))
        assert wire.answer().body.endswith(body)


def test_slow_next_request(answers: Server) -> None:
    """The limit of a body does not stay for what comes after it on the same connection."""
    with Wire(answers.port) as wire:
        assert wire.post("/echo", b"abc").body == b"abc"
        assert wire.get("/thinks").body == b"onetwo"
        time.sleep(STALL_SECONDS * 1.3)
        assert wire.get("/list").body == b"onetwo"


def test_websocket(websockets: Server) -> None:
    """A WebSocket whose client doesn't read what is sent to it ends."""
    with WebSocketWire(websockets.port, "/push") as wire:
        before = open_descriptors(websockets)
        wait_until(lambda: open_descriptors(websockets) < before, what="the connection was closed")
        assert_broken_off(wire.sock)


def test_idle_websocket(websockets: Server) -> None:
    """A WebSocket on which nothing happens stays."""
    with WebSocketWire(websockets.port) as wire:
        wire.sock.settimeout(3 * STALL_SECONDS)
        with pytest.raises(TimeoutError):
            wire.sock.recv(1)
        wire.sock.settimeout(20)
        wire.write(frame(TEXT, b"hello"))
        assert wire.sock.recv(7) == b"\x81\x05hello"
