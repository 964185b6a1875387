"""The socket of a client, as the app is given it."""

from __future__ import annotations

import socket

import pytest

from sticky_session.transport import Transport


def test_an_app_uses_its_socket_after_the_end() -> None:
    """It is closed, as any socket is: it can be closed once more, and nothing else."""
    one, other = socket.socketpair()
    with other:
        transport = Transport(one.detach(), one.family)
        given = transport.app_socket
        transport.close()
        given.close()
        assert given.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            given.send(b"late")
