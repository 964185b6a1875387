"""The worker's server: takes connections from the channel, gives each a greenlet, and ends those that take too long."""

from __future__ import annotations

import os
import ssl
import time
from socket import AF_UNIX
from typing import TYPE_CHECKING, Any

import gevent
from gevent import pywsgi
from gevent.pool import Pool
from gevent.socket import SOCK_STREAM
from gevent.socket import socket as GeventSocket
from gunicorn.glogging import Logger
from gunicorn.sock import ssl_context

from sticky_session import handoff
from sticky_session.advice import Advice
from sticky_session.connection import FOREVER, Connection
from sticky_session.environ import bind_environ
from sticky_session.hooks import custom_hook
from sticky_session.identify import ByHeader, identification
from sticky_session.outside import Visit
from sticky_session.rehoming import Homes
from sticky_session.request import BadRequest, Limits
from sticky_session.trust import Trust

if TYPE_CHECKING:
    from sticky_session.worker import Worker


class Server(pywsgi.WSGIServer):  # type: ignore[misc]
    """Takes connections from the worker's channel, and gives each a greenlet.

    Reading stops while ``worker_connections`` are open, so that the channel fills and the listener answers 503.
    """

    def __init__(self, worker: Worker) -> None:
        cfg = worker.cfg
        self.worker = worker
        self.secure = bool(cfg.is_ssl)
        self._context = ssl_context(cfg) if self.secure else None
        self.connections: set[Connection] = set()
        self._visits: set[Visit] = set()
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
        self._receiver = handoff.Receiver(worker.seat.channel)
        self._binds = worker.seat.generation.binds
        pool = Pool(worker.connection_limit())
        channel = GeventSocket(fileno=os.dup(worker.seat.channel.fileno()))
        super().__init__(channel, application=worker.wsgi, spawn=pool, log=None, error_log=None)
        known = identification(cfg, worker.options)
        self.homes = Homes(worker.seat, worker.options.header()) if isinstance(known, ByHeader) else None
        self.advice = Advice(cfg, worker.options, worker.seat.generation.table.advice, worker.log)
        self.bases = [bind_environ(cfg, address, worker.seat.slot) for _, address, _ in self._binds]
        # pywsgi takes one at a time where several processes share a listening socket; nobody shares ours.
        self.max_accept = 64
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
            self._date = (now, pywsgi.format_date_time(now))
        return self._date[1]

    def log_invalid(self, peer: Any, error: BadRequest) -> None:
        """A line in the error log about a client's mistake, as gunicorn writes it."""
        host = peer[0] if isinstance(peer, tuple) else ""
        self.worker.log.warning("Invalid request from ip=%s: %s", host, error)

    # --- connections

    def do_read(self) -> tuple[Any, Any, handoff.Frame] | None:
        """Take the next connection from the channel."""
        try:
            frame = self._receiver.receive()
        except BlockingIOError:
            if self.draining:
                self.close()
            return None
        except EOFError:
            # The arbiter and the listener were killed, and the worker is about to find out.
            self.close()
            return None
        if frame is None:
            self.worker.log.error("A connection was lost: no descriptors left in this worker; raise ulimit -n")
            return None
        family = self._binds[frame.bind].family
        sock = GeventSocket(family, SOCK_STREAM, 0, fileno=frame.descriptor)
        # The app's socket.setdefaulttimeout() is not meant for its clients.
        sock.settimeout(None)
        try:
            peer = sock._sock.getpeername()
        except OSError:
            # The client has gone already.
            sock.close()
            return None
        return sock, "" if family == AF_UNIX else peer, frame

    def handle(self, sock: Any, peer: Any, frame: handoff.Frame) -> None:
        """Serve a connection, in a greenlet of its own."""
        if self._binds[frame.bind].for_bus:
            self._receive(Visit(sock, self.worker.publish, self.worker.settle, self.worker.log))
            return
        if self._context is not None:
            try:
                with gevent.Timeout(self.head_seconds):
                    sock = self._wrap(sock)
            except (OSError, gevent.Timeout) as error:
                self.worker.log.debug("TLS handshake with %s failed: %s", peer, error)
                return
        Connection(sock, peer, frame, self).serve()

    def _receive(self, visit: Visit) -> None:
        """Take messages from outside."""
        self._visits.add(visit)
        if not self.worker.alive:
            # It waited in the channel while the others were told.
            gevent.spawn(visit.retire)
        try:
            visit.serve()
        finally:
            self._visits.remove(visit)

    def _wrap(self, sock: Any) -> ssl.SSLSocket:
        assert self._context is not None
        cfg = self.worker.cfg
        wrapped: ssl.SSLSocket = self._context.wrap_socket(
            sock,
            server_side=True,
            suppress_ragged_eofs=cfg.suppress_ragged_eofs,
            do_handshake_on_connect=True,
        )
        return wrapped

    def _sweep(self) -> None:
        """End the connections that are past a deadline."""
        shortest = min(self.head_seconds, self.keepalive_seconds or self.head_seconds)
        while True:
            gevent.sleep(min(1.0, shortest / 4))
            now = time.monotonic()
            for each in [each for each in self.connections if each.deadline < now or each.send_deadline < FOREVER]:
                each.check(now)

    def retire(self, *, drain: bool) -> None:
        """Take no more connections, and end what clients can begin again elsewhere.

        :param drain: whether to take first what is in the channel
        """
        self.draining = True
        if drain:
            self.drain()
        else:
            self.close()
        for connection in list(self.connections):
            connection.retire()
        for visit in self._visits:
            gevent.spawn(visit.retire)

    def drain(self) -> None:
        """Take from the channel what there are places for, and close when that was all."""
        if not self.closed and not self.full():
            self._do_read()

    def close(self) -> None:
        """Take no more connections."""
        super().close()
        self.draining = True
