"""The WebSocket's parts, and the whole of it against a client made of bytes."""

from __future__ import annotations

import base64
import io
import struct
from dataclasses import dataclass, field
from typing import Any

import pytest
from geventwebsocket.exceptions import WebSocketError
from hypothesis import given
from hypothesis import strategies as st

from sticky_session.request import Limits, parse
from sticky_session.websocket import (
    HandshakeError,
    WebSocket,
    accept_key,
    frame_header,
    is_valid_close_code,
    unmask,
    wants_websocket,
)

MASK = b"\x01\xa2\x43\xf4"


# --- masks, headers, codes


@given(payload=st.binary(max_size=300), mask=st.binary(min_size=4, max_size=4))
def test_unmask(payload: bytes, mask: bytes) -> None:
    """RFC 6455 section 5.3: byte i is xored with byte i modulo 4 of the mask."""
    assert unmask(payload, mask) == bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


@given(payload=st.binary(max_size=100), mask=st.binary(min_size=4, max_size=4))
def test_unmask_twice(payload: bytes, mask: bytes) -> None:
    """Masking is its own inverse."""
    assert unmask(unmask(payload, mask), mask) == payload


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "82 00"),
        (125, "82 7d"),
        (126, "82 7e 007e"),
        (65535, "82 7e ffff"),
        (65536, "82 7f 0000000000010000"),
        (2**33, "82 7f 0000000200000000"),
    ],
)
def test_frame_header(size: int, expected: str) -> None:
    """RFC 6455 section 5.2: final, unmasked, and the length in the fewest bytes."""
    assert frame_header(2, size) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("code", "valid"),
    [
        (0, False), (999, False), (1000, True), (1001, True), (1002, True), (1003, True), (1004, False),
        (1005, False), (1006, False), (1007, True), (1011, True), (1012, True), (1013, True), (1014, True),
        (1015, False), (1016, False), (1100, False), (2000, False), (2999, False), (3000, True), (4999, True),
        (5000, False), (65535, False),
    ],
)  # fmt: skip
def test_close_codes(code: int, valid: bool) -> None:
    """RFC 6455 section 7.4: reserved codes are never on the wire; 3000 to 4999 are the apps'."""
    assert is_valid_close_code(code) is valid


# --- the handshake


@pytest.mark.parametrize(
    ("line", "fields", "wanted"),
    [
        ("GET / HTTP/1.1", "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade", True),
        ("GET / HTTP/1.1", "Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0", True),
        ("GET / HTTP/1.1", "Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1", False),
        ("GET / HTTP/1.1", "Upgrade: websocket\r\nConnection: upgrade\r\nTransfer-Encoding: chunked", False),
        ("GET / HTTP/1.1", "Upgrade: websocket\r\nConnection: keep-alive", False),
        ("GET / HTTP/1.1", "Upgrade: websocket", False),
        ("GET / HTTP/1.1", "Upgrade: h2c\r\nConnection: upgrade", False),
        ("GET / HTTP/1.0", "Upgrade: websocket\r\nConnection: upgrade", False),
        ("POST / HTTP/1.1", "Upgrade: websocket\r\nConnection: upgrade", False),
    ],
)
def test_wants_websocket(line: str, fields: str, wanted: bool) -> None:
    """RFC 6455 section 4.2.1; a request with a body is none, since its body would be taken for frames."""
    assert wants_websocket(parse(f"{line}\r\nHost: a\r\n{fields}", Limits(0, 100, 0))) is wanted


def handshake(key: str | None = "dGhlIHNhbXBsZSBub25jZQ==", version: str | None = "13") -> dict[str, str]:
    fields = {"HTTP_SEC_WEBSOCKET_KEY": key, "HTTP_SEC_WEBSOCKET_VERSION": version}
    return {name: value for name, value in fields.items() if value is not None}


def test_accept_key() -> None:
    """The example of RFC 6455 section 1.3."""
    assert accept_key(handshake()) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("version", [None, "", "8", "12", "14", "13, 8", "013"])
def test_bad_version(version: str | None) -> None:
    """Another version is 426 with the one we speak, and with what to upgrade to (RFC 9110 section 15.5.22)."""
    with pytest.raises(HandshakeError) as caught:
        accept_key(handshake(version=version))
    assert caught.value.status.startswith("426 ")
    assert ("Sec-WebSocket-Version", "13") in caught.value.headers
    assert ("Upgrade", "websocket") in caught.value.headers


