"""A connection's deadlines, and its end."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from sticky_session.connection import FOREVER, Connection, Phase
from sticky_session.transport import Transport

Ends = tuple[Connection, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Ours, and the client's."""
    one, client = socket.socketpair()
    server: Any = SimpleNamespace(trust=SimpleNamespace(peers=()), routing=lambda: (0, 0), leave=lambda _: None)
    transport = Transport(one.detach(), one.family)
    client.settimeout(10)
    with client:
        yield Connection(server, transport, 0, "", None, b""), client
        transport.close()


def test_a_client_that_always_has_more_to_send(ends: Ends) -> None:
    """What may have come in time is looked at, but its sender gets no more time than that."""
    connection, client = ends
    connection.phase = Phase.HEAD
    connection.deadline = time.monotonic()
    connection.transport.watch(lambda: None)
    client.send(b"G")
    connection.check(time.monotonic() + 1)
    assert client.send(b"E") == 1
    connection.check(time.monotonic() + 2)
    assert client.recv(100).startswith(b"HTTP/1.1 408 ")
    assert connection.deadline == FOREVER


@pytest.mark.parametrize("has_socket", [False, True])
def test_the_app_has_left_a_greenlet_that_receives(ends: Ends, *, has_socket: bool) -> None:
    """It is told; and the client has its time to read the answer all the same."""
    connection, client = ends
    if has_socket:
        assert connection.transport.socket
    waiting = gevent.spawn(connection.transport.receive, 100)
    gevent.sleep(0)
    connection.unread = True
    ending = gevent.spawn(connection._end)
    with pytest.raises(OSError, match="closed in another greenlet"):
        waiting.get(timeout=10)
    gevent.sleep(0)
    assert not ending.ready()
    assert client.recv(100) == b""
    client.close()
    ending.get(timeout=10)
    assert connection.transport.closed
