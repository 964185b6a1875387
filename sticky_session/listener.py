"""The listener process: accept, decide, hand off.

One epoll loop, no threads; nothing here may wait but the poll itself. The arbiter forks the listener with
everything it needs (listening sockets, channels, table, ring) and replaces the whole process when any of that
changes, so nothing is ever reconfigured in place.

Rules:

- A connection is sent before the next one is accepted, so killing this process loses at most one connection,
  those in the outbox, where connections are only while a channel is full, and those of proxies that have not
  said yet who their client is.
- Every errno of accept and send has a policy, below. What has none ends the process, and the arbiter starts another.
- SIGTERM: accept what the kernel holds, tell the arbiter that this was all, hand everything off, exit. SIGQUIT: exit.
  SIGUSR1: reopen the logs.
- The lifeline pipe's writing end is the arbiter's: when it closes, the arbiter is gone, and so are we. A process that a
  server hook has forked may hold a copy, so we also look whether we have another parent now.
"""

from __future__ import annotations

import _socket
import errno
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Container
from typing import Any

from gevent.monkey import get_original

from sticky_session import handoff
from sticky_session.arrivals import MAX_ARRIVALS, Arrivals
from sticky_session.delivery import Delivery, refusal_of
from sticky_session.generation import Generation
from sticky_session.identify import Client, identification
from sticky_session.refusal import MAX_REFUSED, Refusals
from sticky_session.request import error_response
from sticky_session.slots import wake

# accept(2): the connection died before it was accepted, or the network had an error that is its own.
DROPPED = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.EINTR,
    }
)
# The process or the machine has run out of something; it may be back in a moment.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# How many connections are accepted from one socket before the others get their turn.
ACCEPT_BURST = 64
# How long accepting pauses when something has run out.
PAUSE_SECONDS = 0.05
# How often slots, waiting connections and refusals are looked at while there are any.
TICK_SECONDS = 0.1
BEAT_SECONDS = 1.0
# How long SIGTERM lets the waiting connections find their workers.
FLUSH_SECONDS = 10.0
# Descriptors that this process needs beside those of connections.
SPARE_DESCRIPTORS = 64
# The most that SIGTERM takes from the kernel's queues: no backlog is longer in practice.
FINAL_ACCEPTS = 65536

_EPOLLIN: int = 1
_EPOLLOUT: int = 4

_epoll = get_original("select", "epoll")


