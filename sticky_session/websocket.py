"""The server's side of a WebSocket (RFC 6455), as the object that gevent-websocket gives to apps.

gevent-websocket's own reads a frame of any claimed length, takes unmasked ones, unmasks byte by byte, and closes
without a code. Here every violation ends with the close code that the RFC names for it.

The opening handshake is answered when the app first uses the object, so an app that refuses (python-engineio on an
unknown session, say) answers with an HTTP status that the client can read.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import struct
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent.lock import Semaphore
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.websocket import MSG_ALREADY_CLOSED, MSG_SOCKET_DEAD
from geventwebsocket.websocket import WebSocket as GeventWebSocket

if TYPE_CHECKING:
    from sticky_session.handler import Handler
    from sticky_session.request import Head

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10

NORMAL = 1000
PROTOCOL_ERROR = 1002
INVALID_DATA = 1007
TOO_BIG = 1009
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012

# After so many frames the others get their turn: a client that sends without a pause never makes its greenlet wait.
TURN_FRAMES = 32
# How long the client may take to answer a close frame.
CLOSE_SECONDS = 10.0
# What a control frame has room for beside the code.
MAX_REASON_BYTES = 123


class HandshakeError(Exception):
    """The opening handshake can't be accepted.

    :ivar status: HTTP status line to answer with
    :ivar headers: headers to answer with
    """

    def __init__(self, status: str, headers: list[tuple[str, str]]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class _Violation(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def wants_websocket(head: Head) -> bool:
    """Whether a request that has an Upgrade field asks for a WebSocket; if not, it is a plain request."""
    return (
        head.environ["HTTP_UPGRADE"].lower() == "websocket"
        and "upgrade" in (each.strip() for each in head.environ.get("HTTP_CONNECTION", "").lower().split(","))
        and head.method == "GET"
        and head.version == "HTTP/1.1"
        # A body that the app didn't read would be taken for frames.
        and not (head.chunked or head.content_length)
    )


def accept_key(environ: dict[str, Any]) -> str:
    """Check the client's handshake (RFC 6455 section 4.2.1) and compute Sec-WebSocket-Accept.

    :raises HandshakeError: it can't be accepted
    """
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        raise HandshakeError("426 Upgrade Required", [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")])
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    try:
        nonce = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != 16:
        raise HandshakeError("400 Bad Request", [])
    # SHA-1 is what the RFC asks for; nothing here depends on its strength.
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def unmask(payload: bytes, mask: bytes) -> bytes:
    """RFC 6455 section 5.3, all bytes in one operation on large integers."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def frame_header(opcode: int, size: int) -> bytes:
    """The header of an unfragmented, unmasked frame (RFC 6455 section 5.2)."""
    if size < 126:
        return bytes((0x80 | opcode, size))
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size)
    return struct.pack("!BBQ", 0x80 | opcode, 127, size)


def is_valid_close_code(code: int) -> bool:
    """Whether a client may send this code (RFC 6455 section 7.4, and the IANA registry)."""
    return code in {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014} or 3000 <= code <= 4999


