"""What a worker says when it can't load the app."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from gunicorn.errors import AppImportError


def report_boot_failure(log: Any, error: Exception) -> None:
    """Say in one line why the app can't be loaded, with a traceback if it is the app's own code that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    is_apps = any(not is_machinery(frame.filename) for frame in frames) and not isinstance(error, AppImportError)
    log.error("Can't load the app: %s: %s", type(error).__name__, error, exc_info=error if is_apps else None)


def is_machinery(filename: str) -> bool:
    """Whether a traceback's frame is gunicorn's, ours or the import system's, so not the app's."""
    return "importlib" in filename or any(
        filename.startswith(os.path.dirname(module.__file__) + os.sep)
        for module in (sys.modules["gunicorn"], sys.modules["sticky_session"])
        if module.__file__
    )
