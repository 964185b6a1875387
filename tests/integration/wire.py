"""An HTTP client that sends bytes as they are given, and reads each response to its end and no further."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, NamedTuple

from harness import ADDRESS, connect


class Answer(NamedTuple):
    """A response; ``whole`` is False where the connection ended in the middle of its body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool = True

    def __getitem__(self, name: Any) -> Any:
        """The value of a header that is there at most once; None if it isn't there."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        """Whether it says that the connection closes after it."""
        return "close" in (self["Connection"] or "").lower()

    def json(self) -> Any:
        assert self.status == 200, self
        return json.loads(self.body)


class Wire:
    """A connection; a context manager."""

    def __init__(self, port: int, address: str = ADDRESS, *, timeout: float = 20.0) -> None:
        self.sock = connect(port, address, timeout=timeout)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def send(self, *lines: str | bytes, body: bytes = b"") -> None:
        """Send a request in one piece: its lines, the empty line, and the body."""
        head = b"".join((line.encode("latin-1") if isinstance(line, str) else line) + b"\r\n" for line in lines)
        self.sock.sendall(head + b"\r\n" + body)

    def get(self, path: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> Answer:
        """Send a request without a body, and read the response."""
        self.send(f"{method} {path} HTTP/{version}", "Host: test", *fields)
        return self.answer(method)

    def post(self, path: str, body: bytes, *fields: str) -> Answer:
        """Send a request with a body, and read the response."""
        self.send(f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *fields, body=body)
        return self.answer("POST")

    def answer(self, method: str = "GET") -> Answer:
        """Read the next response, to a request with this method."""
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), f"the connection brought {line!r}; expected a status line"
        status = int(line.split()[1])
        headers = []
        while (line := self.file.readline()) != b"\r\n":
            assert line.endswith(b"\r\n"), f"a header line {line!r}"
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name, value.strip()))
        head = Answer(status, headers, b"")
        if method == "HEAD" or status < 200 or status in (204, 304):
            return head
        if head["Transfer-Encoding"]:
            assert head["Content-Length"] is None
            return self._chunked(head)
        length = head["Content-Length"]
        body = self.file.read() if length is None else self.file.read(int(length))
        return head._replace(body=body, whole=length is None or len(body) == int(length))

    def _chunked(self, head: Answer) -> Answer:
        body = b""
        while size := int(self.file.readline() or b"-1", 16):
            if size < 0:
                return head._replace(body=body, whole=False)
            body += self.file.read(size)
            assert self.file.readline() == b"\r\n"
        assert self.file.readline() == b"\r\n"
        return head._replace(body=body)

    def ended(self) -> bool:
        """Wait for what comes next: True if it is the end of the connection, False if it is a byte."""
        return self.file.read(1) == b""
