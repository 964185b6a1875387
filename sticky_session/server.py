"""The worker's server: takes connections in, and has those ended that take too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from socket import AF_UNIX
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.pywsgi import format_date_time
from gevent.socket import SOCK_STREAM
from gevent.socket import socket as GeventSocket
from gunicorn.glogging import Logger
from gunicorn.sock import ssl_context

from sticky_session import handoff
from sticky_session.acceptor import Acceptor
from sticky_session.advice import Advice
from sticky_session.connection import FOREVER, Connection
from sticky_session.crew import Crew
from sticky_session.environ import bind_environ
from sticky_session.hooks import custom_hook
from sticky_session.identify import ByHeader, identification
from sticky_session.outside import Visit
from sticky_session.rehoming import Homes
from sticky_session.request import BadRequest, Limits
from sticky_session.transport import Transport
from sticky_session.trust import Trust

if TYPE_CHECKING:
    from sticky_session.worker import Worker

# How many connections are taken before those that are open get their turn.
TURN_CONNECTIONS = 16

_READ = 1  # libev's

# Takes one connection in; returns False if there is none.
Source = Callable[[], bool]


class Server:
    """Takes connections from the worker's channel, has them accepted where the kernel routes, and owns them.

    Reading stops while ``worker_connections`` are open, so that the channel fills and the listener answers 503.

    :ivar tls: what TLS needs to know; None if it is not spoken
    :ivar crew: the greenlets that run the app
    :ivar draining: whether it is to take only what waits already
    :ivar closed: whether no more connections are taken
    """

    def __init__(self, worker: Worker) -> None:
        cfg = worker.cfg
        self.worker = worker
        self.application = worker.wsgi
        # None in a worker class derived from ours that loads the app in its own way.
        self.tls = worker.tls or (ssl_context(cfg) if cfg.is_ssl else None)
        self.crew = Crew()
        self.closed = False
        self._limit = worker.connection_limit()
        self._connections: set[Connection] = set()
        self._visits: set[Visit] = set()
        self._empty = Event()
        self.draining = False
        self.head_seconds = worker.options.head_seconds
        self.keepalive_seconds = cfg.keepalive
        self.limits = Limits(cfg.limit_request_line, cfg.limit_request_fields or 32768, cfg.limit_request_field_size)
        self.underscores = cfg.header_map
        self.pre_request = custom_hook(cfg, "pre_request")
        self.post_request = custom_hook(cfg, "post_request")
        self.wants_access_log = worker.log.access_log_enabled or type(worker.log).access is not Logger.access
        self.trust = Trust(cfg)
        self._date = (0, b"")
        self._binds = worker.seat.generation.binds
        known = identification(cfg, worker.options)
        self.homes = Homes(worker.seat, worker.options.header()) if isinstance(known, ByHeader) else None
        self.advice = Advice(cfg, worker.options, worker.seat.generation.table.advice, worker.log)
        self.bases = [bind_environ(cfg, address, worker.seat.slot) for _, address, _ in self._binds]
        self._receiver = handoff.Receiver(worker.seat.channel)
        self._watcher = gevent.get_hub().loop.io(worker.seat.channel.fileno(), _READ)
        self._acceptor = Acceptor(self) if worker.seat.generation.groups else None
        self._taking = False

    def __len__(self) -> int:
        """How many connections are open."""
        passing_on = 0 if self._acceptor is None else self._acceptor.passing_on
        return len(self._connections) + len(self._visits) + passing_on

    def start(self) -> None:
        """Begin to take connections."""
        self.make_room()
        self._sweeper = gevent.spawn(self._sweep)

    def routing(self) -> tuple[int, int]:
        """What changes whenever clients may have moved to or from this worker."""
        return self.worker.seat.generation.table.routing

    def message_bytes(self) -> int:
        """The largest WebSocket message taken."""
        return self.worker.message_bytes()

    def date(self) -> bytes:
        """The Date header's value, made once a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, format_date_time(now))
        return self._date[1]

    def log_invalid(self, peer: Any, error: BadRequest) -> None:
        """A line in the error log about a client's mistake, as gunicorn writes it."""
        host = peer[0] if isinstance(peer, tuple) else ""
        self.worker.log.warning("Invalid request from ip=%s: %s", host, error)

    # --- connections

    def take(self, source: Source) -> None:
        """Take connections in, as many as there are places for. Only the hub may call this."""
        for _ in range(TURN_CONNECTIONS):
            if self.closed or len(self) >= self._limit or not (self.worker.alive or self.draining):
                self._pause()
                return
            try:
                if not source():
                    return
            except Exception:
                # The sweep goes on.
                self._pause()
                self.worker.log.exception("Can't take connections")
                return

    def _pause(self) -> None:
        self._taking = False
        self._watcher.stop()
        if self._acceptor is not None:
            self._acceptor.stop()

    def make_room(self) -> None:
        """A place is free, or there are no more to be had."""
        if self.closed:
            if not len(self):
                self._empty.set()
        elif not self._taking:
            self._taking = True
            self._watcher.start(self.take, self._from_channel)
            if self._acceptor is not None:
                self._acceptor.start()

    def _from_channel(self) -> bool:
        try:
            frame = self._receiver.receive()
        except BlockingIOError:
            if self.draining and (self._acceptor is None or self._acceptor.done):
                self.close()
            return False
        except EOFError:
            # The arbiter and the listener were killed, and the worker is about to find out.
            self.close()
            return False
        if frame is None:
            self.worker.log.error("A connection was lost: no descriptors left in this worker; raise ulimit -n")
            return False
        self.begin(frame.descriptor, frame.bind, address=frame.address, data=frame.data)
        return True

    def begin(
        self,
        descriptor: int,
        bind: int,
        *,
        peer: Any = None,
        address: tuple[str, int] | None = None,
        data: bytes = b"",
    ) -> None:
        """Serve a connection. Only the hub may call this.

        :param descriptor: owned from now on
        :param bind: index of the listening socket that it came in on
        :param peer: as accept(2) has said it; None if it is to be asked for
        :param address: ``(host, port)`` in place of the peer's, or None
        :param data: what has been read from it already
        """
        family = self._binds[bind].family
        if self._binds[bind].for_bus:
            self._receive(GeventSocket(family, SOCK_STREAM, 0, fileno=descriptor))
            return
        transport = Transport(descriptor, family)
        try:
            peer = "" if family == AF_UNIX else peer or transport.peer()
        except OSError:
            # The client has gone already.
            transport.close()
            return
        connection = Connection(self, transport, bind, peer, address, data)
        self._connections.add(connection)
        connection.begin()

    def leave(self, connection: Connection) -> None:
        """A connection has been closed."""
        self._connections.discard(connection)
        self.make_room()

    def _receive(self, sock: Any) -> None:
        """Take messages from outside."""
        # The app's socket.setdefaulttimeout() is not meant for its clients.
        sock.settimeout(None)
        visit = Visit(sock, self.worker.publish, self.worker.settle, self.worker.log)
        self._visits.add(visit)
        gevent.spawn(self._serve_visit, visit)
        if not self.worker.alive:
            # It waited in the channel while the others were told.
            gevent.spawn(visit.retire)

    def _serve_visit(self, visit: Visit) -> None:
        try:
            visit.serve()
        finally:
            self._visits.remove(visit)
            self.make_room()

    def _sweep(self) -> None:
        """End the connections that are past a deadline."""
        shortest = min(self.head_seconds, self.keepalive_seconds or self.head_seconds)
        while True:
            gevent.sleep(min(1.0, shortest / 4))
            now = time.monotonic()
            for each in [each for each in self._connections if each.deadline < now or each.send_deadline < FOREVER]:
                each.check(now)
            # After an error.
            self.make_room()

    def retire(self, *, drain: bool) -> None:
        """Take no more connections, and end what clients can begin again elsewhere.

        :param drain: whether to take first what is in the channel, and what is to be accepted
        """
        if drain:
            self.draining = True
            self.make_room()
        else:
            self.close()
        for connection in list(self._connections):
            connection.retire()
        for visit in self._visits:
            gevent.spawn(visit.retire)

    def join(self, seconds: float) -> None:
        """Wait until no connection is open and no more are taken, but no longer than so many seconds."""
        if self.draining and not self.closed:
            # Nothing tells that nobody waits any more.
            sources = [] if self._acceptor is None else self._acceptor.sources()
            for source in (*sources, self._from_channel):
                gevent.get_hub().loop.run_callback(self.take, source)
        self._empty.wait(seconds)

    def close(self) -> None:
        """Take no more connections."""
        self.closed = True
        self._pause()
        if self._acceptor is not None:
            self._acceptor.close()
        self.make_room()
