"""WebSockets, frame by frame."""

from __future__ import annotations

import contextlib
import re
import selectors
import signal
import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from harness import ADDRESS, Server, addresses, connect, descriptors, get, rss, wait_until
from websocket_wire import BINARY, CLOSE, CONTINUATION, HANDSHAKE, MASK, PING, PONG, TEXT, WebSocketWire, frame, header
from wire import Wire

LIMIT = 300_000
ACCESS_LOG = '%(h)s:%({REMOTE_PORT}e)s "%(r)s" %(s)s %(B)s'
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker, so that everything disturbs everything else."""
    arguments = ["--access-logfile", "-", "--access-logformat", ACCESS_LOG]
    environment = {"STICKY_SESSION_MESSAGE_BYTES": str(LIMIT)}
    with Server("echo_websocket:app", workers=1, args=arguments, env=environment) as server:
        yield server


@pytest.fixture
def echo(server: Server) -> Iterator[WebSocketWire]:
    """A WebSocket that sends back what it gets."""
    with WebSocketWire(server.port) as echo:
        yield echo


# --- the handshake


def test_handshake(echo: WebSocketWire) -> None:
    """RFC 6455 section 4.2.2, with the example's key."""
    assert echo.accepted["Upgrade"].lower() == "websocket"
    assert echo.accepted["Connection"].lower() == "upgrade"
    assert echo.accepted["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_frames_with_handshake(server: Server) -> None:
    """Frames that come in one piece with the handshake are not lost."""
    with Wire(server.port) as wire:
        wire.send("GET /echo HTTP/1.1", *HANDSHAKE, body=frame(TEXT, b"early"))
        assert wire.answer().status == 101
        assert wire.file.read(7) == b"\x81\x05early"


@pytest.mark.parametrize(
    ("missing", "added", "status", "headers"),
    [
        ("Sec-WebSocket-Key", (), 400, {}),
        ("Sec-WebSocket-Key", ("Sec-WebSocket-Key: short",), 400, {}),
        ("Sec-WebSocket-Version", (), 426, {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}),
        (
            "Sec-WebSocket-Version",
            ("Sec-WebSocket-Version: 8",),
            426,
            {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
        ),
    ],
)
def test_bad_handshake(
    server: Server, missing: str, added: tuple[str, ...], status: int, headers: dict[str, str]
) -> None:
    """A handshake that can't be accepted is answered with what is wrong, and the app isn't asked."""
    with Wire(server.port) as wire:
        fields = [line for line in HANDSHAKE if not line.startswith(missing)]
        wire.send("GET /echo HTTP/1.1", *fields, *added)
        answer = wire.answer()
        assert answer.status == status
        assert {name: answer[name] for name in headers} == headers
        # Whoever sends Upgrade names it in Connection (RFC 9110 section 7.8).
        assert ("upgrade" in answer["Connection"].lower()) == ("Upgrade" in headers)
        assert answer.closes
        assert wire.ended()


@pytest.mark.parametrize(
    ("line", "replaced", "by"),
    [
        ("POST /env HTTP/1.1", "", ""),
        ("GET /env HTTP/1.0", "", ""),
        ("GET /env HTTP/1.1", "Connection: Upgrade", "Connection: keep-alive"),
        ("GET /env HTTP/1.1", "Upgrade: websocket", "Upgrade: h2c"),
    ],
)
def test_no_handshake(server: Server, line: str, replaced: str, by: str) -> None:
    """What only looks like a handshake is a plain request (RFC 9110 section 7.8)."""
    with Wire(server.port) as wire:
        wire.send(line, *(field if field != replaced else by for field in HANDSHAKE))
        assert wire.answer().status == 200


def test_handshake_with_body(server: Server) -> None:
    """A body is not taken for frames: a request for an upgrade that has one is a plain request."""
    with Wire(server.port) as wire:
        wire.send("GET /echo HTTP/1.1", *HANDSHAKE, "Content-Length: 3", body=b"abc")
        answer = wire.answer()
        assert (answer.status, answer.body) == (200, b"abc")


@pytest.mark.parametrize("connection", ["keep-alive, Upgrade", "UPGRADE", "upgrade,keep-alive"])
def test_connection_field(server: Server, connection: str) -> None:
    """The word Upgrade may stand among others, in any case."""
    with Wire(server.port) as wire:
        wire.send("GET /echo HTTP/1.1", *HANDSHAKE[:2], f"Connection: {connection}", *HANDSHAKE[3:])
        assert wire.answer().status == 101


def test_app_refuses(server: Server) -> None:
    """An app that refuses before it uses the WebSocket gives a status that the client can read."""
    with Wire(server.port) as wire:
        wire.send("GET /refuse HTTP/1.1", *HANDSHAKE)
        answer = wire.answer()
        assert (answer.status, answer.body) == (403, b"not you\n")
        assert answer.closes
        assert wire.ended()


def test_app_fails_first(server: Server) -> None:
    """An app that fails before it uses the WebSocket is a 500."""
    with Wire(server.port) as wire:
        wire.send("GET /fail-first HTTP/1.1", *HANDSHAKE)
        answer = wire.answer()
        assert answer.status == 500
        assert answer.closes


def test_app_fails_later(server: Server) -> None:
    """An app that fails later closes with 1011, and its traceback is in the log."""
    mark = server.mark()
    with WebSocketWire(server.port, "/fail") as wire:
        assert wire.frame().payload == b"first"
        assert wire.close_code() == 1011
    server.wait_for("RuntimeError: after the upgrade", after=mark)


def test_environ(server: Server) -> None:
    """The app of a WebSocket has the same environ as that of a request."""
    with Wire(server.port) as wire:
        wire.send("GET /env?EIO=4 HTTP/1.1", *HANDSHAKE)
        environ = wire.answer().json()
        assert environ["wsgi.websocket_version"] == "13"
        assert environ["QUERY_STRING"] == "EIO=4"
        assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (ADDRESS, str(wire.sock.getsockname()[1]))


def test_input(server: Server) -> None:
    """An app that reads the body of a request for an upgrade finds that there is none."""
    with Wire(server.port) as wire:
        wire.send("GET /read HTTP/1.1", *HANDSHAKE)
        assert wire.answer()["Content-Length"] == "0"


def test_simple_websocket(server: Server) -> None:
    """simple-websocket, and so flask-sock, takes the connection over, and nothing is sent after it."""
    mark = server.mark()
    with WebSocketWire(server.port, "/simple-websocket") as wire:
        wire.write(frame(TEXT, b"hello"))
        assert wire.frame() == (0x80 | TEXT, b"hello")
        wire.write(frame(CLOSE, struct.pack("!H", 1000)))
        assert wire.frame() == (0x80 | CLOSE, struct.pack("!H", 1000))
        assert wire.ended()
    assert not server.find("Traceback", after=mark)


def test_access_log(server: Server) -> None:
    """An upgrade has its line in the access log when it happens, not when it ends, with the peer's address."""
    mark = server.mark()
    with WebSocketWire(server.port) as wire:
        host, port = wire.sock.getsockname()
        server.wait_for(f'^{re.escape(f"{host}:{port}")} "GET /echo HTTP/1.1" 101 0$', after=mark)
        wire.write(frame(CLOSE))
        wire.close_code()
    get(server.port, "/afterwards")
    server.wait_for("/afterwards", after=mark)
    assert len(server.find(f":{port} ", after=mark)) == 1


# --- messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, LIMIT])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_echo(echo: WebSocketWire, opcode: int, size: int) -> None:
    """A message of any size up to the limit comes back as it was, in one frame."""
    payload = (b"abcdefg" * (size // 7 + 1))[:size]
    echo.write(frame(opcode, payload))
    assert echo.frame() == (0x80 | opcode, payload)


def test_echo_unicode(echo: WebSocketWire) -> None:
    """Text is UTF-8, beyond the first plane too."""
    payload = "κόσμε \N{GRINNING FACE} \0 \uffff".encode()
    echo.write(frame(TEXT, payload))
    assert echo.frame() == (0x81, payload)


def test_many_messages_in_one_piece(echo: WebSocketWire) -> None:
    """Messages that come together are answered one by one, in order."""
    echo.write(*(frame(TEXT, b"%d" % number) for number in range(500)))
    assert [echo.frame().payload for _ in range(500)] == [b"%d" % number for number in range(500)]


def test_byte_by_byte(echo: WebSocketWire) -> None:
    """A frame that comes byte by byte is the same frame."""
    echo.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in frame(BINARY, bytes(range(200))):
        echo.sock.sendall(bytes((byte,)))
    assert echo.frame() == (0x82, bytes(range(200)))


def test_fragments(echo: WebSocketWire) -> None:
    """A message in pieces, cut inside a character, with control frames between them, is one message."""
    echo.write(
        frame(TEXT, b"a\xc3", final=False),
        frame(PING, b"one"),
        frame(CONTINUATION, b"\xa9", final=False),
        frame(PONG, b"nobody asked"),
        frame(CONTINUATION, b"", final=False),
        frame(PING),
        frame(CONTINUATION, b"b"),
    )
    assert echo.frame() == (0x80 | PONG, b"one")
    assert echo.frame() == (0x80 | PONG, b"")
    assert echo.frame() == (0x81, "aéb".encode())


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 125])
def test_ping(echo: WebSocketWire, payload: bytes) -> None:
    """A ping is answered by a pong with the same bytes."""
    echo.write(frame(PING, payload))
    assert echo.frame() == (0x80 | PONG, payload)


def test_concurrent_sends(server: Server) -> None:
    """Many greenlets that send at once never get their frames into each other."""
    with WebSocketWire(server.port, "/crowd") as wire:
        counts: Counter[int] = Counter()
        for _ in range(500):
            first, payload = wire.frame()
            assert first == 0x82
            assert payload == payload[:1] * len(payload)
            counts[payload[0]] += 1
        assert counts == Counter(dict.fromkeys(range(50), 10))
        assert wire.close_code() == 1000


# --- violations


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x81\x05hello", 1002),
        (b"\xc1\x80" + MASK, 1002),
        (b"\xa1\x80" + MASK, 1002),
        (b"\x91\x80" + MASK, 1002),
        (frame(3), 1002),
        (frame(7), 1002),
        (frame(11), 1002),
        (frame(15), 1002),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(TEXT, b"x", final=False) + frame(TEXT, b"x"), 1002),
        (frame(PING, final=False), 1002),
        (header(PING, 126) + MASK + bytes(126), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, b"\x03\xee"), 1002),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xc3", final=False) + frame(CONTINUATION, b"\x28"), 1007),
        (frame(TEXT, b"a\xc3", final=False) + frame(CONTINUATION, b""), 1007),
        (header(BINARY, LIMIT + 1), 1009),
        (header(BINARY, 1 << 30), 1009),
        (header(TEXT, 1 << 30), 1009),
        (header(BINARY, (1 << 63) - 1), 1009),
        (header(BINARY, 1 << 30) + MASK + bytes(MEGABYTE), 1009),
        (frame(BINARY, bytes(LIMIT), final=False) + header(CONTINUATION, 1), 1009),
        (b"".join(frame(CONTINUATION if i else BINARY, bytes(50_000), final=False) for i in range(10)), 1009),
    ],
)
def test_violation(server: Server, echo: WebSocketWire, frames: bytes, code: int) -> None:
    """Every violation is answered at once with its close code, which the client receives whatever it has sent."""
    worker = server.worker_pids[0]
    before = rss(worker)
    mark = server.mark()
    echo.sock.settimeout(5)
    echo.write(frames)
    assert echo.close_code() == code
    assert rss(worker) < before + 10 * MEGABYTE
    assert not server.find("Traceback", after=mark)


