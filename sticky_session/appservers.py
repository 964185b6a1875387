"""The app's Engine.IO and Socket.IO servers, found among all objects, since an app may keep its server anywhere."""

from __future__ import annotations

import gc
import sys
from typing import Any


def instances(kind: type) -> list[Any]:
    """All objects of a class, and of those derived from it, in this process."""
    # Those of a preloaded app may be frozen (gc.freeze() is advised before forks), and are not among the objects then.
    frozen = gc.get_freeze_count()
    if frozen:
        gc.unfreeze()
    # type() and not isinstance(): proxies of the app's may do anything when they are asked for their class.
    found = [it for it in gc.get_objects() if issubclass(type(it), kind)]
    if frozen:
        gc.freeze()
    return found


def message_bytes() -> int:
    """The largest ``max_http_buffer_size`` of the Engine.IO servers; 0 if there is none."""
    return max((int(server.max_http_buffer_size) for server in _engines()), default=0)


def expect_eventlet() -> bool:
    """Whether one is for eventlet, which python-engineio prefers wherever it is installed: its loop never runs here."""
    # One that could not be made has no mode.
    return "eventlet" in sys.modules and any(getattr(it, "async_mode", None) == "eventlet" for it in _engines())


def _engines() -> list[Any]:
    engineio = sys.modules.get("engineio")
    return instances(engineio.base_server.BaseServer) if engineio else []
