"""A word to those whose Socket.IO server has eventlet's loop, which python-socketio takes wherever it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Server

# As an app is where eventlet is installed. Here it is not.
APP = """
import sys
import types

import socketio

sys.modules["eventlet"] = types.ModuleType("eventlet")
sio = socketio.Server(async_mode="gevent")
sio.eio.async_mode = "{async_mode}"
app = socketio.WSGIApp(sio)
"""
HANGS = 'async_mode="eventlet"'


@pytest.mark.parametrize("bus", ["0", "1"])
def test_a_server_that_will_hang(tmp_path: Path, bus: str) -> None:
    """One line for all workers together says what is wrong and what to do."""
    (tmp_path / "app.py").write_text(APP.format(async_mode="eventlet"))
    with Server("app:app", workers=2, cwd=tmp_path, env={"STICKY_SESSION_BUS": bus}) as server:
        assert len(server.find(HANGS)) == 1
        assert server.find('Give it async_mode="gevent"')


def test_eventlet_that_is_only_there(tmp_path: Path) -> None:
    """An app that names gevent hears nothing of it, even if something has imported eventlet."""
    (tmp_path / "app.py").write_text(APP.format(async_mode="gevent"))
    with Server("app:app", workers=2, cwd=tmp_path) as server:
        assert not server.find("eventlet")
