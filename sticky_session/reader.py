"""What a client sends, read with a buffer of our own. Knows no sockets.

An ``io.BufferedReader`` holds its whole buffer for as long as the connection is open, and can't tell what it has read
without reading more.
"""

from __future__ import annotations

from typing import Any, Protocol

# What is received at once. Together with the largest head it must fit into a frame.
BUFFER_BYTES = 8192
# The most that is received at once, however much is wanted: a client's claim takes no memory.
PIECE_BYTES = 64 * 1024


class Source(Protocol):
    """Where it comes from."""

    def receive(self, size: int, /) -> bytes:
        """Wait for something, at most ``size`` bytes; nothing at the end."""


class Reader:
    """Reads a connection.

    :param source: the connection
    :param data: what has been received of it already
    :ivar raw: the source, where simple-websocket looks for a socket
    """

    __slots__ = ("_data", "_start", "raw")

    def __init__(self, source: Source, data: bytes = b"") -> None:
        self.raw: Any = source
        self._data = data
        # How much of it has been read.
        self._start = 0

    def __bool__(self) -> bool:
        """Whether something has been received and not been read."""
        return bool(self._data)

    @property
    def left(self) -> bytes:
        """What has been received and not been read."""
        return self._data[self._start :]

    def peek(self) -> bytes:
        """The same; if that is nothing, it is waited for: then nothing is the end."""
        if not self._data:
            self._data = self.raw.receive(BUFFER_BYTES)
        return self._data[self._start :] if self._start else self._data

    def feed(self, data: bytes) -> None:
        """Something else has received more."""
        self._data = self.left + data
        self._start = 0

    def read(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        end = self._start + size
        if end < len(self._data):
            data = self._data[self._start : end]
            self._start = end
            return data
        pieces = [self.left]
        missing = end - len(self._data)
        self._data = b""
        self._start = 0
        while missing:
            piece = self.raw.receive(min(max(missing, BUFFER_BYTES), PIECE_BYTES))
            if not piece:
                break
            if len(piece) > missing:
                self._data = piece
                self._start = missing
                piece = piece[:missing]
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def readline(self, size: int) -> bytes:
        """The next line with its end, at most so many bytes of it; less only at the end."""
        while not (end := self._data.find(b"\n", self._start, self._start + size) + 1):
            if len(self._data) - self._start >= size:
                end = self._start + size
                break
            more = self.raw.receive(BUFFER_BYTES)
            if not more:
                end = len(self._data)
                break
            self.feed(more)
        return self.read(end - self._start)