def test_many_claims(server: Server) -> None:
    """A hundred clients that claim the largest message and send none of it take no memory for it."""
    worker = server.worker_pids[0]
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(WebSocketWire(server.port, address=address)) for address in addresses(100)]
        before = rss(worker)
        for wire in wires:
            wire.write(frame(PING), header(BINARY, LIMIT) + MASK)
        for wire in wires:
            assert wire.frame().opcode == PONG
        assert rss(worker) < before + 10 * MEGABYTE


# --- the end


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"", 1000), (b"\x03\xe8", 1000), (b"\x03\xe9going away", 1001), (struct.pack("!H", 3333), 3333)],
)
def test_client_closes(echo: WebSocketWire, payload: bytes, code: int) -> None:
    """A close is answered by a close with its code, and then the server closes the connection."""
    echo.write(frame(CLOSE, payload), frame(TEXT, b"too late"))
    last = echo.frame()
    assert (last.opcode, last.payload) == (CLOSE, struct.pack("!H", code))
    assert echo.ended()


def test_app_closes(server: Server) -> None:
    """An app closes with the code and reason it wants."""
    with WebSocketWire(server.port, "/close") as wire:
        assert wire.frame() == (0x88, struct.pack("!H", 4001) + b"enough")
        wire.write(frame(CLOSE, struct.pack("!H", 4001)))
        assert wire.ended()


