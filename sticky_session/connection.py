"""One connection of the worker: its phases and deadlines, the requests that are read from it, and its end.

A connection is always in one phase. Until a request's head has been read whole it has a deadline, and the server's
sweep ends the connections that are past theirs, so no timer is made for a request:

    NEW, IDLE --something arrives--> HEAD --empty line--> BUSY --response sent--> IDLE (kept alive) or closed
     |    |                           |
     |    past keep-alive:            past head_seconds:
     |    closed                      408, closed
     past head_seconds: closed

A connection on which nothing has arrived, NEW or IDLE, has no greenlet: it rests, watched by libev, and what arrives
gives it one (:meth:`Connection.arrive`) until it rests again. A head that has arrived whole is BUSY at once.

While the app thinks, a busy connection may stay as it is for ever. But in the middle of something that is sent or of a
request's body the client has to go on taking or sending: after STALL_SECONDS without a byte the connection ends.
"""

from __future__ import annotations

import contextlib
import enum
import time
from typing import TYPE_CHECKING, Any

import gevent

from sticky_session.body import Body
from sticky_session.environ import request_environ
from sticky_session.handler import Handler
from sticky_session.headreader import arrived_head, read_head
from sticky_session.identify import MAX_HEAD_BYTES
from sticky_session.reader import Reader
from sticky_session.rehoming import Homes, no_room
from sticky_session.request import BadRequest, Head, error_response, parse
from sticky_session.transport import Transport
from sticky_session.websocket import SERVICE_RESTART, WebSocket

if TYPE_CHECKING:
    import ssl

    from sticky_session.server import Server

# How long the client may take or send nothing in the middle of a response, a WebSocket's frame or a request's body.
STALL_SECONDS = 60.0
# How long the client may go on sending after an answer that ends the connection early.
LINGER_SECONDS = 2.0
# How long a retiring worker waits for the first request of a client that has just connected, and for another one from a
# proxy. Under load a proxy uses each connection more often than that.
LAST_REQUEST_SECONDS = 2.0
# After so many requests on a connection the others get their turn: a client that sends without waiting for responses
# never makes its greenlet wait.
TURN_REQUESTS = 16
# Sent at once over TLS, which takes all of it before it says that it has taken anything.
TLS_PIECE_BYTES = 64 * 1024

# The deadline of a connection that has none.
FOREVER = float("inf")
# The deadline of one that has been looked at once more.
OVERDUE = float("-inf")
_NOTHING: frozenset[str] = frozenset()


class Phase(enum.Enum):
    """What a connection is waiting for."""

    NEW = enum.auto()
    IDLE = enum.auto()
    HEAD = enum.auto()
    BUSY = enum.auto()


