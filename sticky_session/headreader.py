"""Reading a request's head, up to its empty line and no further. Knows a buffered reader, and no socket."""

from __future__ import annotations

from sticky_session.reader import Reader
from sticky_session.request import BadRequest, Limits


def arrived_head(reader: Reader) -> bytes | None:
    """The next head as it was sent, with the empty line at its end.

    :param reader: the connection, something having arrived
    :returns: None if it has not arrived whole, or not in the way that most do
    :raises BadRequest: it can't be a head
    """
    buffered = reader.peek()
    end = buffered.find(b"\r\n\r\n")
    if end > 0 and buffered[0] != 13:
        return reader.read(end + 4)
    if buffered[0] < 32 and buffered[0] != 13:
        # TLS, mostly.
        raise BadRequest(400, f"the request begins with {buffered[:16]!r}")
    return None


def read_head(reader: Reader, limits: Limits) -> bytes | None:
    """The next head, however it arrives, with the empty line at its end, but without empty lines before it.

    :param reader: the connection
    :returns: None if the connection ends before the head does
    :raises BadRequest: it can't be a head, or is larger than its limits
    """
    lines: list[bytes] = []
    left = limits.head_bytes
    while True:
        longest = (limits.field_size if lines else limits.line) or left
        line = reader.readline(min(longest, left) + 2)
        if not line.endswith(b"\n"):
            if len(line) < min(longest, left) + 2:
                return None
            raise BadRequest(431 if lines else 414, "a line longer than its limit", b"".join(lines) or line)
        if not line.endswith(b"\r\n"):
            raise BadRequest(400, "a line that ends without CR", b"".join(lines) or line)
        if line != b"\r\n":
            lines.append(line)
        elif lines:
            return b"".join(lines) + line
        left -= len(line)
        if left <= 0 or len(lines) > limits.fields + 1:
            raise BadRequest(431, "a head larger than its limits", b"".join(lines))
