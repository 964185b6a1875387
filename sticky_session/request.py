"""Parsing request heads, and the rules by which a message's length is known. Pure.

Strict where a lenient reading could be another server's different reading (request smuggling): RFC 9112 sections 2.2,
3, 5, 6 and 11.2. What is refused here is answered with the error's status and a closed connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from typing import NamedTuple

_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_NAME = _METHOD
# VCHAR, obs-text, SP and HTAB: no control characters (RFC 9110 section 5.5).
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch
_TARGET = re.compile(r"[\x21-\x7e\x80-\xff]+").fullmatch
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]+)(.*)").fullmatch
# A host, in brackets where it is an IPv6 address, and a port (RFC 3986 section 3.2); no "@": RFC 9110 section 4.2.4 on
# user names in authorities.
_HOST = re.compile(
    r"(\[[A-Za-z0-9\-._~%!$&'()*+,;=:]+\]"
    r"|[A-Za-z0-9\-._~!$&'()*+,;=]*(?:%[0-9A-Fa-f]{2}[A-Za-z0-9\-._~!$&'()*+,;=]*)*)"
    r"(?::[0-9]*)?"
).fullmatch
_DIGITS = re.compile(r"[0-9]{1,18}").fullmatch
_VERSION = re.compile(r"HTTP/[0-9]\.[0-9]").fullmatch

_ONCE = frozenset({"CONTENT_LENGTH", "HTTP_HOST"})
_FRAMING = frozenset({"CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"})

# Names arrive in few spellings; the environ key of each is made once, but for those with an underscore. Bounded, since
# clients choose the spelling.
_KEYS: dict[str, str] = {}
_MAX_KEYS = 1024

REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    417: "Expectation Failed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}


class BadRequest(Exception):
    """The client sent something that can't be served.

    :ivar status: the HTTP status to answer with
    :ivar begun: the beginning of a head that has not been read whole
    """

    def __init__(self, status: int, message: str, begun: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.begun = begun


def error_response(status: int, *, to_head: bool = False) -> bytes:
    """A whole response for a request that can't be served, after which the connection closes.

    :param to_head: whether the request was HEAD, so that the response has no body (RFC 9110 section 9.3.2)
    """
    # An error of the client's has a date, too (RFC 9110 section 6.6.1).
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nDate: {formatdate(usegmt=True)}\r\nConnection: close\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(REASONS[status]) + 1}\r\n\r\n"
    )
    return (head if to_head else f"{head}{REASONS[status]}\n").encode("ascii")


class Limits(NamedTuple):
    """gunicorn's ``limit_request_line``, ``limit_request_fields`` and ``limit_request_field_size``, in bytes.

    0 means that there is no limit, as in gunicorn, up to a megabyte for the whole head.
    """

    line: int
    fields: int
    field_size: int

    @property
    def head_bytes(self) -> int:
        """The most bytes that a head within the limits can have."""
        if not self.line or not self.field_size:
            return 1 << 20
        return self.line + 2 + self.fields * (self.field_size + 2) + 2


@dataclass(slots=True)
class Head:
    """A parsed request head.

    :ivar target: as sent, text in latin-1
    :ivar scheme: the scheme of a target in absolute form, in lower case; otherwise empty
    :ivar path: the target's path without its query, still percent-encoded
    :ivar version: ``HTTP/1.0`` or ``HTTP/1.1``, by which the request is served; a higher minor version is the latter
    :ivar text: all of it as sent, without the empty line, text in latin-1
    :ivar environ: the WSGI environ's share of the fields
    :ivar content_length: the body's length in bytes; None if there is no body or it is chunked
    """

    method: str
    target: str
    scheme: str
    path: str
    query: str
    version: str
    text: str
    environ: dict[str, str]
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool

    @property
    def has_body(self) -> bool:
        """Whether there is a body, and something in it."""
        return self.chunked or bool(self.content_length)

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Names and values in the order sent, text in latin-1. Made when asked for, which most requests don't do."""
        split = (line.partition(":") for line in self.text.split("\r\n")[1:])
        return [(name, value.strip(" \t")) for name, _, value in split]

    def forget_fields(self) -> None:
        """Make room, where nobody is going to ask for them any more."""
        self.text = ""
        self.environ.clear()


def parse(head: str, limits: Limits, underscores: str = "drop", allowed: frozenset[str] = frozenset()) -> Head:
    """Parse a head.

    :param head: everything up to the empty line, without it, lines ending with CRLF but the last; text in latin-1
    :param underscores: gunicorn's ``header_map``: ``drop``, ``refuse`` or ``dangerous`` for names with underscores
    :param allowed: names with underscores that this peer may send, in upper case; ``*`` for all
    :raises BadRequest: it can't be served
    """
    lines = head.split("\r\n")
    line = lines[0]
    if limits.line and len(line) > limits.line:
        raise BadRequest(414, f"a request line of {len(line)} bytes; limit_request_line is {limits.line}")
    if len(lines) - 1 > limits.fields:
        raise BadRequest(431, f"{len(lines) - 1} header fields; limit_request_fields is {limits.fields}")
    if limits.field_size and len(head) > limits.field_size:
        _check_sizes(lines, limits.field_size)
    method, target, version = _parse_line(line)

    # Of these characters all may be in a value, and so they are in most heads.
    printable = "".join(lines).isprintable()
    environ: dict[str, str] = {}
    del lines[0]
    for field in lines:
        name, colon, value = field.partition(":")
        if not colon or not (printable or _VALUE(value)):
            raise BadRequest(400, f"header field {field[:200]!r}")
        key = _KEYS.get(name)
        if key is None:
            key = _make_key(name)
            if "_" in name and not _may_have_underscore(name, key, underscores, allowed):
                continue
        value = value.strip(" \t")
        if key not in environ:
            environ[key] = value
        elif key in _ONCE:
            raise BadRequest(400, f"two {name} fields")
        else:
            environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value

    if version == "HTTP/1.1" and "HTTP_HOST" not in environ:
        raise BadRequest(400, "no Host field")
    scheme, path = "", target
    if target[0] != "/" and (target != "*" or method != "OPTIONS"):
        scheme, path = _take_authority(target, environ)
    host = environ.get("HTTP_HOST", "")
    valid = _HOST(host)
    # Only in a Host field it may be empty (RFC 9110 sections 4.2.1 and 7.2).
    if not valid or (scheme and not valid[1]):
        raise BadRequest(400, f"host {host[:200]!r}")
    path, _, query = path.partition("?")
    content_length, chunked = _body_length(environ, version)
    return Head(
        method,
        target,
        scheme,
        path,
        query,
        version,
        head,
        environ,
        content_length,
        chunked,
        _keeps_alive(environ, version),
        _expects_continue(environ, version),
    )


