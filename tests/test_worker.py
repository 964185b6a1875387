"""A worker's boot, as far as it can be seen without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PATCH = """
import json
from importlib import metadata

from sticky_session import Worker

looks = 0
distributions, entry_points = metadata.distributions, metadata.entry_points

def counted(**options):
    global looks
    looks += 1
    return distributions(**options)

metadata.distributions = counted
Worker.patch(None)

import gevent.monkey
import plugin

restored = metadata.entry_points is entry_points
print(json.dumps([looks, plugin.events, gevent.monkey.is_module_patched("socket"), restored]))
"""


def test_patch(tmp_path: Path) -> None:
    """gevent's plugins are called as ever, and what is installed is looked through once, not for every module."""
    (tmp_path / "plugin.py").write_text("events = []\ndef listen(event):\n    events.append(type(event).__name__)\n")
    info = tmp_path / "plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gevent.plugins.monkey.did_patch_all]\nname = plugin:listen\n")
    done = subprocess.run(
        [sys.executable, "-c", PATCH],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, ["GeventDidPatchAllEvent"], True, True]


SIGNAL = """
import os, signal

from gunicorn.workers.base import Worker as Base

from sticky_session import Worker

init_signals = Base.init_signals

def interrupted(self):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    init_signals(self)

class Told(Worker):
    PIPE = os.pipe()
    early_signals = []

    def __init__(self):
        os.set_blocking(self.PIPE[1], False)

    def handle_exit(self, *_):
        print("told to stop", signal.pthread_sigmask(signal.SIG_BLOCK, ()))

Base.init_signals = interrupted
Told().init_signals()
"""


def test_signal_while_handlers_change() -> None:
    """SIGTERM in the moment in which gunicorn has none: the worker is told, not killed, and blocks nothing then."""
    done = subprocess.run([sys.executable, "-c", SIGNAL], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "told to stop set()\n"), done.stderr
