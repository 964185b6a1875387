"""What kind of app it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import MagicMock

import flask
import pytest
import socketio
from werkzeug.local import LocalProxy

from sticky_session.app import speaks_asgi


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI app."""


def wsgi(*_: Any) -> list[bytes]:
    """A WSGI app."""
    return []


class Asgi:
    """A class of ASGI apps."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run it."""

    async def method(self, scope: Any, receive: Any, send: Any) -> None:
        """Another app."""


# Made when they are needed: tests of what looks for Socket.IO's servers would find one that stays.
@pytest.mark.parametrize(
    "make",
    [
        lambda: asgi,
        Asgi,
        lambda: Asgi().method,
        lambda: partial(asgi, {}),
        lambda: socketio.ASGIApp(socketio.AsyncServer(async_mode="asgi")),
    ],
    ids=["function", "object", "method", "partial", "socketio"],
)
def test_asgi(make: Callable[[], Any]) -> None:
    """Whatever is called with await."""
    assert speaks_asgi(make())


@pytest.mark.parametrize(
    "make",
    [
        lambda: wsgi,
        lambda: partial(wsgi, {}),
        lambda: flask.Flask("app"),
        lambda: socketio.WSGIApp(None),
        MagicMock,
    ],
    ids=["function", "partial", "flask", "socketio", "mock"],
)
def test_wsgi(make: Callable[[], Any]) -> None:
    """Whatever is called without."""
    assert not speaks_asgi(make())


def test_proxy() -> None:
    """It may not know yet what it stands for, and is not asked."""

    def unbound() -> Any:
        raise AssertionError

    assert not speaks_asgi(LocalProxy(unbound))
