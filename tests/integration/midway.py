"""Clients that are in the middle of something while a test stops or kills a process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGKILL
from types import TracebackType
from typing import Any

import websocket

from harness import Client, Response, Server, addresses, connect, get
from pending import stopped
from sticky_session import Ring


def clients_of(slot: int, count: int, *, workers: int, start: int = 0) -> list[str]:
    """``count`` addresses that the ring of so many workers gives to ``slot``."""
    ring = Ring(workers)
    found = [address for address in addresses(8000, start) if ring.slot(socket.inet_aton(address)) == slot]
    assert len(found) >= count
    return found[:count]


def children_and_zombies(pid: int) -> int:
    """How many children the process has, those that wait to be reaped included."""
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def wait_until_handed_off(port: int, other: str) -> None:
    """Wait until the listener has let go of every connection that has been made so far.

    :param other: an address whose worker answers: the listener takes connections in their order
    """
    assert get(port, "/", other).status == 200


class Pending:
    """A client that has sent its request whole and has read nothing yet; a context manager."""

    def __init__(self, port: int, address: str, path: str = "/", body: bytes = b"") -> None:
        self.address = address
        self._sock = connect(port, address, timeout=30)
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        self._sock.sendall(head.encode() + body)

    def answer(self) -> Response:
        """Read the answer to its last byte and the connection to its orderly end."""
        response = http.client.HTTPResponse(self._sock)
        response.begin()
        answer = Response(response.status, response.headers, response.read())
        assert self._sock.recv(1) == b""
        return answer

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Pending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def kill_while_clients_wait(
    server: Server, slot: int, clients: Sequence[str], wait_until_there: Callable[[], object]
) -> None:
    """Kill a slot's worker while its clients wait for it: all are answered by the one that replaces it.

    :param wait_until_there: returns when their requests are where they wait for the slot's worker
    """
    killed, mark = server.worker_pids[slot], server.mark()
    with stopped(killed), contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Pending(server.port, address)) for address in clients]
        wait_until_there()
        os.kill(killed, SIGKILL)
        replacement = server.wait_for_worker(slot, after=mark)
        answers = [pending.answer().json() for pending in waiting]
    assert {(who["slot"], who["pid"]) for who in answers} == {(slot, replacement)}


class Sessions:
    """A kept-alive connection and a WebSocket of every address; a context manager. The app is ``survivor:app``.

    :ivar pids: address -> the worker that answered both first
    """

    def __init__(self, port: int, clients: Sequence[str]) -> None:
        self._stack = contextlib.ExitStack()
        self._kept: dict[str, Client] = {}
        self._sockets: dict[str, websocket.WebSocket] = {}
        for address in clients:
            self._kept[address] = self._stack.enter_context(Client(port, address))
            self._sockets[address] = self._stack.enter_context(websocket_to(port, address))
        self.pids = {address: self._ask(address) for address in clients}

    def _ask(self, address: str) -> int:
        over_http = self._kept[address].get().json()["pid"]
        over_websocket = ask(self._sockets[address])["pid"]
        assert over_http == over_websocket
        return int(over_http)

    def assert_unmoved(self) -> None:
        """Both connections of every address still work, and the same worker answers."""
        assert {address: self._ask(address) for address in self.pids} == self.pids

    def __enter__(self) -> Sessions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


@contextlib.contextmanager
def websocket_to(port: int, address: str) -> Iterator[websocket.WebSocket]:
    """An open WebSocket that comes from ``address``."""
    with connect(port, address) as sock:
        opened = websocket.create_connection(f"ws://127.0.0.1:{port}/", socket=sock, timeout=20)
        yield opened


def ask(opened: websocket.WebSocket) -> Any:
    """Send a message and return the answer."""
    opened.send("who?")
    return json.loads(opened.recv())
