"""What tests of clients behind proxies need: where a client belongs, and what a proxy sends for it."""

from __future__ import annotations

import os
import socket
import struct
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from harness import HOST, connect
from sticky_session import Ring
from sticky_session.address import Masks
from wire import Wire

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL = 0x20
PROXY = 0x21
# RFC 5737 and RFC 3849: addresses that nobody has.
CLIENTS = [f"192.0.2.{number}" for number in range(1, 60)]
CLIENTS6 = [f"2001:db8:{number:x}::7" for number in range(1, 40)]


def home(client: str, workers: int) -> int:
    """The slot that a client belongs to."""
    return Ring(workers).slot(Masks().key(client))


def elsewhere(client: str, workers: int) -> str:
    """A client that belongs to another slot."""
    return next(other for other in CLIENTS if home(other, workers) != home(client, workers))


def proxied(port: int, address: str = HOST, *, host: str = HOST) -> Wire:
    """A connection of a proxy; 127.0.0.1, who is trusted as a rule."""
    return over(connect(port, address, host=host))


def unix(path: os.PathLike[str]) -> Wire:
    """A connection of a proxy to a Unix socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(os.fspath(path))
    return over(sock)


def over(sock: socket.socket) -> Wire:
    """HTTP over a connection that is made already."""
    wire = Wire.__new__(Wire)
    wire.sock = sock
    wire.file = sock.makefile("rb")
    return wire


def served_by(wire: Wire, *fields: str) -> Any:
    """Who serves a request with these fields."""
    return wire.get("/", *fields).json()


def v1(client: str, port: int = 5000) -> bytes:
    """A PROXY header of version 1."""
    family, other = ("TCP6", "2001:db8::80") if ":" in client else ("TCP4", "198.51.100.80")
    return f"PROXY {family} {client} {other} {port} 443\r\n".encode()


def v2(client: str = "", port: int = 5000, *, command: int = PROXY, extensions: bytes = b"") -> bytes:
    """A PROXY header of version 2; UNSPEC without a client."""
    if not client:
        family, block = 0, b""
    elif ":" in client:
        family = 0x21
        block = inet_pton(AF_INET6, client) + inet_pton(AF_INET6, "2001:db8::80") + struct.pack("!HH", port, 443)
    else:
        family = 0x11
        block = inet_pton(AF_INET, client) + inet_pton(AF_INET, "198.51.100.80") + struct.pack("!HH", port, 443)
    block += extensions
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block
