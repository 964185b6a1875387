"""The files of Unix sockets that servers leave."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from sticky_session import sockets


def test_a_file_that_nobody_listens_at(tmp_path: Path) -> None:
    """It is removed."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    sockets.remove_stale(str(path))
    assert not path.exists()


def test_a_server_that_is_about_to_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file stays: whoever looks waits until it listens."""
    path = tmp_path / "socket"
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))

        def go_on(_: float) -> None:
            server.listen()
            os.close(folder)

        monkeypatch.setattr("time.sleep", go_on)
        sockets.remove_stale(str(path))
        assert path.exists()


def test_a_file_that_somebody_else_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that end at once may both find it: it is gone, and that is all."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    unlink = os.unlink

    def unlink_twice(name: str) -> None:
        unlink(name)
        unlink(name)

    monkeypatch.setattr("os.unlink", unlink_twice)
    sockets.remove_stale(str(path))
    assert not path.exists()
    sockets.remove_stale(str(tmp_path / "gone" / "socket"))
