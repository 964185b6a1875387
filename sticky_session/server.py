"""The worker's server: takes connections from the channel, gives each a handler, and ends those that take too long."""

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
from gunicorn.http.wsgi import base_environ
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import VERSION

from sticky_session import handoff
from sticky_session.handler import FOREVER, Handler
from sticky_session.request import BadRequest, Head, Limits
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
        self.handlers: set[Handler] = set()
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
        self._script_name = os.environ.get("SCRIPT_NAME", "")
        self._receiver = handoff.Receiver(worker.seat.channel)
        self._binds = worker.seat.generation.binds
        pool = Pool(worker.connection_limit())
        channel = GeventSocket(fileno=os.dup(worker.seat.channel.fileno()))
        environ = base_environ(cfg)
        super().__init__(channel, application=worker.wsgi, spawn=pool, log=None, error_log=None, environ=environ)
        self._bases = [self._base_environ(address) for _, address in self._binds]
        # pywsgi takes one at a time where several processes share a listening socket; nobody shares ours.
        self.max_accept = 64
        self._sweeper = gevent.spawn(self._sweep)

    def _base_environ(self, address: Any) -> dict[str, Any]:
        base = {
            **base_environ(self.worker.cfg),
            "GATEWAY_INTERFACE": "CGI/1.1",
            # gunicorn's gevent worker's: simple-websocket looks for "gevent" in it.
            "SERVER_SOFTWARE": VERSION,
            "SCRIPT_NAME": self._script_name,
            "wsgi.multithread": True,
            "wsgi.url_scheme": "https" if self.secure else "http",
            "sticky_session.slot": self.worker.seat.slot,
        }
        if isinstance(address, tuple):
            base["SERVER_NAME"] = address[0]
            base["SERVER_PORT"] = str(address[1])
        return base

    def complete_environ(self, env: dict[str, Any], head: Head, trusted: bool) -> None:
        """Add what depends on the client's headers: scheme, server name of a Unix socket, script name.

        :param trusted: whether the peer's forwarding headers count
        :raises BadRequest: contradictory scheme headers, or a path outside SCRIPT_NAME
        """
        script_name = self._script_name
        if trusted:
            scheme = self.trust.scheme(env)
            if scheme is not None:
                env["wsgi.url_scheme"] = scheme
            if "HTTP_SCRIPT_NAME" in env:
                # Not Script-Name, which a proxy may pass on from anybody.
                said = [value for name, value in head.fields if name.upper() == "SCRIPT_NAME"]
                script_name = env["SCRIPT_NAME"] = said[-1] if said else script_name
        if "SERVER_NAME" not in env:
            host, _, port = env.get("HTTP_HOST", "").partition(":")
            env["SERVER_NAME"] = host
            env["SERVER_PORT"] = port or ("443" if env["wsgi.url_scheme"] == "https" else "80")
        if script_name:
            if not env["PATH_INFO"].startswith(script_name):
                raise BadRequest(400, f"path {env['PATH_INFO']!r} outside SCRIPT_NAME {script_name!r}")
            env["PATH_INFO"] = env["PATH_INFO"][len(script_name) :]

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

    def do_read(self) -> tuple[Any, Any, int] | None:
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
        family, _ = self._binds[frame.bind]
        sock = GeventSocket(family, SOCK_STREAM, 0, fileno=frame.descriptor)
        # The app's socket.setdefaulttimeout() is not meant for its clients.
        sock.settimeout(None)
        try:
            peer = frame.address or sock._sock.getpeername()
        except OSError:
            # The client has gone already.
            sock.close()
            return None
        return sock, "" if family == AF_UNIX else peer, frame.bind

    def handle(self, sock: Any, peer: Any, bind: int) -> None:
        """Serve a connection, in a greenlet of its own."""
        if self._context is not None:
            try:
                with gevent.Timeout(self.head_seconds):
                    sock = self._wrap(sock)
            except (OSError, gevent.Timeout) as error:
                self.worker.log.debug("TLS handshake with %s failed: %s", peer, error)
                return
        Handler(sock, peer, self, self._bases[bind]).handle()

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
        """End the connections that are past their deadline."""
        shortest = min(self.head_seconds, self.keepalive_seconds or self.head_seconds)
        while True:
            gevent.sleep(min(1.0, shortest / 4))
            now = time.monotonic()
            for handler in [handler for handler in self.handlers if handler.deadline < now]:
                handler.deadline = FOREVER
                handler.expire()

    def retire(self, *, drain: bool) -> None:
        """Take no more connections, and end what clients can begin again elsewhere.

        :param drain: whether to take first what is in the channel
        """
        self.draining = True
        if not drain:
            self.close()
        elif not self.closed and not self.full():
            self._do_read()
        for handler in list(self.handlers):
            handler.retire()

    def close(self) -> None:
        """Take no more connections."""
        super().close()
        self.draining = True


def custom_hook(cfg: Any, name: str) -> Any:
    """A server hook if the user has set one; None for gunicorn's own, which only logs at debug level."""
    setting = cfg.settings[name]
    hook = setting.get()
    return None if hook is type(setting).default or hook is setting.default else hook
