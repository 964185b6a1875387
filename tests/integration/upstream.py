"""A proxy's side of things: kept-alive connections, each with requests of many clients."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import HOST, Load, connect
from sticky_session import Ring
from wire import Answer, Wire

# gunicorn trusts this one by itself.
PROXY = HOST
# Addresses for documentation; RFC 5737.
CLIENTS = [f"203.0.113.{number}" for number in range(1, 41)]


def home(client: str, workers: int = 4) -> int:
    """The slot that a client belongs to; the empty string is the peer of a Unix socket."""
    return Ring(workers).slot(socket.inet_aton(client) if client else b"")


def clients_at(slot: int, workers: int = 4) -> list[str]:
    """The clients that belong to a slot."""
    return [client for client in CLIENTS if home(client, workers) == slot]


def strangers(count: int, workers: int = 4) -> list[str]:
    """``count`` clients, no two neighbours of them at the same slot: every request moves the connection."""
    places = [clients_at(slot, workers) for slot in range(workers)]
    return [places[number % workers][number // workers % len(places[number % workers])] for number in range(count)]


class Upstream(Wire):
    """A proxy's connection.

    :param place: a port at 127.0.0.1, or the path of a Unix socket
    """

    def __init__(self, place: int | Path, *, timeout: float = 20.0) -> None:
        if isinstance(place, int):
            self.sock = connect(place, PROXY, timeout=timeout)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(os.fspath(place))
        self.file = self.sock.makefile("rb")

    def ask(self, client: str, path: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> Answer:
        """Send a client's request, and read the response."""
        return self.get(path, f"X-Forwarded-For: {client}", *fields, method=method, version=version)


def request(
    client: str, path: str = "/", body: bytes | None = None, *fields: str, chunks: Sequence[int] = (), size: int = 0
) -> bytes:
    """The bytes of a client's request.

    :param chunks: the sizes that the body is cut into, if it is to be chunked; the last one holds the rest
    :param size: how large the head is to be, at least
    """
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: test", f"X-Forwarded-For: {client}"]
    lines += fields
    if chunks:
        lines.append("Transfer-Encoding: chunked")
        body = chunked(body or b"", chunks)
    elif body is not None:
        lines.append(f"Content-Length: {len(body)}")
    filler = size - len("\r\n".join(lines)) - 4
    while filler > 0:
        # As long as gunicorn allows, and the last one not shorter than a field can be.
        length = min(filler, 8000 if filler >= 8020 else filler)
        lines.append("X-A: " + "a" * (length - 7))
        filler -= max(length, 7)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def chunked(body: bytes, sizes: Iterable[int]) -> bytes:
    """The body in chunks."""
    pieces = []
    for size in sizes:
        pieces.append(body[:size])
        body = body[size:]
    pieces.append(body)
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


def digest(body: bytes) -> str:
    """What ``homes:app`` says of a body."""
    return hashlib.sha256(body).hexdigest()


def holders(inode: int, pids: Iterable[int]) -> list[int]:
    """The processes that have a socket open."""
    found = []
    for pid in pids:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{entry}")
            except FileNotFoundError:
                continue
            if target == f"socket:[{inode}]":
                found.append(pid)
    return found


def watchers(inode: int, pids: Iterable[int]) -> list[int]:
    """The processes that have a socket in an epoll object, proc(5)."""
    found = []
    for pid in pids:
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            try:
                info = path.read_text()
            except FileNotFoundError:
                continue
            if re.search(rf"^tfd:.* ino:{inode:x} ", info, re.MULTILINE):
                found.append(pid)
                break
    return found


def inode_of(port: int, client: tuple[str, int]) -> int:
    """The inode of the server's socket of a TCP connection over IPv4, proc(5)."""
    host = socket.inet_aton(client[0])[::-1].hex().upper()
    server = socket.inet_aton(HOST)[::-1].hex().upper()
    pattern = rf"^ *\d+: {server}:{port:04X} {host}:{client[1]:04X} (?:\S+ +){{6}}(\d+) "
    found = re.search(pattern, Path("/proc/net/tcp").read_text(), re.MULTILINE)
    assert found, f"no connection of {client}"
    return int(found[1])


class ProxiedLoad(Load):
    """Proxies that send clients' requests without a pause until the block ends, each over one kept-alive connection.

    As proxies do, they open another connection where the server closes one, and send a request again that was on
    its way on a connection that had been in use before and that closed without a byte of an answer. These are
    counted, as ``resent``; everything else that goes wrong is in ``failures``.

    :param threads: how many connections
    """

    def __init__(self, place: int | Path, *, clients: Sequence[str] = CLIENTS, threads: int = 4) -> None:
        plan = [*clients] * threads
        random.Random(threads).shuffle(plan)
        super().__init__(0, plan, threads=threads)
        self.resent = 0
        self._answered: set[int] = set()
        self._place = place
        self._local = threading.local()

    def wait_for(self, count: int, timeout: float = 30.0) -> None:
        """The same, and until each connection has brought an answer: before that it may still be the listener's."""
        super().wait_for(count, timeout)
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._answered) == len(self._threads), timeout), (
                f"only {len(self._answered)} connections have brought an answer within {timeout:g} s"
            )

    def _run(self, clients: Sequence[str]) -> None:
        self._local.upstream = None
        try:
            super()._run(clients)
        finally:
            self._hang_up()

    def _once(self, address: str) -> None:
        began = time.monotonic()
        trouble = ""
        try:
            answer = self._answer(address)
            if answer.closes:
                self._hang_up()
            who = answer.json()
        except (OSError, AssertionError, ValueError) as error:
            self._hang_up()
            trouble = f"{address} after {time.monotonic() - began:.2f} s: {type(error).__name__}: {error}"
        with self._changed:
            if trouble:
                self.failures.append(trouble)
            else:
                self._answered.add(threading.get_ident())
                self.replies[address, who["slot"], who["pid"]] += 1
                self.history.setdefault(address, []).append(who["pid"])
            self._changed.notify_all()

    def _answer(self, client: str) -> Answer:
        used = self._local.upstream is not None
        if not used:
            self._local.upstream = Upstream(self._place)
        upstream = self._local.upstream
        try:
            upstream.sock.sendall(request(client))
            answered = upstream.file.peek(1)
        except ConnectionError:
            answered = b""
        if answered or not used:
            return upstream.answer()
        self._hang_up()
        with self._changed:
            self.resent += 1
        return self._answer(client)

    def _hang_up(self) -> None:
        if self._local.upstream is not None:
            self._local.upstream.close()
            self._local.upstream = None
