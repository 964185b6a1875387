"""A Redis of a test's own."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TypeVar

from harness import Process

# Not the address that connections come from: one to a port without a listener might get that very port at its own end,
# and be connected to itself.
REDIS_HOST = "127.200.0.1"

_R = TypeVar("_R", bound="Redis")


class Redis(Process):
    """Debian's redis-server at a free port, its files in a folder of its own.

    After :meth:`kill` it can be started again, at the same port and without what it held.
    """

    def __init__(self, folder: Path) -> None:
        with socket.create_server((REDIS_HOST, 0)) as free:
            self._number = free.getsockname()[1]
        options = {"port": self._number, "bind": REDIS_HOST, "dir": folder, "save": "", "appendonly": "no"}
        # One binary of several names: by this one Debian has it without a service that would be started.
        program = shutil.which("redis-check-rdb")
        assert program, "redis is missing: apt-get install redis-tools"
        (folder / "redis-server").symlink_to(os.path.realpath(program))
        words = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        super().__init__([folder / "redis-server", *words])

    @property
    def url(self) -> str:
        return f"redis://{REDIS_HOST}:{self._number}/0"

    def start(self: _R) -> _R:
        self._began = self.mark()
        return super().start()

    def _wait_ready(self) -> None:
        self.wait_for("Ready to accept connections", after=self._began)
