"""The worker's HTTP side: one handler a connection, and the limits that gevent's pywsgi lacks.

A handler is always in one phase. Until a request's head has been read whole it has a deadline, and the server's sweep
ends the connections that are past theirs, so no timer is made for a request:

    NEW, IDLE --first byte--> HEAD --empty line--> BUSY --response sent--> IDLE (kept alive) or closed
     |    |                    |
     |    past keep-alive:     past head_seconds:
     |    closed               408, closed
     past head_seconds: closed

Of pywsgi remain the checks of the app's headers, and the server around the greenlets.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import time
from collections.abc import Callable
from datetime import timedelta
from socket import MSG_DONTWAIT, MSG_PEEK, SHUT_RD, SHUT_RDWR, SHUT_WR
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import gevent
from gevent import pywsgi
from geventwebsocket.exceptions import WebSocketError

from sticky_session.body import Body, BodyError
from sticky_session.request import REASONS, BadRequest, Head, error_response, parse
from sticky_session.websocket import (
    INTERNAL_ERROR,
    NORMAL,
    SERVICE_RESTART,
    HandshakeError,
    WebSocket,
    accept_key,
)

if TYPE_CHECKING:
    from sticky_session.server import Server

# A request body that the app leaves unread is read and thrown away up to this, to keep the connection.
MAX_DISCARD_BYTES = 64 * 1024
# How long the client may go on sending after an answer that ends the connection early.
LINGER_SECONDS = 2.0
# How long a retiring worker waits for the first request of a client that has just connected.
FIRST_REQUEST_SECONDS = 2.0
# After so many requests on a connection the others get their turn: a client that sends without waiting for responses
# never makes its greenlet wait.
TURN_REQUESTS = 16
# How long the client may pause in the middle of a body.
BODY_SECONDS = 60.0
# A body that is shorter goes out together with the head.
JOIN_BYTES = 64 * 1024

_NOTHING: frozenset[str] = frozenset()
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.ETIMEDOUT})
# The deadline of a connection that has none.
FOREVER = float("inf")


class Phase(enum.Enum):
    """What a connection is waiting for."""

    NEW = enum.auto()
    IDLE = enum.auto()
    HEAD = enum.auto()
    BUSY = enum.auto()


class Response:
    """What gunicorn's logger and hooks want to know of a response."""

    __slots__ = ("headers", "response_length", "sent", "status")

    def __init__(self, status: str, headers: list[tuple[str, str]], sent: int) -> None:
        self.status = status
        self.headers = headers
        self.sent = sent
        self.response_length = sent


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


