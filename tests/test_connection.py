"""A connection's deadlines."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace
from typing import Any

from sticky_session.connection import FOREVER, Connection, Phase
from sticky_session.transport import Transport


def test_a_client_that_always_has_more_to_send() -> None:
    """What may have come in time is looked at, but its sender gets no more time than that."""
    one, client = socket.socketpair()
    server: Any = SimpleNamespace(trust=SimpleNamespace(peers=()), routing=lambda: (0, 0))
    transport = Transport(one.detach(), one.family)
    connection = Connection(server, transport, 0, "", None, b"")
    connection.phase = Phase.HEAD
    connection.deadline = time.monotonic()
    transport.watch(lambda: None)
    with client:
        client.settimeout(10)
        client.send(b"G")
        connection.check(time.monotonic() + 1)
        assert not transport.closed
        assert client.send(b"E") == 1
        connection.check(time.monotonic() + 2)
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")
        assert connection.deadline == FOREVER
        transport.close()