def test_app_closes_and_client_is_silent(server: Server) -> None:
    """An app that waits for a client that never answers its close frame does not wait forever."""
    with WebSocketWire(server.port, "/close") as wire:
        assert wire.frame().opcode == CLOSE
        assert wire.ended()


def test_app_returns(server: Server) -> None:
    """An app that returns without closing closes with 1000."""
    with WebSocketWire(server.port, "/leave") as wire:
        assert wire.frame().payload == b"bye"
        assert wire.close_code() == 1000


def test_client_vanishes(server: Server) -> None:
    """Clients that vanish, in the middle of a frame or while the app sends, leave nothing behind, nor in the log."""
    worker = server.worker_pids[0]
    get(server.port)
    before = descriptors(worker)
    mark = server.mark()
    for number in range(10):
        with WebSocketWire(server.port) as wire:
            wire.write(frame(TEXT, b"hello")[: number + 1])
        with WebSocketWire(server.port, "/push") as wire:
            wire.frame()
            if number % 2:
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: descriptors(worker) <= before)
    assert not server.find("Traceback|Error handling", after=mark)


def test_sigterm() -> None:
    """When the server stops, WebSockets are closed with 1012, which tells clients to come back, and it exits with 0."""
    with Server("echo_websocket:app", workers=2) as server, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(WebSocketWire(server.port, address=address)) for address in addresses(8)]
        server.signal(signal.SIGTERM)
        for wire in wires:
            assert wire.close_code() == 1012
            wire.close()
        assert server.wait() == 0