@pytest.mark.parametrize(
    "key",
    [None, "", "x", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZ===", "AAAA", "A" * 24, "\xff" * 24, "*" * 24],
)
def test_bad_key(key: str | None) -> None:
    """A key that is not 16 bytes in base64 is 400."""
    with pytest.raises(HandshakeError) as caught:
        accept_key(handshake(key=key))
    assert caught.value.status == "400 Bad Request"


@given(nonce=st.binary(min_size=16, max_size=16))
def test_any_nonce(nonce: bytes) -> None:
    """Any 16 bytes are a key, and the answer is 20 bytes in base64."""
    assert len(base64.b64decode(accept_key(handshake(key=base64.b64encode(nonce).decode())))) == 20


# --- a WebSocket whose client is a string of bytes


@dataclass
class FakeConnection:
    """What a WebSocket wants of its connection."""

    rfile: io.BytesIO
    sent: bytearray = field(default_factory=bytearray)
    deadline: float = float("inf")

    def send(self, data: bytes) -> None:
        self.sent += data


@dataclass
class FakeHandler:
    """What a WebSocket wants of its HTTP handler."""

    connection: FakeConnection
    accepted: str = ""

    def send_upgrade(self, accept: str) -> None:
        self.accepted = accept


def websocket(data: bytes, max_bytes: int = 1000) -> tuple[WebSocket, FakeHandler]:
    handler: Any = FakeHandler(FakeConnection(io.BytesIO(data)))
    return WebSocket({}, handler, "accepted", max_bytes), handler


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, mask: bytes = MASK) -> bytes:
    """A frame as a client sends it."""
    first, second, *rest = frame_header(opcode, len(payload))
    return bytes((first if final else first & 0x7F, second | 0x80, *rest)) + mask + unmask(payload, mask)


def fragments(opcode: int, *payloads: bytes) -> bytes:
    """A message in pieces."""
    last = len(payloads) - 1
    return b"".join(frame(0 if i else opcode, payload, final=i == last) for i, payload in enumerate(payloads))


def close_code(handler: FakeHandler) -> int | None:
    """The code of the close frame that the server sent last."""
    sent = bytes(handler.connection.sent)
    return struct.unpack("!H", sent[-2:])[0] if sent[-4:-2] == b"\x88\x02" else None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frame(1, "é".encode()), "é"),
        (frame(2, b"\xff\0"), b"\xff\0"),
        (frame(1), ""),
        (frame(2), b""),
        (frame(2, bytes(200)), bytes(200)),
        (frame(1, b"x" * 1000), "x" * 1000),
        (fragments(1, b"a\xc3", b"", b"\xa9b"), "aéb"),
        (frame(2, b"a", final=False) + frame(9) + frame(0, b"b"), b"ab"),
        (frame(10, b"unasked for") + frame(1, b"a"), "a"),
        (fragments(1, *[b"x"] * 1000), "x" * 1000),
    ],
)
def test_receive(data: bytes, message: object) -> None:
    """A message comes out as it went in, text as str and binary as bytearray, in however many pieces."""
    socket, handler = websocket(data)
    received = socket.receive()
    assert received == message
    assert isinstance(received, str if isinstance(message, str) else bytearray)
    assert close_code(handler) is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x01a", 1002),  # not masked
        (b"\x81\x00", 1002),
        (b"\xc1\x80" + MASK, 1002),  # reserved bits
        (b"\xa1\x80" + MASK, 1002),
        (b"\x91\x80" + MASK, 1002),
        *((frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        (frame(0, b"a"), 1002),  # continues nothing
        (frame(1, b"a", final=False) + frame(1, b"b"), 1002),  # a message in a message
        (frame(2, b"a", final=False) + frame(1, b"b", final=False), 1002),
        (frame(9, final=False), 1002),  # control frames are whole and short
        (frame(8, final=False), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(8, b"\x03\xe8" + b"x" * 124), 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, b"\x03\xed"), 1002),
        (frame(8, b"\x03\xe8\xff"), 1007),
        (frame(1, b"\xff"), 1007),
        (frame(1, b"\xc3"), 1007),
        (frame(1, b"\xed\xa0\x80"), 1007),  # a surrogate
        (frame(1, b"\xc0\x80"), 1007),  # overlong
        (frame(1, b"\xf4\x90\x80\x80"), 1007),  # beyond Unicode
        (fragments(1, b"\xc3", b"\x28"), 1007),
        (frame(1, b"a\xff", final=False), 1007),  # not only when the last fragment comes
        (frame(1, b"\xc3", final=False) + frame(0, b"\x28", final=False), 1007),
        (frame(2, b"x" * 1001), 1009),
        (fragments(1, b"x" * 600, b"x" * 401), 1009),
        (b"\x82\xff" + struct.pack("!Q", 1 << 30), 1009),
        (b"\x82\xff" + struct.pack("!Q", (1 << 63) - 1), 1009),
        (b"\x82\xff" + b"\xff" * 8, 1002),  # the highest bit of 64
        (b"\x82\xff" + struct.pack("!Q", 65535) + MASK, 1002),  # a length in more bytes than it needs
        (b"\x82\xfe\x00\x7d" + MASK, 1002),
        (b"\x82\xfe\xff\xff", 1009),
    ],
)
def test_violation(data: bytes, code: int) -> None:
    """Every violation ends the connection with its own code; what comes after it is not looked at."""
    socket, handler = websocket(data + frame(1, b"never"))
    assert socket.receive() is None
    assert close_code(handler) == code
    assert socket.closed
    with pytest.raises(WebSocketError):
        socket.receive()


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"", 1000), (b"\x03\xe8", 1000), (b"\x03\xe9bye", 1001), (b"\x0f\xa0" + "é".encode(), 4000)],
)
def test_close_is_answered(payload: bytes, code: int) -> None:
    """A close is answered with the code that came, or with 1000 if none did."""
    socket, handler = websocket(frame(8, payload))
    assert socket.receive() is None
    assert close_code(handler) == code