class Connection:
    """Reads the requests of one client, and has them answered.

    :param bind: index of the listening socket that it came in on
    :param peer: ``(host, port, ...)``, or an empty string for a Unix socket's peer
    :param address: ``(host, port)`` in place of the peer's, or None
    :param data: what has been read from it already
    :ivar deadline: when the sweep ends it
    :ivar send_deadline: when a send that is under way has stalled, unless the sweep sees that the client takes bytes
    :ivar client: the peer, or who the PROXY protocol says is behind it
    :ivar trust: what the peer's forwarding headers mean; None if they don't count
    :ivar homes: where the requests of a trusted peer belong; None if all of them stay here
    :ivar websocket: what the connection has become, if the app uses it
    :ivar unread: whether the client may have sent something that is not going to be read
    :ivar gone: whether sending has failed
    """

    __slots__ = (
        "_queued",
        "_routing",
        "bind",
        "client",
        "deadline",
        "gone",
        "homes",
        "peer",
        "phase",
        "rfile",
        "send_deadline",
        "server",
        "transport",
        "trust",
        "unread",
        "websocket",
    )

    def __init__(
        self, server: Server, transport: Transport, bind: int, peer: Any, address: tuple[str, int] | None, data: bytes
    ) -> None:
        self.transport = transport
        self.rfile = Reader(transport, data)
        self.peer = peer
        self.client = address or peer
        self.server = server
        self.bind = bind
        self.phase = Phase.NEW
        self.deadline = FOREVER
        self.send_deadline = FOREVER
        self.trust = server.trust if peer in server.trust.peers else None
        self.homes = server.homes if self.trust is not None else None
        self.websocket: WebSocket | None = None
        self.unread = False
        self.gone = False
        self._routing = server.routing()
        self._queued = 0

    # --- without a greenlet

    def begin(self) -> None:
        """Begin: in most cases the first request has arrived by now. Only the hub may call this."""
        if self.server.tls is not None or self.rfile:
            self.server.crew.run(self)
        else:
            self.arrive()

    def arrive(self) -> None:
        """Something has arrived. Only the hub may call this."""
        if not self.transport.secure:
            try:
                data = self.transport.receive_now()
            except BlockingIOError:
                self._rest()
                return
            except OSError:
                data = b""
            if not data:
                self._end()
                return
            self.rfile.feed(data)
        self.server.crew.run(self)

    def _rest(self) -> None:
        """Wait for a request."""
        seconds = self.server.head_seconds if self.phase is Phase.NEW else self.server.keepalive_seconds
        self.deadline = time.monotonic() + seconds
        if not self.server.worker.alive:
            self._end_soon()
        self.transport.watch(self._wake)

    def _wake(self) -> None:
        self.transport.unwatch()
        self.arrive()

    # --- requests

    def serve(self) -> None:
        """Serve what has arrived, in a greenlet; then the connection rests, or ends.

        The app is called from as few stack frames as can be, and they hold little: a WebSocket keeps them for days.
        """
        rests = False
        try:
            if self.server.tls is not None and not self.transport.secure:
                rests = self._shake_hands(self.server.tls)
            else:
                handler = Handler(self)
                served = 0
                while self._take_request(handler):
                    handler.respond()
                    if not self._finish_request(handler):
                        break
                    served += 1
                    if served % TURN_REQUESTS == 0:
                        gevent.sleep(0)
                    if not self.rfile and not self.transport.has_decrypted():
                        rests = self._may_rest()
                        break
        finally:
            # What the app has closed can't be watched.
            if rests and not self.transport.closed:
                self._rest()
            else:
                self._end()

    def _shake_hands(self, context: ssl.SSLContext) -> bool:
        self.deadline = time.monotonic() + self.server.head_seconds
        try:
            self.transport.encrypt(context, suppress_ragged_eofs=self.server.worker.cfg.suppress_ragged_eofs)
        except OSError as error:
            self.server.worker.log.debug("TLS handshake with %s failed: %s", self.peer, error)
            return False
        return True

    def _take_request(self, handler: Handler) -> bool:
        """Read the next request, and have the handler take it.

        :returns: whether there is one to respond to
        """
        raw: bytes | None = None
        try:
            # Only over TLS this may wait: what has arrived need not be a whole record.
            if not self.rfile.peek():
                return False
            raw = arrived_head(self.rfile)
            if raw is None:
                self.phase = Phase.HEAD
                self.deadline = time.monotonic() + self.server.head_seconds
                raw = read_head(self.rfile, self.server.limits)
                if raw is None:
                    return False
            allowed = _NOTHING if self.trust is None else self.trust.header_names
            head = parse(str(raw[:-4], "latin-1"), self.server.limits, self.server.underscores, allowed)
            application = self.server.application
            if self.trust is None and self.server.advice.wanted:
                self.server.advice.note(self.peer[0], head.environ)
            # Nothing has been done with the request up to here; what follows it is in rfile's buffer, or still to come.
            if self.homes is not None and (target := self._elsewhere(self.homes, head)) is not None:
                if self._move(self.homes, target, raw, head):
                    return False
                application = no_room
                # It is answered like any other: a refused upgrade would end the connection.
                head.environ.pop("HTTP_UPGRADE", None)
            environ = request_environ(self.server.bases[self.bind], head, self.client, self.trust)
        except BadRequest as error:
            self._refuse(error, raw or error.begun)
            return False
        except OSError:
            return False
        self.phase = Phase.BUSY
        self.deadline = FOREVER
        has_body = head.has_body
        if has_body:
            self.transport.settimeout(STALL_SECONDS)
        body = Body(
            self.rfile,
            head.content_length or 0,
            chunked=head.chunked,
            invite=handler.invite_body if head.expects_continue and has_body else None,
        )
        self.server.worker.count_request()
        handler.take(head, environ, body, application)
        return True

    def _finish_request(self, handler: Handler) -> bool:
        """Bring a request to its end that has been responded to.

        :returns: whether another may follow
        """
        head, body = handler.head, handler.body
        keep = not handler.close_connection
        if head.has_body:
            keep = keep and self._discard(body)
            self.unread = self.unread or body.left > 0
            self.transport.settimeout(None)
        if not keep and head.keep_alive and not self.unread:
            # The client did not expect it, and may have sent its next request already.
            self.unread = self.transport.has_input()
        return keep

    def _may_rest(self) -> bool:
        """Whether the connection may wait for another request."""
        # Where the worker retires: a client that has not been told so can be told by the next response.
        if not self.server.worker.alive and self.trust is None and not self.transport.has_input():
            return False
        self.phase = Phase.IDLE
        return True

    def _elsewhere(self, homes: Homes, head: Head) -> int | None:
        """The slot that the request belongs to; None if it is to be served here."""
        target = homes.target(head, self.peer)
        if target == homes.slot:
            # It may be another worker's by now.
            return None if self.server.worker.alive or not homes.is_served(target) else target
        return None if homes.is_forsaken(target) else target

    def _move(self, homes: Homes, target: int, raw: bytes, head: Head) -> bool:
        """Send the connection to the slot that the request belongs to.

        :param raw: the request's head as it was sent
        :returns: whether it has gone
        :raises BadRequest: the head is larger than the listener would have taken
        """
        if len(raw) > MAX_HEAD_BYTES:
            raise BadRequest(431, f"a head of {len(raw)} bytes; one that is passed on may have {MAX_HEAD_BYTES}")
        # What has been read already goes with it.
        if not homes.send(target, self.transport.fileno(), self.bind, raw + self.rfile.left, head):
            return False
        self.transport.forget()
        return True

    def _discard(self, body: Body) -> bool:
        """Throw away what the app has left of the body.

        :returns: whether the next request is what comes next
        """
        # The response is out: nothing can be said to a client that is slow now.
        self.phase = Phase.IDLE
        self.deadline = time.monotonic() + self.server.head_seconds
        try:
            body.discard()
        except OSError:
            return False
        return True

    def _refuse(self, error: BadRequest, head: bytes) -> None:
        """Answer a request that can't be served.

        :param head: as much of it as has been read
        """
        self.phase = Phase.BUSY
        self.deadline = FOREVER
        self.unread = True
        self.server.log_invalid(self.client, error)
        with contextlib.suppress(OSError):
            self.send(error_response(error.status, to_head=head.startswith(b"HEAD ")))

    # --- sending

    def send(self, data: bytes) -> None:
        """Send all of it, however long the client takes, as long as it goes on taking.

        :raises OSError: the client is gone, or has stalled
        """
        try:
            sent = 0 if self.transport.secure else self.transport.send_now(data)
            if sent == len(data):
                return
            left = memoryview(data)[sent:]
            most = TLS_PIECE_BYTES if self.transport.secure else len(left)
            while left:
                self.send_deadline = time.monotonic() + STALL_SECONDS
                try:
                    left = left[self.transport.send(left[:most]) :]
                except TimeoutError:
                    # The timeout is for the request's body. The sweep knows better what a client takes.
                    continue
        except OSError:
            self.gone = True
            raise
        finally:
            self.send_deadline = FOREVER

    # --- deadlines

    def check(self, now: float) -> None:
        """End the connection if a deadline has passed. Called by the sweep, where there may be something to do."""
        if self.deadline < now:
            if self.deadline > OVERDUE and self.transport.is_about_to_wake():
                # It has come while the worker was busy, and may have come in time. Once: there may always be more.
                self.deadline = OVERDUE
                return
            self.deadline = FOREVER
            self.expire()
            return
        # ValueError: an app may have closed the socket.
        with contextlib.suppress(OSError, ValueError):
            # The kernel lets us send again only when it has room for much, and a slow client may take long to make it.
            queued = self.transport.bytes_in_kernel()
            if queued != self._queued:
                self._queued = queued
                self.send_deadline = now + STALL_SECONDS
            elif self.send_deadline < now:
                # With a reset: the kernel would keep for long what the client doesn't take, and a response without a
                # length must not look like a whole one.
                self.transport.reset()

    def expire(self) -> None:
        """Nothing came in time: end the connection. Whoever reads from it, or watches it, sees its end."""
        if self.phase is Phase.HEAD and not self.transport.secure:
            with contextlib.suppress(OSError):
                self.transport.send_now(error_response(408))
        if self.phase is Phase.IDLE and self.transport.closed:
            # By the app, while it rested: nothing tells its watcher.
            self._end()
        else:
            self.transport.cut()

    def retire(self) -> None:
        """The worker retires: end what the client can begin again elsewhere, let the rest finish."""
        if self.websocket is not None and self.websocket.opened:
            gevent.spawn(self.websocket.close, SERVICE_RESTART)
            # A client that does not answer the close frame is not waited for any longer than that.
            self.deadline = time.monotonic() + LINGER_SECONDS
        elif self.phase is Phase.NEW or (self.phase is Phase.IDLE and self.trust is not None):
            # A request may be on the way. A client sends a connection's first one only once; and a proxy that finds a
            # connection closed doesn't send a POST again, but answers 502.
            self._end_soon()
        elif self.phase is Phase.IDLE and not self.transport.has_input():
            self.expire()

    def _end_soon(self) -> None:
        self.deadline = min(self.deadline, time.monotonic() + LAST_REQUEST_SECONDS)

    @property
    def moved(self) -> bool:
        """Whether clients have moved to or from this worker since it began: its next connection finds out."""
        return self.homes is None and self._routing != self.server.routing()

    # --- the end

    def _end(self) -> None:
        # What it has for a deadline is none of what follows.
        self.phase = Phase.BUSY
        self.deadline = FOREVER
        try:
            if self.unread:
                with contextlib.suppress(OSError):
                    self._linger()
        finally:
            self.transport.close()
            self.server.leave(self)

    def _linger(self) -> None:
        """Let the client read the answer: closing with bytes unread would reset the connection.

        RFC 9112 section 9.6.
        """
        if self.transport.interrupt():
            # A greenlet that the app has left receiving; there can't be two.
            gevent.sleep(0)
        self.transport.finish()
        deadline = time.monotonic() + LINGER_SECONDS
        self.transport.settimeout(LINGER_SECONDS)
        while time.monotonic() < deadline and self.transport.receive(65536):
            # A client that is fast would not let anybody else have a turn.
            gevent.sleep(0)