def _parse_line(line: str) -> tuple[str, str, str]:
    parts = line.split(" ")
    if len(parts) != 3 or not _METHOD(parts[0]) or not _TARGET(parts[1]):
        raise BadRequest(400, f"request line {line[:200]!r}")
    method, target, version = parts
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        if not _VERSION(version):
            raise BadRequest(400, f"request line {line[:200]!r}")
        if version[5] != "1":
            raise BadRequest(505, f"version {version}; expected HTTP/1.0 or HTTP/1.1")
        # A higher minor version is to be read as the highest one known (RFC 9110 section 6.2).
        version = "HTTP/1.1"
    if method == "CONNECT":
        # An app can't have a tunnel, and its answer would be taken for one (RFC 9110 section 9.3.6).
        raise BadRequest(501, f"CONNECT {target[:200]!r}")
    return method, target, version


def _check_sizes(lines: list[str], most: int) -> None:
    for field in lines[1:]:
        if len(field) > most:
            raise BadRequest(431, f"a header field of {len(field)} bytes; limit_request_field_size is {most}")


def _may_have_underscore(name: str, key: str, underscores: str, allowed: frozenset[str]) -> bool:
    """Whether a field with an underscore in its name gets into the environ.

    :raises BadRequest: no request may have it
    """
    if name.upper() not in allowed and "*" not in allowed:
        if underscores == "refuse":
            raise BadRequest(400, f"header field name {name[:200]!r} with an underscore")
        if underscores != "dangerous":
            return False
    # No other server takes a name with an underscore for the body's length.
    return key not in _FRAMING


def _make_key(name: str) -> str:
    if not _NAME(name):
        raise BadRequest(400, f"header field name {name[:200]!r}")
    key = name.upper().replace("-", "_")
    if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = "HTTP_" + key
    if len(_KEYS) < _MAX_KEYS and "_" not in name:
        _KEYS[name] = key
    return key


def _take_authority(target: str, environ: dict[str, str]) -> tuple[str, str]:
    """RFC 9112 section 3.2.2: the host in a target of absolute form replaces the Host field.

    :returns: the scheme, and the path with the query
    """
    absolute = _ABSOLUTE(target)
    if absolute is None:
        raise BadRequest(400, f"request target {target[:200]!r}")
    scheme, environ["HTTP_HOST"], path = absolute.groups()
    return scheme.lower(), path if path.startswith("/") else "/" + path


def _body_length(environ: dict[str, str], version: str) -> tuple[int | None, bool]:
    """RFC 9112 section 6.3, refusing what it lets a server refuse."""
    coding = environ.get("HTTP_TRANSFER_ENCODING")
    length = environ.get("CONTENT_LENGTH")
    if coding is not None:
        if length is not None or version == "HTTP/1.0":
            raise BadRequest(400, "Transfer-Encoding with Content-Length or HTTP/1.0")
        *others, last = (each.strip(" \t") for each in coding.lower().split(","))
        if last != "chunked" or "chunked" in others or "" in others:
            # Where the body ends can't be known.
            raise BadRequest(400, f"transfer coding {coding[:200]!r}; expected chunked, as the last one")
        if others:
            raise BadRequest(501, f"transfer coding {coding[:200]!r}; expected chunked")
        return None, True
    if length is None:
        return None, False
    if not _DIGITS(length):
        raise BadRequest(400, f"Content-Length {length[:200]!r}")
    return int(length), False


def _keeps_alive(environ: dict[str, str], version: str) -> bool:
    """RFC 9112 section 9.3."""
    connection = environ.get("HTTP_CONNECTION")
    if connection is None:
        return version == "HTTP/1.1"
    connection = connection.lower()
    if connection in ("close", "keep-alive"):
        return connection != "close"
    options = {option.strip(" \t") for option in connection.split(",")}
    return "close" not in options and (version == "HTTP/1.1" or "keep-alive" in options)


def _expects_continue(environ: dict[str, str], version: str) -> bool:
    expectation = environ.get("HTTP_EXPECT")
    if expectation is None or version == "HTTP/1.0":
        return False
    members = {member.strip(" \t") for member in expectation.lower().split(",")} - {""}
    if members - {"100-continue"}:
        raise BadRequest(417, f"Expect: {expectation[:200]!r}; expected 100-continue")
    return bool(members)
