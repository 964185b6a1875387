"""How the app's Socket.IO servers come to have :class:`.ClusterManager` by themselves."""

from __future__ import annotations

import gc
import inspect
import zlib
from typing import Any

import socketio

from sticky_session.appservers import instances, thawed
from sticky_session.cluster import DEFAULT_CHANNEL, ClusterManager, managers


def adopt_servers() -> tuple[list[str], int]:
    """Let every Socket.IO server of this process that has python-socketio's default manager have ours.

    To be called before :func:`.cluster.join`. Two servers get two channels, as they are two worlds within one process.
    What tells them apart, in every worker alike, is what they answer to.

    :returns: the channels of the servers that have ours now, and how many could not be told apart and were left alone
    """
    servers = _default_servers()
    if servers and (len(servers) > 1 or _taken_channels()):
        # Some may be gone but for the garbage collector, which passes over what is frozen.
        del servers
        with thawed():
            gc.collect()
        servers = _default_servers()
    if len(servers) == 1 and DEFAULT_CHANNEL not in _taken_channels():
        _adopt(servers[0].manager, DEFAULT_CHANNEL)
        return [DEFAULT_CHANNEL], 0
    names = [f"{DEFAULT_CHANNEL}-{zlib.crc32(_handlers(server).encode()):08x}" for server in servers]
    adopted = {name: server for server, name in zip(servers, names, strict=True) if names.count(name) == 1}
    for name, server in adopted.items():
        _adopt(server.manager, name)
    return sorted(adopted), len(servers) - len(adopted)


def _default_servers() -> list[Any]:
    return [it for it in instances(socketio.Server) if type(getattr(it, "manager", None)) is socketio.Manager]


def _taken_channels() -> set[str]:
    """The channels of servers that the app has given ours itself."""
    return {manager.channel for manager in list(managers) if manager.server is not None}


def _handlers(server: Any) -> str:
    """The names of a server's namespaces and events, and of what handles them."""
    named = [
        f"{namespace} {event} {getattr(handler, '__module__', '')}.{getattr(handler, '__qualname__', '')}"
        for namespace, handlers in server.handlers.items()
        for event, handler in handlers.items()
    ]
    named += [
        f"{namespace} {type(it).__module__}.{type(it).__qualname__}"
        for namespace, it in server.namespace_handlers.items()
    ]
    return "\n".join(sorted(named))


def _adopt(manager: Any, channel: str) -> None:
    """Turn a manager into ours: the same object, since others may know it, with all that it has."""
    kept = vars(manager)
    # Methods of its own that somebody has kept there to call them later (Server.instrument() does that) become ours.
    passed_on = {
        name: getattr(ClusterManager, value.__name__).__get__(manager)
        for name, value in kept.items()
        if inspect.ismethod(value)
        and value.__self__ is manager
        and value.__func__ is getattr(socketio.Manager, value.__name__, None)
    }
    fresh = ClusterManager(channel)
    manager.__class__ = ClusterManager
    manager.__dict__ = {**vars(fresh), **kept, **passed_on}
    managers.add(manager)
