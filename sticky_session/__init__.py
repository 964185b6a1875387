"""Sticky sessions for gunicorn: every client address always reaches the same worker process.

Nothing of gevent or gunicorn is imported until a name that needs it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sticky_session.cluster import ClusterManager
    from sticky_session.config import Options
    from sticky_session.errors import (
        ClusterError,
        ListenError,
        OptionError,
        PlatformError,
        StickySessionError,
        UnconfirmedError,
    )
    from sticky_session.launcher import close, listen, wait, worker_id
    from sticky_session.ring import Ring
    from sticky_session.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "ClusterError",
    "ClusterManager",
    "ListenError",
    "OptionError",
    "Options",
    "PlatformError",
    "Ring",
    "StickySessionError",
    "UnconfirmedError",
    "Worker",
    "__version__",
    "close",
    "listen",
    "wait",
    "worker_id",
]

_HOMES = {
    "ClusterError": "errors",
    "ClusterManager": "cluster",
    "ListenError": "errors",
    "OptionError": "errors",
    "Options": "config",
    "PlatformError": "errors",
    "Ring": "ring",
    "StickySessionError": "errors",
    "UnconfirmedError": "errors",
    "Worker": "worker",
    "close": "launcher",
    "listen": "launcher",
    "wait": "launcher",
    "worker_id": "launcher",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