@given(data=st.binary(max_size=125))
def test_ping(data: bytes) -> None:
    """A ping is answered with a pong that has the same bytes, before the next message is given out."""
    socket, handler = websocket(frame(9, data) + frame(1, b"a"))
    assert socket.receive() == "a"
    assert bytes(handler.connection.sent) == bytes((0x8A, len(data))) + data


@pytest.mark.parametrize("cut", range(1, 12))
def test_connection_ends_in_frame(cut: int) -> None:
    """A client that is gone in the middle of a frame is the end, and nothing is sent to it."""
    socket, handler = websocket(frame(1, b"hello!")[:cut])
    assert socket.receive() is None
    assert socket.closed
    assert handler.connection.sent == b""


@given(data=st.binary(max_size=100), max_bytes=st.integers(0, 50))
def test_any_bytes(data: bytes, max_bytes: int) -> None:
    """Whatever a client sends, there are messages within the limit, then an end; no error reaches the app."""
    socket, _ = websocket(data, max_bytes)
    for _ in range(len(data) + 1):
        message = socket.receive()
        if message is None:
            break
        assert len(message.encode() if isinstance(message, str) else message) <= max_bytes
    assert message is None
    assert socket.closed


# --- sending


@pytest.mark.parametrize(
    ("message", "binary", "sent"),
    [
        ("é", None, b"\x81\x02\xc3\xa9"),
        (b"\xff", None, b"\x82\x01\xff"),
        (bytearray(b"a"), None, b"\x82\x01a"),
        (b"a", False, b"\x81\x01a"),
        ("a", True, b"\x82\x01a"),
        (5, False, b"\x81\x015"),
        (None, False, b"\x81\x00"),
    ],
)
def test_send(message: object, binary: bool | None, sent: bytes) -> None:
    """Text goes out as text, bytes as binary, unless the app says otherwise; as with gevent-websocket."""
    socket, handler = websocket(b"")
    socket.send(message, binary)
    assert handler.connection.sent == sent


def test_first_use_accepts() -> None:
    """The handshake is answered by the first use, once, and not before."""
    socket, handler = websocket(frame(1, b"a"))
    assert handler.accepted == ""
    socket.receive()
    assert handler.accepted == "accepted"


def test_close_once() -> None:
    """Closing twice sends one close frame; its reason is cut to what a control frame can have."""
    socket, handler = websocket(b"")
    socket.close(4000, "x" * 200)
    socket.close()
    assert bytes(handler.connection.sent) == b"\x88\x7d\x0f\xa0" + b"x" * 123


@pytest.mark.parametrize("reason", ["é" * 100, "x" + "é" * 100])
def test_close_reason_is_text(reason: str) -> None:
    """A reason that is too long is cut between characters, since it must be valid UTF-8."""
    socket, handler = websocket(b"")
    socket.close(1000, reason)
    assert reason.startswith(handler.connection.sent[4:].decode())
    assert len(handler.connection.sent) <= 2 + 125


def test_send_after_close() -> None:
    """Sending on a closed WebSocket is the error that apps of gevent-websocket expect."""
    socket, _ = websocket(b"")
    socket.close()
    with pytest.raises(WebSocketError):
        socket.send("a")
