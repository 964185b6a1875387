"""What has been read of a connection travels whole."""

from __future__ import annotations

import io
import os
import socket

from sticky_session.rehoming import reader, unserved


def test_unserved() -> None:
    """What the worker before has read, however much, and what has arrived since; nothing is waited for."""
    data = os.urandom(30_000)
    ours, client = socket.socketpair()
    with ours, client:
        ours.settimeout(0)
        with reader(ours, data) as rfile:
            assert rfile.read(100) == data[:100]
            assert unserved(rfile) == data[100:]
            assert rfile.read(len(data) - 100) == data[100:]
            assert unserved(rfile) == b""
            client.sendall(b"more")
            assert unserved(rfile) == b"more"
            assert rfile.read(4) == b"more"


def test_unserved_of_a_new_connection() -> None:
    """The same where no other worker has read before."""
    with io.BufferedReader(io.BytesIO(b"first second")) as rfile:  # type: ignore[arg-type]
        assert rfile.read(6) == b"first "
        assert unserved(rfile) == b"second"
