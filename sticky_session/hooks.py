"""What gunicorn's logger and server hooks are given."""

from __future__ import annotations

from typing import Any

from sticky_session.request import Head


class Request:
    """What gunicorn's logger and hooks want to know of a request: one object for all of them, as gunicorn's is.

    :param client: ``(host, port, ...)``, or an empty string for a Unix socket's peer
    :param peer: the same of the connection's other end, where that is a proxy that speaks the PROXY protocol
    :param scheme: http or https
    :ivar headers: names in upper case, and values; a list, which ``pre_request`` may change
    """

    # gunicorn's own has them; here a fragment is part of the target, trailers are read by nobody, and the listener
    # has dealt with the PROXY protocol.
    fragment = ""
    trailers = ()
    proxy_protocol_info = None

    def __init__(self, head: Head, client: Any, peer: Any, scheme: str) -> None:
        self.method = head.method
        self.uri = head.target
        self.path = head.path
        self.query = head.query
        self.version = (1, int(head.version[-1]))
        self.scheme = scheme
        # Names with underscores may be some that header_map has dropped, to keep them apart from those with hyphens.
        self.headers = [(name.upper(), value) for name, value in head.fields if "_" not in name]
        self.remote_addr = client
        self.peer_addr = peer
        self._keep_alive = head.keep_alive

    def should_close(self) -> bool:
        """Whether the client wants the connection to end after the response."""
        return not self._keep_alive


def tell(environ: dict[str, Any], given: list[tuple[str, str]], left: list[tuple[str, str]]) -> None:
    """Let the app see what ``pre_request`` has changed in the headers.

    How long the body is can't be changed: it is being read by then.

    :param given: the headers as they were
    :param left: as they are now
    """
    before, after = _by_key(given), _by_key(left)
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key):
            environ.pop(key, None)
            if key in after:
                environ[key] = after[key]


def _by_key(headers: list[tuple[str, str]]) -> dict[str, str]:
    """The environ's share of headers."""
    environ: dict[str, str] = {}
    for name, value in headers:
        key = name.upper().replace("-", "_")
        if key in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
            continue
        if key != "CONTENT_TYPE":
            key = f"HTTP_{key}"
        if key in environ:
            environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value
        else:
            environ[key] = value
    return environ


class Response:
    """What gunicorn's logger and hooks want to know of a response.

    :param status: the status line without the version; None if the app has not said it
    :param headers: names and values, in latin-1
    :param sent: bytes of the body
    :param chunked: whether it was sent in chunks
    :param headers_sent: whether anything of it was
    """

    __slots__ = ("chunked", "headers", "headers_sent", "response_length", "sent", "status", "status_code")

    def __init__(
        self,
        status: bytes | None,
        headers: list[tuple[bytes, bytes]] | None,
        sent: int,
        *,
        chunked: bool,
        headers_sent: bool,
    ) -> None:
        self.status = status.decode("latin-1") if status else "500 Internal Server Error"
        self.status_code = int(self.status.split(None, 1)[0])
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers or ()]
        self.headers_sent = headers_sent
        self.chunked = chunked
        self.sent = sent
        # gunicorn's own has both.
        self.response_length = sent


def custom_hook(cfg: Any, name: str) -> Any:
    """A server hook if the user has set one; None for gunicorn's own, which only logs at debug level."""
    setting = cfg.settings[name]
    hook = setting.get()
    return None if hook is type(setting).default or hook is setting.default else hook