def open_files_limit() -> int:
    """Raise the soft limit on descriptors to the hard one: epoll has no use for a lower one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Listener:
    """The loop of the listener process.

    :param generation: whose sockets, channels and table to use; a frame's bind is the index of the socket
    :param lifeline: reading end of a pipe that closes when the arbiter is gone
    :param doorbell: writing end of the pipe that wakes the arbiter
    :param log: gunicorn's logger
    """

    def __init__(
        self,
        generation: Generation,
        *,
        lifeline: int,
        doorbell: int,
        log: Any,
    ) -> None:
        options = generation.options
        self._log = log
        self._table = generation.table
        self._returns = generation.returns.receiving_end
        self._returned = handoff.Receiver(self._returns)
        self._lifeline = lifeline
        self._doorbell = doorbell

        limit = open_files_limit()
        fair_share = max(1, (limit - SPARE_DESCRIPTORS) // (2 * generation.ring_size))
        queue_size = min(options.queue_size, fair_share)

        self._poll = _epoll()
        self._refusals = Refusals(self._poll, refusal_of(generation))
        self._delivery = Delivery(generation, self._poll, queue_size, self._refusals, log)
        # A raw accept(2) without a socket object around the descriptor: most of what accept() costs is that object.
        self._listening: dict[int, tuple[Any, int]] = {}
        for index, sock in enumerate(generation.sockets):
            raw = _socket.socket(fileno=os.dup(sock.fileno()))
            raw.setblocking(False)
            self._listening[raw.fileno()] = (raw, index)
        self._binds = generation.binds
        # The frames of connections that nothing is to be said about.
        self._plain = [handoff.encode(index) for index in range(len(generation.sockets))]
        self._identification = identification(generation.cfg, options)
        room = limit - SPARE_DESCRIPTORS - generation.ring_size * queue_size - MAX_REFUSED
        self._arrivals = Arrivals(
            _epoll(),
            max(1, min(MAX_ARRIVALS, room)),
            self._identification,
            self._deliver_for,
            self._refuse,
            options.head_seconds,
            log,
        )
        self._resume_at: float | None = None
        self._backing_off = False
        self._stop: int | None = None
        self._parent = os.getppid()

    def run(self) -> None:
        """Accept and hand off until told to stop."""
        self._init_signals()
        self._poll.register(self._lifeline, _EPOLLIN)
        self._poll.register(self._returns.fileno(), _EPOLLIN)
        self._poll.register(self._arrivals.fileno(), _EPOLLIN)
        for descriptor in self._listening:
            self._poll.register(descriptor, _EPOLLIN)
        self._delivery.look_at_slots(time.monotonic())
        self._table.set_ring(self._delivery.ring.workers)
        self._table.beat()
        self._log.info("Listener ready (pid:%s)", os.getpid())
        next_tick = next_beat = 0.0
        while self._stop is None:
            busy = self._delivery.busy or self._resume_at or self._arrivals
            for descriptor, _ in self._poll.poll(TICK_SECONDS if busy else BEAT_SECONDS):
                self._dispatch(descriptor)
            now = time.monotonic()
            if now >= next_tick:
                self._tick(now)
                next_tick = now + TICK_SECONDS
                if now >= next_beat:
                    if os.getppid() != self._parent:
                        self._stop = signal.SIGQUIT
                    self._table.beat()
                    next_beat = now + BEAT_SECONDS
        if self._stop == signal.SIGTERM:
            self._finish()

    # --- signals

    def _init_signals(self) -> None:
        for name in ("HUP", "INT", "USR2", "TTIN", "TTOU", "WINCH"):
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
        for name in ("CHLD", "IO", "ABRT"):
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_DFL)
        self._signals, wakeup = os.pipe()
        for descriptor in (self._signals, wakeup):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            # The wakeup descriptor gets the number; there is nothing else to do in the handler.
            signal.signal(number, lambda *_: None)
        self._poll.register(self._signals, _EPOLLIN)
        # Blocked by the arbiter around the fork, so that none could be lost before this.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _handle_signals(self) -> None:
        for number in os.read(self._signals, 64):
            if number == signal.SIGUSR1:
                self._reopen_logs()
            elif self._stop != signal.SIGQUIT and number in (signal.SIGTERM, signal.SIGQUIT):
                self._stop = number

    def _reopen_logs(self) -> None:
        try:
            self._log.reopen_files()
        except OSError as error:
            # After --user this process may lack the right; whoever rotates logs has to create them for that user.
            print(f"The listener can't reopen its log: {error}", file=sys.stderr)

    # --- the loop's turns

    def _dispatch(self, descriptor: int) -> None:
        listening = self._listening.get(descriptor)
        if listening is not None:
            self._accept(*listening, ACCEPT_BURST)
        elif descriptor == self._arrivals.fileno():
            self._arrivals.handle()
        elif descriptor == self._returns.fileno():
            self._delivery.take_back(self._returned, ACCEPT_BURST)
        elif descriptor == self._signals:
            self._handle_signals()
        elif descriptor == self._lifeline:
            # The arbiter was killed.
            self._stop = signal.SIGQUIT
        else:
            self._delivery.handle(descriptor)

    def _tick(self, now: float) -> None:
        self._delivery.look_at_slots(now)
        self._arrivals.sweep(now)
        self._delivery.tick(now)
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            for descriptor in self._listening:
                self._poll.register(descriptor, _EPOLLIN)

    # --- accepting

    def _accept(self, sock: Any, bind: int, limit: int) -> None:
        """Accept and hand off until there is nothing left or ``limit`` is reached."""
        accept = sock._accept
        message = self._plain[bind]
        for_bus = self._binds[bind].for_bus
        proxies: Container[Any] = () if for_bus else self._identification.peers
        key = self._delivery.masks.key
        ring = self._delivery.ring
        slot_of = ring.slot
        failed = self._delivery.failover.failed
        deliver = self._delivery.outbox.deliver
        for _ in range(limit):
            try:
                descriptor, peer = accept()
            except BlockingIOError:
                if self._backing_off:
                    # Only now: a few descriptors that become free for a moment are not the end of it.
                    self._backing_off = False
                    self._log.info("Descriptors are available again: all connections that waited have been accepted")
                return
            except OSError as error:
                if error.errno in DROPPED:
                    continue
                if error.errno in EXHAUSTED:
                    self._pause(error)
                    return
                raise
            if peer in proxies:
                self._arrivals.add(descriptor, peer, bind)
                continue
            # IP peers are tuples; Unix-socket peers have no address that could tell them apart, and those of the bus
            # socket need no worker of their own: if one of them is stuck, the next attempt comes to another.
            affinity = key(peer[0]) if isinstance(peer, tuple) else os.urandom(4) if for_bus else b""
            slot = slot_of(affinity)
            if slot in failed:
                slot = ring.slot_without(affinity, failed)
            deliver(slot, descriptor, message, affinity)

    def _deliver_for(self, descriptor: int, peer: Any, bind: int, client: Client) -> None:
        """Hand off a connection whose client is known now."""
        if client.host is None:
            host = peer[0] if isinstance(peer, tuple) else ""
            message = self._plain[bind]
        elif client.port is None:
            host = client.host
            message = handoff.encode(bind, client=host)
        else:
            host = client.host
            message = handoff.encode(bind, (host, client.port))
        self._delivery.deliver(descriptor, message, self._delivery.masks.key(host))

    def _refuse(self, descriptor: int, status: int | None) -> None:
        """Refuse a connection with an HTTP status, or just close it."""
        if status is None:
            handoff.close(descriptor)
        else:
            self._refusals.add(descriptor, None if status == 503 else error_response(status))

    def _pause(self, error: OSError) -> None:
        """Leave connections in the kernel's backlog for a moment, and say so once until it is over."""
        if not self._backing_off:
            self._backing_off = True
            self._log.error(
                "Can't accept connections: %s (limit on open files: %s). They wait in the backlog; "
                "raise the limit with ulimit -n or LimitNOFILE",
                error.strerror,
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            )
        self._stop_listening()
        self._resume_at = time.monotonic() + PAUSE_SECONDS

    def _stop_listening(self) -> None:
        if self._resume_at is None:
            for descriptor in self._listening:
                self._poll.unregister(descriptor)

    # --- the end

    def _finish(self) -> None:
        """Accept what the kernel holds, and wait until the channels have taken everything."""
        # Unregistered first: epoll goes on telling about a closed descriptor while others hold the same socket.
        self._stop_listening()
        self._resume_at = math.inf
        for sock, bind in self._listening.values():
            self._accept(sock, bind, FINAL_ACCEPTS)
            # At once: a client that connects after the last accept is reset by the end of the socket.
            sock.close()
        self._listening.clear()
        if self._identification.worker_can_tell:
            self._arrivals.release()
        self._table.note_closed(os.getpid())
        wake(self._doorbell)
        if self._table.is_final:
            # No other listener comes after this one.
            self._delivery.take_back(self._returned)
        deadline = time.monotonic() + FLUSH_SECONDS
        outbox = self._delivery.outbox
        while (self._arrivals or outbox) and time.monotonic() < deadline and self._stop == signal.SIGTERM:
            self._table.beat()
            self._turn()
        outbox.refuse_all()
        while self._refusals and self._stop == signal.SIGTERM:
            self._turn()

    def _turn(self) -> None:
        for descriptor, _ in self._poll.poll(TICK_SECONDS):
            self._dispatch(descriptor)
        self._tick(time.monotonic())
