"""Answers the requests of one connection: the app's response, its framing, errors, and the upgrade to a WebSocket.

Of pywsgi's handler remain the checks of the app's headers and the attributes that hold a response. The connection,
and everything that is read from it, is :mod:`sticky_session.connection`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import gevent
from gevent import pywsgi
from geventwebsocket.exceptions import WebSocketError

from sticky_session.body import Body
from sticky_session.hooks import Request, Response, tell
from sticky_session.request import REASONS, Head
from sticky_session.websocket import INTERNAL_ERROR, NORMAL, HandshakeError, WebSocket, accept_key, wants_websocket

if TYPE_CHECKING:
    from sticky_session.connection import Connection
    from sticky_session.server import Server

# A request body that the app leaves unread is read and thrown away up to this, to keep the connection.
MAX_DISCARD_BYTES = 64 * 1024
# A body that is shorter goes out together with the head.
JOIN_BYTES = 64 * 1024


class Handler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """Answers one request after the other."""

    # pywsgi's attributes, untyped there.
    server: Server
    environ: dict[str, Any]
    status: bytes | None
    result: Any
    code: int
    response_headers: list[tuple[bytes, bytes]]

    head: Head
    body: Body

    # pywsgi would add a Connection header of its own to responses to HTTP/1.0.
    request_version = "HTTP/1.1"

    def __init__(self, connection: Connection) -> None:
        # Not super().__init__(): it would make a reader of its own.
        self.connection = connection
        self.server = connection.server
        # How much of the promised body is still to come; None if nothing was promised.
        self._left: int | None = None

    # --- a request

    def take(self, head: Head, environ: dict[str, Any], body: Body, application: Any) -> None:
        """Take the next request.

        :param environ: without ``wsgi.input`` and ``gunicorn.sock``
        :param application: the app
        """
        self.time_start = time.time()
        self.head = head
        self.body = body
        self.environ = environ
        self.application = application
        environ["wsgi.input"] = body
        environ["gunicorn.sock"] = self.connection.transport.app_socket
        self.close_connection = not head.keep_alive or not self.server.keepalive_seconds
        self.status = None
        self.response_headers = []
        self.headers_sent = False
        self.result = None
        self.response_use_chunked = False
        self.response_length = 0
        self.code = 0
        self._left = None
        self._request: Request | None = None
        # The app's middleware may write another one there.
        self._scheme: str = environ["wsgi.url_scheme"]

    def respond(self) -> None:
        """Run the app, and send what it answers; ``close_connection`` says then whether the connection can be used."""
        websocket: WebSocket | None = None
        try:
            if self.server.pre_request is not None:
                request = self._hooks_request()
                given = request.headers.copy()
                self.server.pre_request(self.server.worker, request)
                if request.headers != given:
                    tell(self.environ, given, request.headers)
            if "HTTP_UPGRADE" in self.environ and wants_websocket(self.head):
                websocket = self._offer_websocket()
                if websocket is None:
                    return
            code = INTERNAL_ERROR
            try:
                self.result = self.application(self.environ, self.start_response)
                self._send_result()
                code = NORMAL
            finally:
                if websocket is not None and websocket.opened:
                    websocket.close(code)
                    self.connection.unread = True
        except gevent.GreenletExit:
            self.close_connection = True
        except WebSocketError:
            # The client has gone, or the closing handshake has begun, and the app let us know that it noticed.
            self.close_connection = True
        except OSError:
            if self.body.failure is not None:
                # The app had it from the body, or its framework made another OSError of that.
                self._answer_error(f"{self.body.failure.status} {REASONS[self.body.failure.status]}")
            elif self.connection.gone:
                self.close_connection = True
            else:
                self._fail()
        except BaseException:
            # gevent.Timeout and asyncio.CancelledError are no Exceptions, and their clients want an answer too.
            self._fail()
        finally:
            self.time_finish = time.time()
            if websocket is None or not websocket.opened:
                self.log_request()
            self._call_post_request()

    def invite_body(self) -> None:
        """Send 100 Continue, if it isn't too late for that."""
        if not self.headers_sent:
            self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fail(self) -> None:
        self.server.worker.log.exception("Error handling request %s", self.head.target)
        self._answer_error("500 Internal Server Error")

    def _answer_error(self, status: str) -> None:
        self.close_connection = True
        if self.headers_sent:
            return
        body = status[4:].encode("latin-1")
        self.connection.unread = True
        with contextlib.suppress(OSError):
            self.result = None
            self.response_use_chunked = False
            self.start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            self.write(body)

    # --- the response

    def _must_close(self) -> bool:
        """Whether the connection can't be used after this response."""
        if self.close_connection or not self.server.worker.alive or self.connection.moved:
            return True
        if self._left is None and not self.response_use_chunked:
            # Only the end of the connection tells the client where the body ends.
            return True
        # A client that still waits for 100 may send its body or not: which of them can't be told.
        return self.body.awaited or self.body.left > MAX_DISCARD_BYTES

    def finalize_headers(self) -> None:
        """Add what the server knows: length, date, and whether the connection stays."""
        headers = self.response_headers
        names = {name.lower() for name, _ in headers}
        if b"transfer-encoding" in names:
            # An app that proxies passes it on with the rest; how the body is framed here is not its business.
            headers[:] = [header for header in headers if header[0].lower() != b"transfer-encoding"]
        if b"connection" in names:
            # pywsgi knows only the very word.
            said = b",".join(value for name, value in headers if name.lower() == b"connection").lower()
            self.close_connection = self.close_connection or b"close" in said.replace(b" ", b"").split(b",")
        if self.provided_date is None:
            headers.append((b"Date", self.server.date()))
        if self.code not in (204, 304):
            if self.provided_content_length is not None:
                if self.provided_content_length.isdecimal():
                    self._left = int(self.provided_content_length)
            elif hasattr(self.result, "__len__"):
                self._left = sum(len(chunk) for chunk in self.result)
                headers.append((b"Content-Length", b"%d" % self._left))
            elif self.head.version == "HTTP/1.1":
                self.response_use_chunked = True
                headers.append((b"Transfer-Encoding", b"chunked"))
        if self.head.method == "HEAD" or self.code in (204, 304):
            self.response_use_chunked = False
            self._left = 0
        if self._must_close():
            self.close_connection = True
            if b"connection" in names:
                # In place of what the app has said.
                headers[:] = [header for header in headers if header[0].lower() != b"connection"]
            # Whoever sends Upgrade names it there (RFC 9110 section 7.8).
            headers.append((b"Connection", b"close, upgrade" if b"upgrade" in names else b"close"))
        elif self.head.version == "HTTP/1.0" and b"connection" not in names:
            headers.append((b"Connection", b"keep-alive"))

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        """PEP 3333's start_response; after a WebSocket upgrade it has nothing left to say."""
        if self._upgraded:
            return _ignore
        if str(status)[:3] in ("204", "304"):
            # A 204 must not have it, a 304 need not (RFC 9110 sections 8.6 and 15.4.5). Frameworks set it everywhere,
            # and pywsgi takes any but 0 for an error.
            headers = [(name, value) for name, value in headers if str(name).lower() != "content-length"]
        write: Callable[[bytes], None] = super().start_response(status, headers, exc_info)
        return write

    def write(self, data: bytes) -> None:
        """PEP 3333's write."""
        # Frameworks let a view give these a body; pywsgi takes it for an error, after the view has done its work.
        super().write(b"" if self.code in (204, 304) else data)

    def _write(self, data: bytes) -> None:
        self._send_body(b"", data)

    def _write_with_headers(self, data: bytes) -> None:
        self.finalize_headers()
        assert self.status is not None
        parts = [b"HTTP/1.1 ", self.status, b"\r\n"]
        for name, value in self.response_headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n")
        self._send_body(b"".join(parts), data)

    def _send_body(self, head: bytes, data: bytes) -> None:
        """Send a piece of the body, together with the head if both are small."""
        if self._left is not None:
            # Nothing may follow the body that the head promises: the client would take it for the next response.
            data = data[: self._left]
            self._left -= len(data)
        size = len(data)
        if data and self.response_use_chunked:
            data = b"%x\r\n%b\r\n" % (size, data)
        pieces = (head + data,) if size < JOIN_BYTES else (head, data)
        # From here on there is no other response; before, the app's piece may turn out not to be bytes.
        self.headers_sent = True
        self.response_length += size
        for piece in pieces:
            if piece:
                self.connection.send(piece)

    def _send_result(self) -> None:
        """Send what the app returned; after an upgrade it is not sent."""
        try:
            if self._upgraded:
                for _ in self.result or ():
                    pass
            else:
                self.process_result()
        finally:
            close = getattr(self.result, "close", None)
            self.result = None
            if close is not None:
                close()

    def process_result(self) -> None:
        """Send each piece of the body."""
        for data in self.result:
            if data:
                self.write(data)
        if not self.headers_sent:
            if self.status is None and self.connection.websocket is not None and self.connection.transport.is_taken:
                # simple-websocket has answered on the socket itself.
                return
            self.write(b"")
        if self.response_use_chunked:
            self.connection.send(b"0\r\n\r\n")
        if self._left:
            # The app promised more than it gave.
            self.close_connection = True

    # --- the WebSocket

    @property
    def _upgraded(self) -> bool:
        websocket = self.connection.websocket
        return websocket is not None and websocket.opened

    def _offer_websocket(self) -> WebSocket | None:
        """Have the app find a WebSocket that it may use.

        :returns: None if the client's handshake is wrong, which has been answered
        """
        self.close_connection = True
        try:
            accept = accept_key(self.environ)
        except HandshakeError as error:
            self.start_response(error.status, [*error.headers, ("Content-Length", "0")])
            self.write(b"")
            return None
        websocket = WebSocket(self.environ, self, accept, self.server.message_bytes())
        self.connection.websocket = websocket
        self.environ["wsgi.websocket"] = websocket
        self.environ["wsgi.websocket_version"] = "13"
        return websocket

    def send_upgrade(self, accept: str) -> None:
        """Answer the opening handshake. Called when the app uses the WebSocket for the first time."""
        self.status = b"101 Switching Protocols"
        self.code = 101
        self.headers_sent = True
        self.response_headers = [
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Accept", accept.encode("ascii")),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in self.response_headers)
        with contextlib.suppress(OSError):
            self.connection.send(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n")
        self.time_finish = time.time()
        self.log_request()
        if self.server.pre_request is None and self.server.post_request is None:
            # Nobody asks for them any more, and the WebSocket may be open for days.
            self.head.forget_fields()
            self.response_headers.clear()
        if not self.server.worker.alive:
            self.connection.retire()

    # --- logs and hooks

    def log_request(self) -> None:
        """A line in gunicorn's access log, if there is one."""
        if self.server.wants_access_log and self.status is not None:
            seconds = timedelta(seconds=max(0.0, self.time_finish - self.time_start))
            try:
                response, request = self._hooks_response(), self._hooks_request()
                self.server.worker.log.access(response, request, self.environ, seconds)
            except Exception:
                self.server.worker.log.exception("Exception in the logger's access()")

    def _call_post_request(self) -> None:
        if self.server.post_request is None:
            return
        try:
            response, request = self._hooks_response(), self._hooks_request()
            self.server.post_request(self.server.worker, request, self.environ, response)
        except Exception:
            self.server.worker.log.exception("Exception in post_request hook")

    def _hooks_request(self) -> Request:
        if self._request is None:
            connection = self.connection
            self._request = Request(self.head, connection.client, connection.peer, self._scheme)
        return self._request

    def _hooks_response(self) -> Response:
        return Response(
            self.status,
            self.response_headers,
            self.response_length,
            chunked=self.response_use_chunked,
            headers_sent=self.headers_sent,
        )


def _ignore(_: bytes) -> None:
    """What start_response gives after a WebSocket upgrade."""
