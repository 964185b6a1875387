"""A WebSocket client that sends frames as they are given, the wrong ones too."""

from __future__ import annotations

import struct
from typing import NamedTuple

from harness import ADDRESS
from wire import Answer, Wire

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
HANDSHAKE = (
    "Host: test",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
MASK = b"\x12\x34\xab\xcd"


class Frame(NamedTuple):
    """A frame from the server."""

    first: int
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F


def header(opcode: int, size: int, *, final: bool = True, masked: bool = True) -> bytes:
    """A frame's header, as long as its size needs."""
    first = opcode | (0x80 if final else 0)
    mask = 0x80 if masked else 0
    if size < 126:
        return struct.pack("!BB", first, mask | size)
    if size < 1 << 16:
        return struct.pack("!BBH", first, mask | 126, size)
    return struct.pack("!BBQ", first, mask | 127, size)


def frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """A masked frame."""
    size = len(payload)
    key = (MASK * (size // 4 + 1))[:size]
    # As numbers, all at once: the tests have some megabytes masked before they begin.
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
    return header(opcode, size, final=final) + MASK + masked


class WebSocketWire(Wire):
    """A WebSocket, its handshake done."""

    def __init__(self, port: int, path: str = "/echo", address: str = ADDRESS, *, timeout: float = 20.0) -> None:
        super().__init__(port, address, timeout=timeout)
        try:
            self.accepted = self.handshake(path)
            assert self.accepted.status == 101, self.accepted
        except BaseException:
            self.close()
            raise

    def handshake(self, path: str) -> Answer:
        self.send(f"GET {path} HTTP/1.1", *HANDSHAKE)
        return self.answer()

    def write(self, *frames: bytes) -> None:
        """Send frames in one piece."""
        self.sock.sendall(b"".join(frames))

    def frame(self) -> Frame:
        """The next frame."""
        first, second = self.exactly(2)
        size = second
        if second == 126:
            (size,) = struct.unpack("!H", self.exactly(2))
        elif second == 127:
            (size,) = struct.unpack("!Q", self.exactly(8))
        assert not second & 0x80, "a server's frames are not masked"
        return Frame(first, self.exactly(size))

    def exactly(self, size: int) -> bytes:
        data = self.file.read(size)
        assert len(data) == size, f"the connection ended after {data!r}; expected {size} bytes"
        return data

    def close_code(self) -> int:
        """Read up to the server's close frame, answer it, and wait for the connection's end."""
        while (last := self.frame()).opcode != CLOSE:
            pass
        self.write(frame(CLOSE, last.payload[:2]))
        assert self.ended(), "something came after the close frame"
        return int.from_bytes(last.payload[:2], "big")