class Handler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """Serves one connection.

    :param sock: gevent's socket, or its TLS socket
    :param peer: ``(host, port, ...)``, or an empty string for a Unix socket's peer
    :param base: the environ's share that is the same for all connections of a bind
    """

    # pywsgi's attributes, untyped there.
    server: Server
    socket: Any
    environ: dict[str, Any]
    status: bytes | None
    result: Any
    code: int
    response_headers: list[tuple[bytes, bytes]]

    head: Head
    body: Body

    def __init__(self, sock: Any, peer: Any, server: Server, base: dict[str, Any]) -> None:
        super().__init__(sock, peer, server)
        self.base = base
        self.phase = Phase.NEW
        self.deadline = time.monotonic() + server.head_seconds
        self.websocket: WebSocket | None = None
        self._trusted = server.trust.trusts(peer)
        self._routing = server.routing()
        self._served = 0
        self._unread = False
        self._content_length: int | None = None
        # How much of the promised body is still to come; None if nothing was promised.
        self._left: int | None = None

    # --- the connection

    def handle(self) -> None:
        """Serve requests until the connection ends."""
        self.server.handlers.add(self)
        try:
            while self._serve_one():
                self._served += 1
                if self._served % TURN_REQUESTS == 0:
                    gevent.sleep(0)
                self.phase = Phase.IDLE
                self.deadline = time.monotonic() + self.server.keepalive_seconds
                if not self.server.worker.alive:
                    self._unread = self._has_input()
                    break
        finally:
            self.server.handlers.discard(self)
            self._close()

    def expire(self) -> None:
        """The deadline has passed: end the connection. Called by the sweep."""
        sock = getattr(self.socket, "_sock", self.socket)
        with contextlib.suppress(OSError):
            if self.phase is Phase.HEAD and not self.server.secure:
                sock.send(error_response(408))
                sock.shutdown(SHUT_WR)
                # The greenlet that reads sees the end.
                sock.shutdown(SHUT_RD)
            else:
                sock.shutdown(SHUT_RDWR)

    def retire(self) -> None:
        """The worker retires: end what the client can begin again elsewhere, let the rest finish."""
        if self.websocket is not None and self.websocket.opened:
            gevent.spawn(self.websocket.close, SERVICE_RESTART)
            # A client that does not answer the close frame is not waited for any longer than that.
            self.deadline = time.monotonic() + LINGER_SECONDS
        elif self.phase is Phase.NEW:
            # Its request may be on the way, and a client sends a connection's first request only once.
            self.deadline = min(self.deadline, time.monotonic() + FIRST_REQUEST_SECONDS)
        elif self.phase is Phase.IDLE and not self._has_input():
            self.expire()

    def _has_input(self) -> bool:
        """Whether something has arrived that nobody has read yet, or the client has closed."""
        sock = getattr(self.socket, "_sock", self.socket)
        try:
            sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except OSError as error:
            return error.errno != errno.EAGAIN
        return True

    def _close(self) -> None:
        sock = self.socket
        if self._unread:
            with contextlib.suppress(OSError):
                self._linger(sock)
        with contextlib.suppress(OSError):
            self.rfile.close()
            sock.close()
        self.__dict__.pop("socket", None)
        self.__dict__.pop("rfile", None)
        self.__dict__.pop("body", None)

    def _linger(self, sock: Any) -> None:
        """Let the client read the answer: closing with bytes unread would reset the connection.

        RFC 9112 section 9.6.
        """
        if not self.server.secure:
            sock.shutdown(SHUT_WR)
        deadline = time.monotonic() + LINGER_SECONDS
        sock.settimeout(LINGER_SECONDS)
        while time.monotonic() < deadline and sock.recv(65536):
            # A client that is fast would not let anybody else have a turn.
            gevent.sleep(0)

    # --- one request

    def _serve_one(self) -> bool:
        """Serve the next request.

        :returns: whether another may follow
        """
        try:
            text = self._read_head()
            if text is None:
                return False
            allowed = self.server.trust.header_names if self._trusted else _NOTHING
            head = parse(text, self.server.limits, self.server.underscores, allowed)
            self.phase = Phase.BUSY
            self.deadline = FOREVER
            self.head = head
            self.environ = self.get_environ()
        except BadRequest as error:
            self.server.log_invalid(self.client_address, error)
            self._unread = True
            with contextlib.suppress(OSError):
                self.socket.sendall(error_response(error.status))
            return False
        except OSError:
            return False
        self.close_connection = not head.keep_alive or not self.server.keepalive_seconds
        self.server.worker.count_request()
        self.handle_one_response()
        if self.close_connection and head.keep_alive and not self._unread:
            # The client did not expect it, and may have sent its next request already.
            self._unread = self._has_input()
        return not self.close_connection

    def _read_head(self) -> str | None:
        """The next request's head without its empty line, latin-1; None at the connection's end."""
        buffered: bytes = self.rfile.peek(1)
        if not buffered:
            return None
        self.phase = Phase.HEAD
        self.deadline = time.monotonic() + self.server.head_seconds
        end = buffered.find(b"\r\n\r\n")
        if end > 0 and buffered[0] != 13:
            return str(self.rfile.read(end + 4)[:end], "latin-1")
        if buffered[0] < 32 and buffered[0] != 13:
            raise BadRequest(400, f"the request begins with {buffered[:16]!r}")
        return self._read_long_head()

    def _read_long_head(self) -> str | None:
        """A head that has not arrived in one piece."""
        limits = self.server.limits
        lines: list[bytes] = []
        left = limits.head_bytes
        while True:
            longest = (limits.field_size if lines else limits.line) or left
            line: bytes = self.rfile.readline(min(longest, left) + 2)
            if not line.endswith(b"\n"):
                if len(line) < min(longest, left) + 2:
                    return None
                raise BadRequest(431 if lines else 414, "a line longer than its limit")
            if not line.endswith(b"\r\n"):
                raise BadRequest(400, "a line that ends without CR")
            if line != b"\r\n":
                lines.append(line)
            elif lines:
                return str(b"".join(lines)[:-2], "latin-1")
            left -= len(line)
            if left <= 0 or len(lines) > limits.fields + 1:
                raise BadRequest(431, "a head larger than its limits")

    def get_environ(self) -> dict[str, Any]:
        """The WSGI environ (PEP 3333), with gunicorn's additions.

        :raises BadRequest: contradictory scheme headers, or a path outside SCRIPT_NAME
        """
        head = self.head
        env = self.base.copy()
        env.update(head.environ)
        path = head.path
        if "%" in path:
            path = str(unquote_to_bytes(path.encode("latin-1")), "latin-1")
        env["REQUEST_METHOD"] = head.method
        env["PATH_INFO"] = path
        env["QUERY_STRING"] = head.query
        env["RAW_URI"] = head.target
        env["SERVER_PROTOCOL"] = head.version
        env["gunicorn.sock"] = self.socket
        peer = self.client_address
        if isinstance(peer, tuple):
            env["REMOTE_ADDR"] = peer[0]
            env["REMOTE_PORT"] = str(peer[1])
        else:
            env["REMOTE_ADDR"] = ""
        self.server.complete_environ(env, head, self._trusted)
        if head.content_length or head.chunked:
            self.socket.settimeout(BODY_SECONDS)
        self.body = env["wsgi.input"] = Body(
            self.rfile,
            head.content_length or 0,
            chunked=head.chunked,
            invite=self._invite_body if head.expects_continue else None,
        )
        return env

    def _invite_body(self) -> None:
        if not self.headers_sent:
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- the response

    def handle_one_response(self) -> None:
        """Run the app, and see to it that the connection is in a known state after it."""
        self.time_start = time.time()
        self.status = None
        self.headers_sent = False
        self.result = None
        self.response_use_chunked = False
        self.response_length = 0
        self.code = 0
        self._left = None
        # pywsgi would add a Connection header of its own to responses to HTTP/1.0.
        self.request_version = "HTTP/1.1"
        self.application = self.server.application
        try:
            if self.server.pre_request is not None:
                self.server.pre_request(self.server.worker, Request(self.head))
            if self.head.environ.get("HTTP_UPGRADE", "").lower() == "websocket" and self._wants_upgrade():
                self._run_upgrade()
            else:
                self.run_application()
            if self.code >= 0 and not self.close_connection:
                self._discard_body()
        except gevent.GreenletExit:
            self.close_connection = True
        except BodyError as error:
            self._answer_error(f"{error.status} {REASONS[error.status]}")
        except WebSocketError:
            # The client has gone, or the closing handshake has begun, and the app let us know that it noticed.
            self.close_connection = True
        except OSError as error:
            self.close_connection = True
            if error.errno not in _GONE:
                self._fail()
        except BaseException:
            # gevent.Timeout and asyncio.CancelledError are no Exceptions, and their clients want an answer too.
            self._fail()
        finally:
            self.time_finish = time.time()
            if self.close_connection and self.body.left:
                self._unread = True
            if not self.websocket or not self.websocket.opened:
                self.log_request()
            self._call_post_request()

    def _fail(self) -> None:
        self.server.worker.log.exception("Error handling request %s", self.head.target)
        self._answer_error("500 Internal Server Error")

    def _answer_error(self, status: str) -> None:
        self.close_connection = True
        if self.headers_sent or (self.websocket and self.websocket.opened):
            return
        body = status[4:].encode("latin-1")
        self._unread = True
        with contextlib.suppress(OSError):
            self.result = None
            self.response_use_chunked = False
            self.start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            self.write(body)

    def _discard_body(self) -> None:
        if self.head.chunked or self.head.content_length:
            # The response is out: nothing can be said to a client that is slow now.
            self.phase = Phase.IDLE
            self.deadline = time.monotonic() + self.server.head_seconds
            self.body.discard()

    def _must_close(self) -> bool:
        """Whether the connection can't be used after this response."""
        if self.close_connection or not self.server.worker.alive:
            return True
        if self._routing != self.server.routing():
            # The client may belong to another worker now: its next connection finds out.
            return True
        if self._left is None and not self.response_use_chunked:
            # Only the end of the connection tells the client where the body ends.
            return True
        # A client that still waits for 100 may send its body or not: which of them can't be told.
        return self.body.awaited or self.body.left > MAX_DISCARD_BYTES

    def finalize_headers(self) -> None:
        """Add what the server knows: length, date, and whether the connection stays."""
        headers = self.response_headers
        if any(name.lower() == b"transfer-encoding" for name, _ in headers):
            # An app that proxies passes it on with the rest; how the body is framed here is not its business.
            headers[:] = [header for header in headers if header[0].lower() != b"transfer-encoding"]
        self._content_length = None
        if self.provided_date is None:
            headers.append((b"Date", self.server.date()))
        if self.code not in (204, 304):
            if self.provided_content_length is not None:
                if self.provided_content_length.isdecimal():
                    self._content_length = int(self.provided_content_length)
            elif hasattr(self.result, "__len__"):
                self._content_length = sum(len(chunk) for chunk in self.result)
                headers.append((b"Content-Length", b"%d" % self._content_length))
            elif self.head.version == "HTTP/1.1":
                self.response_use_chunked = True
                headers.append((b"Transfer-Encoding", b"chunked"))
        self._left = self._content_length
        if self.head.method == "HEAD" or self.code in (204, 304):
            self.response_use_chunked = False
            self._left = 0
        if self._must_close():
            self.close_connection = True
            # In place of what the app may have said.
            headers[:] = [header for header in headers if header[0].lower() != b"connection"]
            headers.append((b"Connection", b"close"))
        elif self.head.version == "HTTP/1.0" and b"connection" not in {name.lower() for name, _ in headers}:
            headers.append((b"Connection", b"keep-alive"))

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        """PEP 3333's start_response; after a WebSocket upgrade it has nothing left to say."""
        if self.websocket is not None and self.websocket.opened:
            return _ignore
        write: Callable[[bytes], None] = super().start_response(status, headers, exc_info)
        return write

    def _write(self, data: bytes) -> None:
        self._send_body(b"", data)

    def _write_with_headers(self, data: bytes) -> None:
        # It was for the body: how long a response takes is up to the client.
        if self.socket.timeout is not None:
            self.socket.settimeout(None)
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
                self.socket.sendall(piece)

    def process_result(self) -> None:
        """Send what the app returned."""
        for data in self.result:
            if data:
                self.write(data)
        if not self.headers_sent:
            if self.status is None and self.websocket is not None:
                # simple-websocket has answered on the socket itself.
                return
            self.write(b"")
        if self.response_use_chunked:
            self.socket.sendall(b"0\r\n\r\n")
        if self._left:
            # The app promised more than it gave.
            self.close_connection = True

    # --- WebSocket

    def _wants_upgrade(self) -> bool:
        connection = self.head.environ.get("HTTP_CONNECTION", "").lower()
        return (
            self.head.method == "GET"
            and self.head.version == "HTTP/1.1"
            and "upgrade" in (option.strip() for option in connection.split(","))
        )

    def _run_upgrade(self) -> None:
        """Run the app with a WebSocket that it may use."""
        self.close_connection = True
        try:
            accept = accept_key(self.environ)
        except HandshakeError as error:
            self.start_response(error.status, [*error.headers, ("Content-Length", "0")])
            self.write(b"")
            return
        websocket = self.websocket = WebSocket(self.environ, self, accept, self.server.message_bytes())
        self.environ["wsgi.websocket"] = websocket
        self.environ["wsgi.websocket_version"] = "13"
        code = INTERNAL_ERROR
        try:
            self.run_application()
            code = NORMAL
        finally:
            if websocket.opened:
                websocket.close(code)
                self._unread = True

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
            self.socket.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n")
        self.time_finish = time.time()
        self.log_request()
        if not self.server.worker.alive:
            self.retire()

    def run_application(self) -> None:
        """Call the app and send what it returns; what it returns after an upgrade is not sent."""
        if self.websocket is None:
            super().run_application()
            return
        self.result = self.application(self.environ, self.start_response)
        try:
            if self.websocket.opened:
                for _ in self.result or ():
                    pass
            else:
                self.process_result()
        finally:
            if hasattr(self.result, "close"):
                self.result.close()
            self.result = None

    # --- logs and hooks

    def log_request(self) -> None:
        """A line in gunicorn's access log, if there is one."""
        if self.server.wants_access_log and self.status is not None:
            seconds = timedelta(seconds=max(0.0, self.time_finish - self.time_start))
            self.server.worker.log.access(self._response(), self.head.fields, self.environ, seconds)

    def _response(self) -> Response:
        status = self.status.decode("latin-1") if self.status else "500 Internal Server Error"
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.response_headers or ()]
        return Response(status, headers, self.response_length)

    def _call_post_request(self) -> None:
        if self.server.post_request is None:
            return
        try:
            self.server.post_request(self.server.worker, Request(self.head), self.environ, self._response())
        except Exception:
            self.server.worker.log.exception("Exception in post_request hook")


def _ignore(_: bytes) -> None:
    """What start_response gives after a WebSocket upgrade."""
