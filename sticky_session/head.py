"""The beginning of a request, read without I/O: which client is it for? Pure.

The listener peeks, so each time it sees everything from the beginning again, a little more of it. A worker, which has
parsed the whole head (:mod:`.rehoming`), must come to the same answer, so it depends on nothing but the head's bytes:

- Empty lines before the request line are skipped (RFC 9112 section 2.2).
- Lines end with CRLF or a bare LF; the first empty line ends the head.
- A line that begins with a space or a tab continues the field before it (obs-fold, RFC 9112 section 5.2).
- A field is the header's if its line begins with the name, in any case, and a colon. Space before the colon makes
  it another, invalid one (RFC 9112 section 5.1), which the worker refuses.
- The header may come again, so no answer comes before the head's end, but for what is no HTTP: that is told by the
  request line, or by a control character in what could become one.

No byte is looked at twice but for the two that may be the beginning of the end, so that a head that arrives byte by
byte costs little more than one that arrives at once.
"""

from __future__ import annotations

import enum
import re
from typing import TypeAlias

from sticky_session.forwarded import ClientHeader

_EMPTY_LINES = re.compile(rb"(?:\r?\n)*").match
# As strict as the worker is: request.parse() refuses what does not match (RFC 9112 section 3).
_REQUEST_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e\x80-\xff]+ HTTP/[0-9]\.[0-9]\r?\n").match
# The same for one that is not finished; a CR may be the beginning of its end.
_NO_METHOD = re.compile(rb"[^\r!#$%&'*+\-.^_`|~0-9A-Za-z]").match
_CONTROL = re.compile(rb"[\x00-\x0c\x0e-\x1f\x7f]|\r(?!\Z)").search


class Verdict(enum.Enum):
    """What a reader answers instead of an address."""

    #: Nothing can be said yet.
    MORE = enum.auto()
    #: There is no usable address: use the peer's.
    PEER = enum.auto()
    #: The head is larger than the limit.
    TOO_LARGE = enum.auto()


#: A client's address as text, or why there is none.
Answer: TypeAlias = "str | Verdict"


class AddressFinder:
    """Finds the client's address in heads. One serves for all connections.

    :param header: the header that tells it
    :param limit: the most bytes that a head may have, empty lines before and after it included
    """

    __slots__ = ("_values", "header", "limit")

    def __init__(self, header: ClientHeader, limit: int) -> None:
        self.header = header
        self.limit = limit
        # From the LF that ends the line before: an anchored pattern would be tried at every byte.
        pattern = rf"\n{re.escape(header.name)}:([^\n]*(?:\n[ \t][^\n]*)*)"
        self._values = re.compile(pattern.encode("ascii"), re.IGNORECASE).findall

    def find(self, data: bytes, start: int, end: int) -> str | None:
        """The client's address that a whole head tells; None if it tells none that can be used.

        :param start: anywhere in the request line
        :param end: where the head ends, the end of its last line left out
        """
        values = self._values(data, start, end)
        return self.header.address([str(value, "latin-1") for value in values]) if values else None

    def reader(self) -> HeadReader:
        """A reader for one head."""
        return HeadReader(self)


class HeadReader:
    """Reads one head, from the beginning of a connection or after another request.

    :ivar answer: the last one
    """

    __slots__ = ("_finder", "_line_end", "_seen", "_start", "answer")

    def __init__(self, finder: AddressFinder) -> None:
        self.answer: Answer = Verdict.MORE
        self._finder = finder
        # Up to where what has been seen can't be the end of what is looked for.
        self._seen = 0
        # Where the request line begins, as far as known.
        self._start = 0
        # The LF of the request line; -1 until it has been seen.
        self._line_end = -1

    def feed(self, seen: bytes) -> Answer:
        """Say what is known now.

        Whatever the bytes, and however they are cut, there is an answer, and the last one is the same. Once it is
        something else than :attr:`Verdict.MORE`, it stays.

        :param seen: all bytes from the beginning, those of the calls before included
        """
        if self.answer is Verdict.MORE and seen:
            stop = min(len(seen), self._finder.limit)
            answer = self._read(seen, stop)
            if answer is Verdict.MORE and stop == self._finder.limit:
                answer = Verdict.TOO_LARGE
            self.answer = answer
        return self.answer

    def _read(self, seen: bytes, stop: int) -> Answer:
        if self._line_end < 0:
            verdict = self._find_line(seen, stop)
            if verdict is not None:
                return verdict
        begin = max(self._line_end, self._seen - 2)
        end = seen.find(b"\n\r\n", begin, stop)
        bare = seen.find(b"\n\n", begin, stop if end < 0 else end)
        if bare >= 0:
            end = bare
        if end < 0:
            self._seen = stop
            return Verdict.MORE
        return self._finder.find(seen, self._line_end, end) or Verdict.PEER

    def _find_line(self, seen: bytes, stop: int) -> Verdict | None:
        """Look for the request line's end; None once it has been seen."""
        start = self._start
        if seen.startswith((b"\r", b"\n"), start, stop):
            empty = _EMPTY_LINES(seen, start, stop)
            assert empty is not None
            start = self._start = empty.end()
        line_end = seen.find(b"\n", max(start, self._seen), stop)
        if line_end >= 0:
            if not _REQUEST_LINE(seen, start, stop):
                return Verdict.PEER
            self._line_end = self._seen = line_end
            return None
        # The CR that was the last byte the last time may now be one that ends no line.
        if _NO_METHOD(seen, start, stop) or _CONTROL(seen, max(start, self._seen - 1), stop):
            return Verdict.PEER
        self._seen = stop
        return Verdict.MORE
