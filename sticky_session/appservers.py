"""The app's Engine.IO and Socket.IO servers, found among all objects, since an app may keep its server anywhere."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def thawed() -> Iterator[None]:
    """Have no objects frozen meanwhile: gc.freeze(), which is advised before forks, hides a preloaded app's."""
    frozen = gc.get_freeze_count()
    if frozen:
        gc.unfreeze()
    try:
        yield
    finally:
        if frozen:
            gc.freeze()


def instances(kind: type) -> list[Any]:
    """All objects of a class, and of those derived from it, in this process."""
    # Objects refer to their classes. A list of all objects would write a reference count into each, and so copy the
    # memory that a preloaded app's workers share.
    with thawed():
        found = gc.get_referrers(*_family(kind))
    # type() and not isinstance(): proxies of the app's may do anything when they are asked for their class.
    return [it for it in found if issubclass(type(it), kind)]


def _family(kind: type) -> Iterator[type]:
    yield kind
    derived: list[type] = type.__subclasses__(kind)
    for each in derived:
        yield from _family(each)


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
