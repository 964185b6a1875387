"""Connections of proxies, which say in what they send first who the client is: the listener waits for that.

A request's head is only looked at (MSG_PEEK), so that the worker sees the connection whole; a PROXY header is taken
out, exactly. Each is edge-triggered (EPOLLET): one that has sent half a head costs nothing until more arrives. They
have an epoll object of their own, from which few are taken at a time, so that however many of them send something at
once, direct clients get their turn in between.
"""

from __future__ import annotations

import _socket
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from socket import AF_INET, MSG_DONTWAIT, MSG_PEEK, SOCK_NONBLOCK, SOCK_STREAM
from typing import Any

from sticky_session.identify import Client, Identification, Read, RefusedError

# The most connections that are waited for at a time, if there are descriptors for so many; the next ones are refused.
MAX_ARRIVALS = 16384
# How many are looked at before the others get their turn.
LOOK_BURST = 64
# How many are ended at a time, ten times a second.
SWEEP_BURST = 500
# How many go to workers when the listener ends: all of one proxy's go to the same one, which serves others, too.
MAX_RELEASED = 256
# Enough for nearly every head at the first try.
FIRST_PEEK_BYTES = 4096
# What is wrong with connections is logged at most so often.
LOG_SECONDS = 60.0

# To join two of the socket module's flags takes a microsecond.
_PEEK = int(MSG_PEEK | MSG_DONTWAIT)
_EVENTS: int = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDED: int = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


@dataclass
class _Arrival:
    socket: _socket.socket
    peer: Any
    bind: int
    read: Read
    deadline: float
    begun: bool = False


class Arrivals:
    """The connections that are waited for.

    :param poll: an epoll object for these connections alone; when there are events, :meth:`handle` wants to be called
    :param most: how many may be waited for at a time
    :param deliver: takes a connection: descriptor, peer, bind, and client
    :param refuse: takes a connection that can't be served, and the HTTP status to answer with; None to just close it
    :param seconds: how long a connection may take
    :param log: gunicorn's logger
    """

    def __init__(
        self,
        poll: select.epoll,
        most: int,
        identification: Identification,
        deliver: Callable[[int, Any, int, Client], None],
        refuse: Callable[[int, int | None], None],
        seconds: float,
        log: Any,
    ) -> None:
        self._poll = poll
        self._most = most
        self._begin = identification.begin
        self._limit = identification.limit
        self._deliver = deliver
        self._refuse = refuse
        self._seconds = seconds
        self._log = log
        # In the order of their deadlines.
        self._arrivals: dict[int, _Arrival] = {}
        self._malformed = 0
        self._log_at = 0.0

    def __len__(self) -> int:
        return len(self._arrivals)

    def fileno(self) -> int:
        """The descriptor of the epoll object."""
        return self._poll.fileno()

    def add(self, descriptor: int, peer: Any, bind: int) -> None:
        """Take a connection that has been accepted, and own its descriptor from now on.

        :param peer: ``(host, port, ...)``, or anything else for a Unix socket's peer
        :param bind: index of the listening socket
        """
        # The family is only given to spare the kernel the question. Without SOCK_NONBLOCK, which sets nothing on the
        # descriptor here, recv() would wait first as long as a preloaded app's socket.setdefaulttimeout() says.
        sock = _socket.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0, descriptor)
        arrival = _Arrival(sock, peer, bind, self._begin(), time.monotonic() + self._seconds)
        if self._look(arrival):
            return
        if len(self._arrivals) >= self._most:
            self._refuse(sock.detach(), 503)
            return
        self._poll.register(descriptor, _EVENTS)
        self._arrivals[descriptor] = arrival

    def handle(self) -> None:
        """On some of them something has arrived, or the client has closed."""
        for descriptor, events in self._poll.poll(0, LOOK_BURST):
            arrival = self._arrivals[descriptor]
            if not self._look(arrival) and events & _ENDED:
                self._forget(descriptor)
                arrival.socket.close()

    def sweep(self, now: float) -> None:
        """End those whose time is up, if they are many then not all at once."""
        for descriptor, arrival in list(islice(self._arrivals.items(), SWEEP_BURST)):
            if arrival.deadline > now:
                return
            # It may have come while this process was busy, and not been looked at yet.
            if not self._look(arrival):
                self._forget(descriptor)
                self._refuse(arrival.socket.detach(), 408 if arrival.begun else None)

    def release(self) -> None:
        """Hand them on to their peer's worker, which finds out itself who the client is when the head has arrived.

        Those beyond :data:`MAX_RELEASED` are still waited for.
        """
        for descriptor, arrival in list(islice(self._arrivals.items(), MAX_RELEASED)):
            self._forget(descriptor)
            self._deliver(arrival.socket.detach(), arrival.peer, arrival.bind, Client(None))

    def _forget(self, descriptor: int) -> None:
        if self._arrivals.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def _look(self, arrival: _Arrival) -> bool:
        """Look at what has arrived.

        :returns: whether the connection is no longer ours
        """
        sock = arrival.socket
        try:
            seen = sock.recv(FIRST_PEEK_BYTES, _PEEK)
            if len(seen) == FIRST_PEEK_BYTES:
                seen = sock.recv(self._limit, _PEEK)
            client = arrival.read(seen) if seen else None
        except BlockingIOError:
            return False
        except OSError:
            # It has been reset.
            seen, client = b"", None
        except RefusedError as refused:
            if refused.status is None:
                self._note_malformed(arrival.peer, refused)
            self._forget(sock.fileno())
            self._refuse(sock.detach(), refused.status)
            return True
        if client is None and seen:
            arrival.begun = True
            return False
        self._forget(sock.fileno())
        if client is None:
            sock.close()
            return True
        if client.length:
            sock.recv(client.length, MSG_DONTWAIT)
        self._deliver(sock.detach(), arrival.peer, arrival.bind, client)
        return True

    def _note_malformed(self, peer: Any, error: RefusedError) -> None:
        """Count it, and say so, but not each time."""
        self._malformed += 1
        extra = {"metric": "sticky_session.malformed", "value": 1, "mtype": "counter"}
        self._log.debug("malformed connection", extra=extra)
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_SECONDS
            host = peer[0] if isinstance(peer, tuple) else "a Unix socket"
            self._log.warning(
                "Malformed PROXY header from %s: %s; the connection is closed (%s since the listener started)",
                host,
                error,
                self._malformed,
            )
