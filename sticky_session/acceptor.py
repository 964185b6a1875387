"""A worker that accepts its connections itself, where the kernel routes.

Each slot has a listening socket of its own on every address, and the kernel chooses among them by the ring's program.
It chooses when a client's SYN arrives, and the ring may change before the connection is accepted. So the worker looks
once more, and passes on what belongs to another slot by now: the program is only the fast way.
"""

from __future__ import annotations

import _socket
import os
import time
from typing import TYPE_CHECKING, Any

import gevent

from sticky_session import handoff
from sticky_session.listener import DROPPED, EXHAUSTED, PAUSE_SECONDS
from sticky_session.routes import Routes

if TYPE_CHECKING:
    from sticky_session.server import Server, Source

# How long a connection waits for a place in a channel, and how often it is tried.
PASS_ON_SECONDS = 10.0
RETRY_SECONDS = 0.1


class Acceptor:
    """Accepts for one worker, while the table says that its generation may.

    :ivar passing_on: how many connections wait for a place in another slot's channel
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seat = server.worker.seat
        self._table = self._seat.generation.table
        self._binds = self._seat.generation.binds
        self._log = server.worker.log
        self._routes = Routes(self._seat)
        self._watchers: list[Any] = []
        self._left = list(self._seat.listening)
        self._resume_at = 0.0
        self.passing_on = 0
        self._backing_off = False

    @property
    def done(self) -> bool:
        """Whether there is nothing left to accept from."""
        return not self._left

    # --- as the server starts and stops

    def start(self) -> None:
        """Begin to accept, or to wait until it is time."""
        self.stop()
        loop = gevent.get_hub().loop
        if not self._table.admits:
            watcher = loop.io(self._table.admission, 1)
            watcher.start(self.start)
            self._watchers.append(watcher)
            return
        pause = self._resume_at - time.monotonic()
        if pause > 0:
            watcher = loop.timer(pause)
            watcher.start(self.start)
            self._watchers.append(watcher)
            return
        for listening, bind in self._left:
            watcher = loop.io(listening.fileno(), 1)
            watcher.start(self._server.take, self._source(listening, bind))
            self._watchers.append(watcher)

    def stop(self) -> None:
        """Don't accept for a while."""
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers.clear()

    def sources(self) -> list[Source]:
        """What connections can be taken from."""
        return [self._source(*each) for each in self._left]

    def close(self) -> None:
        """Accept no more. What waits stays for the worker that comes next."""
        self.stop()
        for listening, _ in self._left:
            listening.close()
        self._left.clear()

    # --- accepting

    def _source(self, listening: _socket.socket, bind: int) -> Source:
        return lambda: self._accept(listening, bind)

    def _accept(self, listening: Any, bind: int) -> bool:
        """Accept a connection of this slot.

        :returns: False if there is none, or for a while none is accepted
        """
        if os.getppid() != self._server.worker.ppid:
            # The arbiter was killed, as the worker is about to find out; another one's workers may accept.
            self.close()
            return False
        if not self._table.admits:
            # Another generation's turn.
            if self._server.draining:
                self.close()
            else:
                self.start()
            return False
        try:
            descriptor, peer = listening._accept()
        except BlockingIOError:
            if self._backing_off:
                self._backing_off = False
                self._log.info("Descriptors are available again: all connections that waited have been accepted")
            if self._server.draining:
                self._finish_with(listening)
            return False
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._pause(error)
            elif error.errno not in DROPPED:
                raise
            return False
        if not self._binds[bind].for_bus:
            slot = self._routes.home(peer[0])
            if slot != self._routes.slot and not self._routes.is_forsaken(slot):
                self._pass_on(slot, bind, descriptor)
                return True
        self._server.begin(descriptor, bind, peer=peer)
        return True

    def _finish_with(self, listening: _socket.socket) -> None:
        """At once: a client that connects after the last accept is reset by the end of the socket."""
        self.stop()
        self._left = [(it, bind) for it, bind in self._left if it is not listening]
        listening.close()
        self.start()

    def _pause(self, error: OSError) -> None:
        """Leave connections in the kernel's backlog for a moment, and say so once until it is over."""
        if not self._backing_off:
            self._backing_off = True
            self._log.error(
                "Can't accept connections: %s. They wait in the backlog; raise the limit with ulimit -n or LimitNOFILE",
                error.strerror,
            )
        self._resume_at = time.monotonic() + PAUSE_SECONDS
        self.start()

    # --- passing on

    def _pass_on(self, slot: int, bind: int, descriptor: int) -> None:
        message = handoff.encode(bind)
        waits = False
        try:
            waits = not self._try(slot, message, descriptor)
        finally:
            if not waits:
                handoff.close(descriptor)
        if waits:
            self.passing_on += 1
            gevent.spawn(self._pass_on_later, slot, message, descriptor)

    def _pass_on_later(self, slot: int, message: bytes, descriptor: int) -> None:
        deadline = time.monotonic() + PASS_ON_SECONDS
        try:
            while not self._try(slot, message, descriptor) and time.monotonic() < deadline:
                gevent.sleep(RETRY_SECONDS)
        finally:
            handoff.close(descriptor)
            self.passing_on -= 1
            self._server.make_room()

    def _try(self, slot: int, message: bytes, descriptor: int) -> bool:
        """Send a connection to a slot, or to the arbiter, which has a queue for it, and says 503 when that is full."""
        return self._routes.pass_on(slot, message, descriptor) or (
            not self._table.is_final and self._routes.hand_back(message, descriptor)
        )
