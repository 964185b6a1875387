"""What gunicorn's logger and server hooks are given."""

from __future__ import annotations

from typing import Any

from sticky_session.request import Head


class Request:
    """What gunicorn's logger and hooks want to know of a request.

    :param client: ``(host, port, ...)``, or an empty string for a Unix socket's peer
    :param environ: the app's
    :ivar headers: names in upper case, and values; a list, which a hook may change
    """

    # gunicorn's own has them; here a fragment is part of the target, trailers are read by nobody, and the listener
    # has dealt with the PROXY protocol.
    fragment = ""
    trailers = ()
    proxy_protocol_info = None

    def __init__(self, head: Head, client: Any, environ: dict[str, Any]) -> None:
        self.method = head.method
        self.uri = head.target
        self.path = head.path
        self.query = head.query
        self.version = (1, int(head.version[-1]))
        self.scheme = environ.get("wsgi.url_scheme")
        self.headers = [(name.upper(), value) for name, value in head.fields]
        self.remote_addr = self.peer_addr = client
        self._keep_alive = head.keep_alive
        self._given = self.headers.copy()

    def should_close(self) -> bool:
        """Whether the client wants the connection to end after the response."""
        return not self._keep_alive

    def tell(self, environ: dict[str, Any]) -> None:
        """Let the app see what a hook has changed in the headers."""
        if self.headers == self._given:
            return
        before, after = _joined(self._given), _joined(self.headers)
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name):
                key = "CONTENT_TYPE" if name == "CONTENT-TYPE" else f"HTTP_{name.replace('-', '_')}"
                environ.pop(key, None)
                if name in after:
                    environ[key] = after[name]


def _joined(headers: list[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name.upper()] = f"{joined[name.upper()]},{value}" if name.upper() in joined else value
    return joined


class Response:
    """What gunicorn's logger and hooks want to know of a response.

    :param status: the status line without the version; None if the app has not said it
    :param headers: names and values, in latin-1
    :param sent: bytes of the body
    :param chunked: whether it was sent in chunks
    """

    __slots__ = ("chunked", "headers", "headers_sent", "response_length", "sent", "status", "status_code")

    def __init__(
        self, status: bytes | None, headers: list[tuple[bytes, bytes]] | None, sent: int, *, chunked: bool
    ) -> None:
        self.status = status.decode("latin-1") if status else "500 Internal Server Error"
        self.status_code = int(self.status.split(None, 1)[0])
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers or ()]
        self.headers_sent = True
        self.chunked = chunked
        self.sent = sent
        # gunicorn's own has both.
        self.response_length = sent


def custom_hook(cfg: Any, name: str) -> Any:
    """A server hook if the user has set one; None for gunicorn's own, which only logs at debug level."""
    setting = cfg.settings[name]
    hook = setting.get()
    return None if hook is type(setting).default or hook is setting.default else hook