class WebSocket(GeventWebSocket):  # type: ignore[misc]
    """A WebSocket between an app and its client.

    :param handler: answers the opening handshake; its connection is taken over
    :param accept: the value of Sec-WebSocket-Accept
    :param max_bytes: the largest message taken
    """

    def __init__(self, environ: dict[str, Any], handler: Handler, accept: str, max_bytes: int) -> None:
        # Not super().__init__(): it makes a UTF-8 validator that is of no use here.
        self.environ = environ
        self.handler = handler
        self.raw_read = handler.connection.rfile.read
        self.raw_write = handler.connection.send
        self.opened = False
        self._closed = False
        self._accept = accept
        self._max_bytes = max_bytes
        self._sending = Semaphore(1)
        self._frames = 0

    def __del__(self) -> None:
        # The handler closes; the base class would try again.
        pass

    @property
    def closed(self) -> bool:
        """Whether the closing handshake has begun or the connection is gone."""
        self._open()
        return self._closed

    @closed.setter
    def closed(self, value: bool) -> None:
        self._closed = value

    def _open(self) -> None:
        if not self.opened:
            self.opened = True
            self.handler.send_upgrade(self._accept)

    # --- receiving

    def receive(self) -> str | bytearray | None:
        """The next message, text as str and binary as bytearray; None when the connection has ended.

        :raises WebSocketError: it had ended before
        """
        if self.closed:
            raise WebSocketError(MSG_ALREADY_CLOSED)
        try:
            return self._read_message()
        except _Violation as violation:
            self.close(violation.code)
        except UnicodeDecodeError:
            self.close(INVALID_DATA)
        except OSError:
            self._closed = True
        return None

    def _read_message(self) -> str | bytearray | None:
        message = bytearray()
        kind = None
        # Finds what isn't UTF-8 in a fragment without waiting for the last one.
        check = None
        while True:
            final, opcode, payload = self._read_frame(self._max_bytes - len(message))
            if opcode == _PING:
                if not self._closed:
                    self.send_frame(payload, _PONG)
            elif opcode == _CLOSE:
                self._receive_close(payload)
                return None
            elif opcode != _PONG:
                if (opcode == _CONTINUATION) != (kind is not None):
                    raise _Violation(PROTOCOL_ERROR)
                kind = kind or opcode
                message += payload
                if final:
                    break
                if kind == _TEXT:
                    check = check or codecs.getincrementaldecoder("utf-8")().decode
                    check(payload)
        return message if kind == _BINARY else message.decode("utf-8")

    def _read_frame(self, max_bytes: int) -> tuple[int, int, bytes]:
        self._frames += 1
        if self._frames % TURN_FRAMES == 0:
            gevent.sleep(0)
        first, second = self._read(2)
        opcode = first & 0x0F
        final = first & 0x80
        size = second & 0x7F
        if first & 0x70 or not second & 0x80 or opcode not in (0, 1, 2, 8, 9, 10):
            raise _Violation(PROTOCOL_ERROR)
        if opcode >= _CLOSE:
            if size > 125 or not final:
                raise _Violation(PROTOCOL_ERROR)
        elif size == 126:
            (size,) = struct.unpack("!H", self._read(2))
            if size < 126:
                raise _Violation(PROTOCOL_ERROR)
        elif size == 127:
            (size,) = struct.unpack("!Q", self._read(8))
            # In the fewest bytes, and never with the highest bit (RFC 6455 section 5.2).
            if not 1 << 16 <= size < 1 << 63:
                raise _Violation(PROTOCOL_ERROR)
        if opcode < _CLOSE and size > max_bytes:
            raise _Violation(TOO_BIG)
        mask = self._read(4)
        return final, opcode, unmask(self._read(size), mask) if size else b""

    def _read(self, size: int) -> bytes:
        data: bytes = self.raw_read(size)
        if len(data) != size:
            raise ConnectionResetError
        return data

    def _receive_close(self, payload: bytes) -> None:
        if not payload:
            self.close(NORMAL)
            return
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not is_valid_close_code(code):
            raise _Violation(PROTOCOL_ERROR)
        payload[2:].decode("utf-8")
        self.close(code)

    # --- sending

    def send_frame(self, message: str | bytes | bytearray, opcode: int) -> None:
        """Send one frame.

        :raises WebSocketError: the connection has ended
        """
        if self.closed:
            raise WebSocketError(MSG_ALREADY_CLOSED)
        self._send(message, opcode)

    def _send(self, message: str | bytes | bytearray, opcode: int) -> None:
        payload = message.encode("utf-8") if isinstance(message, str) else bytes(message)
        # Another greenlet's frame must not get into the middle of one that the socket takes piece by piece.
        with self._sending:
            try:
                self.raw_write(frame_header(opcode, len(payload)) + payload)
            except OSError:
                self._closed = True
                raise WebSocketError(MSG_SOCKET_DEAD) from None

    def send(self, message: Any, binary: bool | None = None) -> None:
        """Send a message, text unless it is bytes or ``binary`` says otherwise.

        :raises WebSocketError: the connection has ended
        """
        if binary is None:
            binary = not isinstance(message, str)
        if not binary and not isinstance(message, (str, bytes, bytearray)):
            message = str(message or "")
        self.send_frame(message, _BINARY if binary else _TEXT)

    def close(self, code: int = NORMAL, message: str | bytes = b"") -> None:
        """Begin or answer the closing handshake (RFC 6455 section 7.1.2); nothing if that has been done."""
        if self.closed:
            return
        self._closed = True
        # An app that waits in receive() would wait forever for a client that is gone without a word.
        connection = self.handler.connection
        connection.deadline = min(connection.deadline, time.monotonic() + CLOSE_SECONDS)
        reason = message.encode("utf-8") if isinstance(message, str) else bytes(message)
        if len(reason) > MAX_REASON_BYTES:
            # Not in the middle of a character.
            reason = reason[:MAX_REASON_BYTES].decode("utf-8", "ignore").encode("utf-8")
        try:
            self._send(struct.pack("!H", code) + reason, _CLOSE)
        except WebSocketError:
            # The client is gone, and that is what was wanted.
            return