def test_sigterm_and_silent_client() -> None:
    """A client that doesn't answer the close frame does not hold the server up until --graceful-timeout."""
    with Server("echo_websocket:app", workers=1, args=["--graceful-timeout", "60"]) as server:
        with WebSocketWire(server.port) as wire:
            server.signal(signal.SIGTERM)
            assert wire.frame() == (0x80 | CLOSE, struct.pack("!H", 1012))
            assert server.wait(timeout=20) == 0


def test_limit_of_engineio() -> None:
    """Without a limit of ours, that of the app's Engine.IO server is taken, from wherever it is."""
    with Server("echo_websocket:app", workers=1, env={"ENGINEIO_LIMIT": "5000"}) as server:
        with WebSocketWire(server.port) as wire:
            wire.write(frame(BINARY, bytes(5000)))
            assert wire.frame().payload == bytes(5000)
            wire.write(header(BINARY, 5001))
            assert wire.close_code() == 1009


# --- fairness


def test_greedy_client(server: Server) -> None:
    """A client that sends pings without a pause gets no more than its share: the others go on."""
    flood = memoryview(frame(PING) * 100_000)
    with (
        Wire(server.port) as other,
        WebSocketWire(server.port) as greedy,
        selectors.DefaultSelector() as selector,
    ):
        other.get()
        greedy.sock.setblocking(False)
        selector.register(greedy.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        unsent, sent = flood, 0
        asked = False
        ready: dict[object, int] = {}
        while other.sock not in ready:
            ready = {key.fileobj: events for key, events in selector.select(20)}
            events = ready.get(greedy.sock, 0)
            if events & selectors.EVENT_READ:
                greedy.sock.recv(MEGABYTE)
                if not asked:
                    asked = True
                    other.send("GET / HTTP/1.1", "Host: a")
                    selector.register(other.sock, selectors.EVENT_READ)
            if events & selectors.EVENT_WRITE:
                size = greedy.sock.send(unsent[:MEGABYTE])
                sent += size
                unsent = unsent[size:] or flood
            assert sent < 5 * MEGABYTE, "the other was not served"
        assert other.answer().json()["slot"] == 0


def test_slow_reader(server: Server) -> None:
    """A client that does not read what is pushed to it holds up nobody and takes no memory."""
    worker = server.worker_pids[0]
    with WebSocketWire(server.port, "/push"):
        before = rss(worker)
        for address in addresses(20):
            with connect(server.port, address) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(12) == b"HTTP/1.1 200"
        assert rss(worker) < before + 10 * MEGABYTE
