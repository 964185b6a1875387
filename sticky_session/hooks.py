"""What gunicorn's logger and server hooks are given."""

from __future__ import annotations

from typing import Any

from sticky_session.request import Head


class Request:
    """What gunicorn's hooks want to know of a request."""

    __slots__ = ("headers", "method", "path", "query", "uri", "version")

    def __init__(self, head: Head) -> None:
        self.method = head.method
        self.uri = head.target
        self.path = head.path
        self.query = head.query
        self.version = (1, int(head.version[-1]))
        self.headers = [(name.upper(), value) for name, value in head.fields]


class Response:
    """What gunicorn's logger and hooks want to know of a response.

    :param status: the status line without the version; None if the app has not said it
    :param headers: names and values, in latin-1
    :param sent: bytes of the body
    """

    __slots__ = ("headers", "response_length", "sent", "status")

    def __init__(self, status: bytes | None, headers: list[tuple[bytes, bytes]] | None, sent: int) -> None:
        self.status = status.decode("latin-1") if status else "500 Internal Server Error"
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers or ()]
        self.sent = sent
        # gunicorn's own has both.
        self.response_length = sent


def custom_hook(cfg: Any, name: str) -> Any:
    """A server hook if the user has set one; None for gunicorn's own, which only logs at debug level."""
    setting = cfg.settings[name]
    hook = setting.get()
    return None if hook is type(setting).default or hook is setting.default else hook
