"""The worker: what runs in the process that fills a slot."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event
from gunicorn.errors import AppImportError
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from sticky_session import appservers
from sticky_session.app import speaks_asgi
from sticky_session.arbiter import StickyArbiter
from sticky_session.bus import Bus, set_current_bus
from sticky_session.children import blocked_signals
from sticky_session.config import Options
from sticky_session.errors import ClusterError, PlatformError
from sticky_session.generation import Seat
from sticky_session.server import Server

# Descriptors that the app, logs and the hub need beside the connections'.
SPARE_DESCRIPTORS = 64
# How long senders outside have to wait until other workers have their messages: one may be hanging.
SETTLE_SECONDS = 2.0
# python-engineio's own default of max_http_buffer_size.
DEFAULT_MESSAGE_BYTES = 1_000_000


@contextmanager
def _entry_points_read_once() -> Iterator[None]:
    """Have all that asks for entry points meanwhile be answered from one look at what is installed.

    gevent asks twice for each module that it patches, in case somebody has a plugin, and each time the metadata of
    every distribution is read: more than half of a worker's boot, where there are many.
    """
    look_up = metadata.entry_points
    found = look_up()
    metadata.entry_points = found.select
    try:
        yield
    finally:
        metadata.entry_points = look_up


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, taking its connections from the listener.

    Made in the arbiter, before the fork.

    :param seat: the slot it fills; None where gunicorn made the worker without our arbiter
    :ivar early_signals: those that came before there were handlers for them
    :ivar held_slot: arbiter: whether it has been seen to serve its slot
    :ivar told_to_stop: arbiter: whether it has been sent SIGTERM for a reason of ours
    :ivar tls: what TLS needs to know; None if it is not spoken
    """

    arbiter_class = StickyArbiter

    # gunicorn's attributes, untyped there.
    sockets: list[Any]
    cfg: Any
    log: Any

    options: Options

    def __init__(self, *args: Any, seat: Seat | None = None) -> None:
        super().__init__(*args)
        self._seat = seat
        self.early_signals: list[int] = []
        self.held_slot = False
        self.told_to_stop = False
        self.tls: Any = None
        self._message_bytes: int | None = None
        self._drain = False
        self._bus: Bus | None = None

    # --- in the arbiter

    @classmethod
    def check_config(cls, cfg: Any, _: Any) -> None:
        """Called once by gunicorn before any worker exists: see to it that the arbiter becomes ours.

        The hook that comes next, ``when_ready``, is the first to be given the arbiter.
        """
        when_ready = cfg.when_ready

        def adopt(arbiter: Any) -> None:
            cls.arbiter_class.adopt(arbiter)
            when_ready(arbiter)

        cfg.set("when_ready", adopt)

    @property
    def seat(self) -> Seat:
        """The slot that this worker fills.

        :raises PlatformError: it was started by an arbiter that has no slots
        """
        if self._seat is None:
            raise PlatformError(
                "sticky_session.Worker was started by an arbiter without slots; "
                "it can't become the worker class by a reload: restart gunicorn"
            )
        return self._seat

    # --- in the worker's own process

    def patch(self) -> None:
        """Make the standard library cooperative."""
        with _entry_points_read_once():
            monkey.patch_all()

    def init_process(self) -> None:
        """Boot: everything up to the main loop."""
        # The listening sockets are the listener's business. A copy kept open here would let clients connect to a
        # server that is shutting down.
        for sock in self.sockets:
            sock.close()
        self.sockets = []
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the app.

        :raises AppImportError: it is none that could be run; the app's own code may raise anything
        """
        super().load_wsgi()
        if speaks_asgi(self.wsgi):
            raise AppImportError(
                f"{self.wsgi!r} is an ASGI app, and the workers speak WSGI; expected one such as socketio.WSGIApp"
            )
        if self.cfg.is_ssl:
            # Before the worker counts as booted, after which it would be replaced again and again.
            try:
                self.tls = ssl_context(self.cfg)
            except (OSError, ValueError) as error:
                raise AppImportError(
                    f"TLS can't be set up with certfile={self.cfg.certfile!r}, keyfile={self.cfg.keyfile!r} "
                    f"and what else there is for it: {error}"
                ) from error

    def init_signals(self) -> None:
        """Install gunicorn's handlers, and let them have the signals that came since the fork."""
        self._woken = Event()
        # gunicorn's has no handlers for a moment, and a worker that ends then takes along who waits for it.
        with blocked_signals():
            super().init_signals()
        for number in self.early_signals:
            signal.raise_signal(number)

    def run(self) -> None:
        """The main loop: serve until told to stop, then let requests finish."""
        _worker_in_this_process[:] = [self]
        self._warn_of_eventlet()
        self._join_bus()
        self.server = Server(self)
        self.server.start()
        # The arbiter takes the time from a file that has none yet: it would never time out a worker that hung now.
        self.notify()
        if self.alive:
            # Told to stop while it booted, it must not take the slot from the one that has come after it.
            self.seat.take()
            if self._bus is not None:
                self._bus.start()
        interval = min(1.0, self.timeout) if self.timeout else 1.0
        while self.alive:
            self.notify()
            self._woken.wait(interval)
        self._finish(interval)

    def _warn_of_eventlet(self) -> None:
        if appservers.expect_eventlet() and self.seat.generation.table.eventlet_report.take():
            self.log.warning(
                'The app\'s Socket.IO server has async_mode="eventlet", the default where eventlet is installed: its '
                'clients will hang. Give it async_mode="gevent", or uninstall eventlet'
            )

    def _join_bus(self) -> None:
        """Let the app's Socket.IO servers reach the clients of the other workers."""
        if not self.seat.generation.buses:
            return
        self._bus = Bus(self.seat, self.pid, self.log)
        if "socketio" not in sys.modules:
            set_current_bus(self._bus)
            return
        # Only now: an app of another kind need not have it in memory.
        from sticky_session import adoption, cluster

        adopted, left = adoption.adopt_servers()
        set_current_bus(self._bus)
        cluster.join(self._bus)
        if (adopted or left) and self.seat.generation.table.bus_report.take():
            if adopted == [cluster.DEFAULT_CHANNEL]:
                self.log.info(
                    "The app's Socket.IO server reaches the clients of all workers (STICKY_SESSION_BUS=0: only its own)"
                )
            elif adopted:
                self.log.info(
                    "The app's Socket.IO servers reach their clients of all workers by the channels %s "
                    "(STICKY_SESSION_BUS=0: only their own workers')",
                    " and ".join(adopted),
                )
            if left:
                self.log.warning(
                    "%s of the app's Socket.IO servers can't be told apart, and reach only their own worker's clients; "
                    "give each client_manager=sticky_session.ClusterManager(channel=...) with a name of its own",
                    left,
                )

    def _finish(self, interval: float) -> None:
        # Leaving wakes the arbiter: after a SIGABRT for a timeout it would still see the old time, and kill.
        self.notify()
        if self._bus is not None:
            self._bus.stop()
        self.seat.leave()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        self.server.retire(drain=self._drain)
        server = self.server
        while (len(server) or not server.closed or self._is_sending()) and time.monotonic() < deadline:
            self.notify()
            server.join(min(interval, 0.1))
            if self._is_sending():
                gevent.sleep(0.01)
        server.close()
        if len(server):
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
            server.crew.kill(1)

    def _is_sending(self) -> bool:
        """Whether other workers have still to get messages of this one."""
        return self._bus is not None and self._bus.is_sending()

    def retire(self, *, drain: bool = False) -> None:
        """Leave the slot, and end when the last request is done. Safe in a signal handler.

        :param drain: whether to take first what is in the channel: there may be nobody else to do it
        """
        self._drain = self._drain or drain
        self.alive = False
        self._woken.set()

    def handle_exit(self, *_: Any) -> None:
        """SIGTERM."""
        self.retire(drain=True)

    def publish(self, channel: str, payload: bytes) -> None:
        """Send a message from outside to the Socket.IO servers of all workers, this one's, too.

        It waits a moment for workers that are far behind: a sender who is faster would have messages dropped.

        :raises ClusterError: it can't be sent, or is for none of this worker's servers
        """
        assert self._bus is not None
        names = self._bus.channels
        # Where there is none, servers may be made at their first request, and others may have had that.
        if names and channel not in names:
            raise ClusterError(
                f"channel {channel!r}: expected one that a Socket.IO server of the app has: {', '.join(names)}"
            )
        # What the sender has sent by another worker, which left, may still wait in this one's channel.
        self._bus.publish(channel, payload, in_turn=True)
        wait_while(self._bus.is_crowded)

    def settle(self) -> None:
        """Wait until the other workers have been sent everything, for a moment."""
        wait_while(self._is_sending)

    def count_request(self) -> None:
        """One more request has been taken: ``max_requests``."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.retire()

    def connection_limit(self) -> int:
        """``worker_connections``, or fewer if there are not enough descriptors for them."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = max(1, soft - len(os.listdir("/proc/self/fd")) - SPARE_DESCRIPTORS)
        wanted: int = self.worker_connections
        if wanted > room:
            self.log.warning(
                "worker_connections=%s, but the limit on open files (%s) leaves room for %s; "
                "raise it with ulimit -n or LimitNOFILE",
                wanted,
                soft,
                room,
            )
        return min(wanted, room)

    def message_bytes(self) -> int:
        """The largest WebSocket message taken: the option's, or that of the app's Engine.IO server."""
        if self._message_bytes is None:
            self._message_bytes = self.options.message_bytes or appservers.message_bytes() or DEFAULT_MESSAGE_BYTES
        return self._message_bytes


def wait_while(condition: Callable[[], bool]) -> None:
    """Let others run for as long as it holds, but no longer than a moment."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while condition() and time.monotonic() < deadline:
        gevent.sleep(0.01)


# The worker that this process is, if it is one.
_worker_in_this_process: list[Worker] = []


def current_worker() -> Worker | None:
    """The worker that this process is; None in any other process."""
    return _worker_in_this_process[0] if _worker_in_this_process else None


__all__ = ["Worker", "current_worker"]
