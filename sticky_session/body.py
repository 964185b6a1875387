"""A request's body, as the app reads it: ``wsgi.input`` of PEP 3333. Knows a reader, and no socket.

pywsgi's own lets a bare LF end a chunk extension or a trailer, which another server may read differently (request
smuggling), allocates what a client merely claims to send, and makes a client that goes away look like an app's error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Protocol

# Read at once, so that a length that is only claimed takes no memory.
PIECE_BYTES = 64 * 1024
# Of a chunk's header with its extension, and of one trailer field.
MAX_LINE_BYTES = 4096
MAX_TRAILER_FIELDS = 100

# RFC 9112 section 7.1; space only before an extension, not before the line's end.
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?\r\n").fullmatch
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n").fullmatch


class Source(Protocol):
    """Where the body comes from."""

    def read(self, size: int, /) -> bytes:
        """So many bytes, fewer only at the end."""

    def readline(self, size: int, /) -> bytes:
        """The next line, or so many bytes of it."""


class BodyError(OSError):
    """The body broke off or is malformed. An OSError, since that is what apps and frameworks expect here.

    :ivar status: the HTTP status to answer with
    """

    status = 400


class BodyTimeoutError(BodyError):
    """The client has stopped sending in the middle of the body."""

    status = 408


class Body:
    """The body of one request.

    :param reader: the connection, at the body's first byte
    :param length: the body's length in bytes
    :param chunked: whether it comes in chunks instead; ``length`` is 0 then
    :param invite: sends 100 Continue; None if the client doesn't wait for it
    :ivar failure: what has gone wrong; None if nothing has
    :ivar rfile: the connection, under the name that pywsgi's input has it; simple-websocket takes it over
    """

    __slots__ = ("_chunked", "_invite", "_left", "failure", "rfile")

    def __init__(
        self, reader: Source, length: int, *, chunked: bool = False, invite: Callable[[], None] | None = None
    ) -> None:
        self.rfile = reader
        # Of the whole body, or of the chunk.
        self._left = length
        self._chunked = chunked
        self._invite = invite
        self.failure: BodyError | None = None

    @property
    def left(self) -> float:
        """How many bytes nobody has read; infinite where that can't be known."""
        return float("inf") if self._chunked or self.failure else self._left

    @property
    def awaited(self) -> bool:
        """Whether the client still waits for 100 Continue before it sends anything."""
        return self._invite is not None

    def read(self, size: int | None = -1) -> bytes:
        """The next ``size`` bytes, fewer only at the body's end; all of them without a size.

        :raises BodyError: it broke off or is malformed
        """
        wanted = float("inf") if size is None or size < 0 else size
        # Not a list to be joined, which would be a second copy of a large body; what comes in one piece is none at all.
        whole: BytesIO | None = None
        while wanted and self._has_more():
            piece = self._take(self.rfile.read, int(min(wanted, self._left, PIECE_BYTES)))
            wanted -= len(piece)
            if whole is None:
                whole = BytesIO(piece)
                whole.seek(len(piece))
            else:
                whole.write(piece)
        return b"" if whole is None else whole.getvalue()

    def readline(self, size: int | None = -1) -> bytes:
        """The next line with its end, or at most ``size`` bytes of it.

        :raises BodyError: it broke off or is malformed
        """
        wanted = float("inf") if size is None or size < 0 else size
        pieces = []
        while wanted and self._has_more():
            piece = self._take(self.rfile.readline, int(min(wanted, self._left, PIECE_BYTES)))
            pieces.append(piece)
            wanted -= len(piece)
            if piece.endswith(b"\n"):
                break
        return b"".join(pieces)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """The lines that are left, or as many as make ``hint`` bytes together.

        :raises BodyError: it broke off or is malformed
        """
        lines = []
        size = 0
        for line in self:
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint <= size:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def discard(self) -> None:
        """Read what is left and throw it away.

        :raises BodyError: it broke off or is malformed
        """
        while self.read(PIECE_BYTES):
            pass

    def _has_more(self) -> bool:
        """Whether there is a byte to be read now; reads the next chunk's header for that."""
        if self.failure:
            raise BodyError("the request's body could not be read")
        if self._invite is not None and (self._left or self._chunked):
            self._invite()
            self._invite = None
        if not self._left and self._chunked:
            self._read_chunk_header()
        return self._left > 0

    def _take(self, read: Callable[[int], bytes], size: int) -> bytes:
        piece = self._wait_for(read, size)
        if not piece:
            raise self._error("the client went away in the middle of the request's body")
        self._left -= len(piece)
        if not self._left and self._chunked and self._wait_for(self.rfile.read, 2) != b"\r\n":
            raise self._error("a chunk that is longer than it says")
        return piece

    def _read_chunk_header(self) -> None:
        found = _CHUNK(self._wait_for(self.rfile.readline, MAX_LINE_BYTES))
        if found is None:
            raise self._error("a malformed chunk")
        self._left = int(found[1], 16)
        if self._left:
            return
        for _ in range(MAX_TRAILER_FIELDS):
            line = self._wait_for(self.rfile.readline, MAX_LINE_BYTES)
            if line == b"\r\n":
                self._chunked = False
                return
            if not _TRAILER(line):
                raise self._error("a malformed trailer field")
        raise self._error(f"more than {MAX_TRAILER_FIELDS} trailer fields")

    def _wait_for(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except TimeoutError:
            self.failure = BodyTimeoutError("the client has stopped sending in the middle of the request's body")
        except OSError as error:
            self.failure = BodyError(f"the connection broke in the middle of the request's body: {error}")
        raise self.failure

    def _error(self, message: str) -> BodyError:
        self.failure = BodyError(message)
        return self.failure
