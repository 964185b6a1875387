"""Answering a connection that no worker can take, mostly with 503, in a way that the client really receives.

Closing a socket that holds unread bytes makes the kernel send RST, and the client may never see the answer
(RFC 9112 section 9.6). So a refused connection is answered when its request has begun to arrive, half closed, and
then read and thrown away until the client closes or its time is up.
"""

from __future__ import annotations

import _socket
import contextlib
import select
import time
from dataclasses import dataclass
from socket import SHUT_WR

from sticky_session.handoff import close

# The most connections that are refused politely at a time; the next ones are closed at once.
MAX_REFUSED = 256
REFUSAL_SECONDS = 2.0

_BODY = b"All places of this worker are taken. Try again soon.\n"


def unavailable(retry_after_seconds: int) -> bytes:
    """A whole 503 response (RFC 9110 section 15.6.4)."""
    return (
        b"HTTP/1.1 503 Service Unavailable\r\n"
        b"Connection: close\r\n"
        b"Content-Type: text/plain\r\n"
        b"Retry-After: %d\r\n"
        b"Content-Length: %d\r\n\r\n" % (retry_after_seconds, len(_BODY))
    ) + _BODY


@dataclass
class _Refused:
    socket: _socket.socket
    response: bytes
    deadline: float
    answered: bool = False


class Refusals:
    """The connections being refused.

    :param poll: the listener's epoll object; events of our descriptors go to :meth:`handle`
    :ivar response: what to answer as a rule; None where it can't be said (TLS): then connections are just closed
    """

    def __init__(self, poll: select.epoll, response: bytes | None) -> None:
        self._poll = poll
        self.response = response
        self._refused: dict[int, _Refused] = {}

    def __len__(self) -> int:
        return len(self._refused)

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._refused

    def add(self, descriptor: int, response: bytes | None = None) -> None:
        """Refuse a connection, and own its descriptor from now on.

        :param response: what to answer in place of the rule
        """
        if self.response is None:
            close(descriptor)
            return
        try:
            sock = _socket.socket(fileno=descriptor)
        except OSError:
            close(descriptor)
            return
        sock.setblocking(False)
        if len(self._refused) >= MAX_REFUSED:
            _refuse_at_once(sock, response or self.response)
            return
        self._refused[descriptor] = _Refused(sock, response or self.response, time.monotonic() + REFUSAL_SECONDS)
        self._poll.register(descriptor, select.EPOLLIN)

    def handle(self, descriptor: int) -> None:
        """The descriptor is readable: answer if that hasn't been done, and throw away what arrived."""
        refused = self._refused[descriptor]
        try:
            received = refused.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if received and not refused.answered:
            refused.answered = self._answer(refused)
            if refused.answered:
                return
        elif received:
            return
        self._drop(descriptor)

    def sweep(self, now: float) -> None:
        """End those whose time is up."""
        for descriptor, refused in list(self._refused.items()):
            if refused.deadline < now:
                if not refused.answered:
                    self._answer(refused)
                self._drop(descriptor)

    def close(self) -> None:
        """End all of them."""
        for descriptor in list(self._refused):
            self._drop(descriptor)

    def forget(self) -> None:
        """In a child of the process that owns them: close them."""
        for refused in self._refused.values():
            refused.socket.close()
        self._refused.clear()

    def _answer(self, refused: _Refused) -> bool:
        try:
            refused.socket.send(refused.response)
            refused.socket.shutdown(SHUT_WR)
        except OSError:
            return False
        return True

    def _drop(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._refused.pop(descriptor).socket.close()


def _refuse_at_once(sock: _socket.socket, response: bytes) -> None:
    """Answer what has arrived, and close. A client that is not sending any more receives it."""
    with contextlib.suppress(OSError):
        if sock.recv(65536):
            sock.send(response)
    sock.close()
