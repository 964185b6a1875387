"""Who accepts while two arbiters live: the old one, and the new one that SIGUSR2 started.

They share the listening sockets, so without an agreement a client's connections would go to either. The old arbiter
passes one end of a socket pair to the new one through exec. When the new one's workers have all booted it says READY;
the old one stops its listener and, when that accepts no more, says GO; then the new one starts its own. If the new one
goes away, however it went, its end closes and the old one accepts again; if the old one goes away, the new one need
not wait any more.

Where the kernel routes, it is the workers who accept, or don't (:mod:`.kernelrouter`); the rest is the same.
"""

from __future__ import annotations

import _socket
import contextlib
import os
from collections.abc import Callable, Iterator, MutableMapping
from socket import AF_UNIX, SOCK_STREAM

VARIABLE = "_STICKY_SESSION_UPGRADE"

READY = b"r"
# Ready, and has the kernel route: it knows the groups of the old one (:mod:`.kernelrouter`).
READY_BY_KERNEL = b"k"
GO = b"g"


class Upgrade:
    """One arbiter's view of the other.

    :param elder: socket to the arbiter that started this one, if there is one
    :param watch: called with every new socket's descriptor, to have the arbiter's loop woken when something arrives
    """

    def __init__(self, elder: _socket.socket | None, watch: Callable[[int], None]) -> None:
        self._watch = watch
        self._elder = elder
        self._said_ready = False
        self._elder_yields = elder is None
        self._younger: _socket.socket | None = None
        self._yields = False
        self._by_kernel = False
        self._said_go = False
        if elder is not None:
            elder.setblocking(False)
            watch(elder.fileno())

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], watch: Callable[[int], None]) -> Upgrade:
        """Find the old arbiter, if this one was started by SIGUSR2."""
        descriptor = environ.pop(VARIABLE, None)
        elder = None
        if descriptor is not None:
            elder = _socket.socket(fileno=int(descriptor))
            os.set_inheritable(elder.fileno(), False)
        return cls(elder, watch)

    @contextlib.contextmanager
    def offer(self, environ: MutableMapping[str, str]) -> Iterator[None]:
        """Around the fork and exec of a new arbiter: give it its end, in ``environ``."""
        ours, theirs = _socket.socketpair(AF_UNIX, SOCK_STREAM)
        os.set_inheritable(theirs.fileno(), True)
        environ[VARIABLE] = str(theirs.fileno())
        try:
            yield
        finally:
            del environ[VARIABLE]
            theirs.close()
        if self._younger is not None:
            self._younger.close()
        ours.setblocking(False)
        self._watch(ours.fileno())
        self._younger = ours
        self._yields = self._said_go = False

    @property
    def yields_to_listener(self) -> bool:
        """Whether a new arbiter accepts whose listener knows of no groups, but of the first sockets only."""
        return self._yields and not self._by_kernel

    def may_accept(self, ready: bool, accepting: bool, *, by_kernel: bool = False) -> bool:
        """Whether this arbiter should have a listener now, or let its workers accept.

        :param ready: whether its own workers have all booted
        :param accepting: whether a listener of its own, or workers, still accept
        :param by_kernel: whether it would be its workers
        """
        if self._younger is not None:
            said = receive(self._younger)
            if said:
                self._yields = True
                self._by_kernel = said == READY_BY_KERNEL
            if said == b"":
                self._younger.close()
                self._younger = None
                self._yields = False
            elif self._yields and not accepting and not self._said_go:
                self._said_go = True
                send(self._younger, GO)
        if self._elder is not None and not self._elder_yields:
            if ready and not self._said_ready:
                self._said_ready = True
                send(self._elder, READY_BY_KERNEL if by_kernel else READY)
            # GO, or the end of the old arbiter.
            self._elder_yields = receive(self._elder) is not None
        return self._elder_yields and not self._yields

    def close(self) -> None:
        """Give up this arbiter's part: the other one accepts again."""
        for sock in (self._elder, self._younger):
            if sock is not None:
                sock.close()
        self._elder = self._younger = None


def receive(sock: _socket.socket) -> bytes | None:
    """What has arrived; None if nothing has, empty if the other end is gone."""
    try:
        return sock.recv(16)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def send(sock: _socket.socket, what: bytes) -> None:
    """Say something; if the other end is gone, :func:`receive` tells."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.send(what)
