"""The app's Engine.IO servers, found among all objects, since an app may keep its server anywhere."""

from __future__ import annotations

import gc
import sys
from typing import Any


def message_bytes() -> int:
    """The largest ``max_http_buffer_size`` of those in this process; 0 if there is none."""
    return max((int(server.max_http_buffer_size) for server in _servers()), default=0)


def expect_eventlet() -> bool:
    """Whether one is for eventlet, which python-engineio prefers wherever it is installed: its loop never runs here."""
    # One that could not be made has no mode.
    return "eventlet" in sys.modules and any(getattr(it, "async_mode", None) == "eventlet" for it in _servers())


def _servers() -> list[Any]:
    engineio = sys.modules.get("engineio")
    if engineio is None:
        return []
    base = engineio.base_server.BaseServer
    # type() and not isinstance(): proxies of the app's may do anything when they are asked for their class.
    return [it for it in gc.get_objects() if issubclass(type(it), base)]
