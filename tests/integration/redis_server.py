"""A Redis of a test's own."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from harness import Process


class Redis(Process):
    """Debian's redis-server at a free port, its files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._number = free.getsockname()[1]
        options = {"port": self._number, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no"}
        # One binary of several names: by this one Debian has it without a service that would be started.
        program = shutil.which("redis-check-rdb")
        assert program, "redis is missing: apt-get install redis-tools"
        (folder / "redis-server").symlink_to(os.path.realpath(program))
        words = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        super().__init__([folder / "redis-server", *words])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._number}/0"

    def _wait_ready(self) -> None:
        self.wait_for("Ready to accept connections")
