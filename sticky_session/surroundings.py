"""What reading a configuration changes in the process that reads it, and how to have it back."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass

# gunicorn's own, which tell an arbiter of another one and workers of the dirty arbiter: they are no configuration.
_GUNICORNS = "GUNICORN_"


@dataclass(frozen=True)
class Surroundings:
    """Working directory (``chdir``), import path and environment (``raw_env``, and what a configuration file sets).

    :ivar directory: None if it has been removed
    """

    directory: str | None
    path: list[str]
    environment: dict[str, str]

    @classmethod
    def now(cls) -> Surroundings:
        """What this process has."""
        directory = None
        with contextlib.suppress(OSError):
            directory = os.getcwd()
        return cls(directory, list(sys.path), _environment())

    def restore(self) -> None:
        """Give it to this process again; a directory that is gone can't be had."""
        if self.directory is not None:
            with contextlib.suppress(OSError):
                os.chdir(self.directory)
        sys.path[:] = self.path
        for name in _environment().keys() - self.environment.keys():
            del os.environ[name]
        os.environ.update(self.environment)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_GUNICORNS)}
