"""The corpus of requests in ``tests/corpus``: reading it, sending a case, and telling what came back.

A file has one list of cases for each section of an RFC. A case is a mapping:

``name``
    What is sent, in words.
``send``
    The bytes, a character for each (latin-1); ``<<x*5000>>`` stands for x 5000 times. A list is sent piece by piece,
    each after the head of a response to the ones before has come.
``cut``
    True if the client sends nothing more. Otherwise it sends one more request behind the case, the probe, and its
    answer tells whether the connection has stayed open, and that both sides agree on where the case ended.
``ours``
    The statuses of the responses in order, then ``open`` or ``close``. A status with ``!`` is a response that broke
    off, one with ``+`` has a body where none may be.
``saw``
    What the app has seen of the first request, or a list, of several: only what is named is compared. Names are
    ``method``, ``path``, ``query``, ``target``, ``protocol``, ``body``, or those of the environ. What has not been
    there is null.
``pywsgi``, ``pywsgi_saw``
    The same of gevent's pywsgi as gunicorn runs it (``-k gevent_pywsgi``), where it differs.
``because``
    Which of the differences in ``differences.yaml`` it is; there each is defended.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness import connect

CORPUS = Path(__file__).parent.parent / "corpus"
PROBE = b"GET /probe HTTP/1.1\r\nHost: probe\r\n\r\n"


class Seen(NamedTuple):
    """What came back: as the corpus writes it, and what the app saw of each request but the probe."""

    outcome: str
    saw: list[dict[str, str]]


@dataclass(frozen=True)
class Case:
    """One case; see the module's docstring."""

    section: str
    name: str
    pieces: tuple[bytes, ...]
    cut: bool
    ours: Seen
    pywsgi: Seen | None
    because: str | None

    def expects(self, expected: Seen, observed: Seen) -> Seen:
        """What was observed, reduced to what is expected to have been seen."""
        pairs = zip(expected.saw, observed.saw, strict=False)
        return Seen(observed.outcome, [{name: saw.get(name) for name in names} for names, saw in pairs])


class Response(NamedTuple):
    """A response; ``mark`` is what follows its status in the corpus."""

    status: int
    fields: list[tuple[str, str]]
    mark: str = ""

    def values(self, name: str) -> list[str]:
        """The values of all fields of this name."""
        return [value for key, value in self.fields if key.lower() == name]

    @property
    def saw(self) -> dict[str, str]:
        """What the app has seen; empty if it was not the app that answered."""
        return json.loads(self.values("x-saw")[0]) if self.values("x-saw") else {}

    @property
    def says_close(self) -> bool:
        options = ",".join(self.values("connection")).lower().split(",")
        return "close" in [option.strip() for option in options]


# --- reading


def _bytes(text: str) -> bytes:
    def repeat(found: re.Match[str]) -> str:
        return found[1] * int(found[2])

    return re.sub(r"<<(.+?)\*(\d+)>>", repeat, text, flags=re.DOTALL).encode("latin-1")


def _seen(outcome: str, saw: Any) -> Seen:
    return Seen(outcome, saw if isinstance(saw, list) else [saw] if saw else [])


def _case(section: str, data: dict[str, Any]) -> Case:
    known = {"name", "send", "cut", "ours", "saw", "pywsgi", "pywsgi_saw", "because"}
    assert data.keys() <= known, f"{section}: {data['name']}: {data.keys() - known}"
    send = data["send"]
    ours = _seen(data["ours"], data.get("saw"))
    pywsgi = None
    if "pywsgi" in data or "pywsgi_saw" in data:
        pywsgi = _seen(data.get("pywsgi", data["ours"]), data.get("pywsgi_saw", data.get("saw")))
    pieces = tuple(map(_bytes, send if isinstance(send, list) else [send]))
    return Case(section, data["name"], pieces, data.get("cut", False), ours, pywsgi, data.get("because"))


@cache
def differences() -> dict[str, dict[str, str]]:
    """The kinds of differences to pywsgi: what it does, and why ours does not."""
    found: dict[str, dict[str, str]] = yaml.safe_load((CORPUS / "differences.yaml").read_text())
    return found


@cache
def sections() -> dict[str, list[Case]]:
    """All cases by section."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, list[Case]] = {}
    for path in sorted(CORPUS.glob("rfc*.yaml")):
        # A loader that makes nothing but plain values.
        for section, listed in yaml.load(path.read_text(), loader).items():  # noqa: S506
            assert section not in found, f"{section} is in two files"
            found[section] = [_case(section, data) for data in listed]
    return found


def cases() -> list[Case]:
    """All cases."""
    return [case for listed in sections().values() for case in listed]


# --- sending


@contextlib.contextmanager
def _reset_is_end() -> Iterator[None]:
    """A server that closes while something is on its way to it resets the connection."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            raise


def exchange(port: int, case: Case) -> bytes:
    """Send a case, and return all that comes back."""
    received = b""
    with connect(port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with _reset_is_end():
            for piece in case.pieces[:-1]:
                sock.sendall(piece)
                while b"\r\n\r\n" not in received and (data := sock.recv(65536)):
                    received += data
            sock.sendall(case.pieces[-1] + (b"" if case.cut else PROBE))
            sock.shutdown(socket.SHUT_WR)
        with _reset_is_end():
            while data := sock.recv(65536):
                received += data
    return received


# --- telling


def parse(received: bytes, to_head: bool) -> list[Response]:
    """The responses in what came back.

    :param to_head: whether the first one is to HEAD; of the others the app says it
    :raises AssertionError: something else came
    """
    responses = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", head)
        assert end, f"a head that broke off: {received!r}"
        assert found, f"no response: {received!r}"
        fields = []
        for line in head.split(b"\r\n")[1:]:
            name, colon, value = line.decode("latin-1").partition(":")
            assert colon, f"a header line {line!r}"
            fields.append((name, value.strip()))
        response = Response(int(found[1]), fields)
        to_head = response.saw.get("method", "HEAD" if to_head else "") == "HEAD"
        bodiless = to_head or response.status < 200 or response.status in (204, 304)
        mark = "+" if bodiless and rest and not rest.startswith(b"HTTP/") else ""
        size = 0 if bodiless and not mark else _body_size(response, rest)
        if size is None or size > len(rest):
            mark, size = "!", len(rest)
        received = rest[size:]
        responses.append(response._replace(mark=mark))
        to_head = to_head and response.status < 200
    return responses


def _body_size(response: Response, data: bytes) -> int | None:
    """How many bytes the body at the beginning of the data has; None if it broke off."""
    if not response.values("transfer-encoding"):
        lengths = response.values("content-length")
        return int(lengths[0]) if lengths else len(data)
    end = 0
    while found := re.compile(rb"([0-9a-f]+)\r\n").match(data, end):
        size = int(found[1], 16)
        end = found.end() + size + 2
        if data[end - 2 : end] != b"\r\n":
            return None
        if not size:
            return end
    return None


def tell(case: Case, received: bytes) -> tuple[Seen, list[Response]]:
    """What came back in the corpus's words, and the responses to the case, without the one to the probe."""
    responses = parse(received, case.pieces[0].startswith(b"HEAD "))
    end = "close"
    if not case.cut and responses and responses[-1].saw.get("path") == "/probe":
        end = "open"
        responses.pop()
    words = [f"{response.status}{response.mark}" for response in responses]
    return Seen(" ".join([*words, end]), [response.saw for response in responses if response.status >= 200]), responses
