"""The socket of one client. Most connections are answered with what one recv(2) brings and one send(2) takes, and then
wait: so nothing is made for them but the standard library's socket and a watcher of what comes, until a client doesn't
take what is sent, a wait has a limit, or the app asks for the socket.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from socket import MSG_DONTWAIT, MSG_PEEK, SHUT_RDWR, SHUT_WR, SO_LINGER, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET
from typing import TYPE_CHECKING, Any

import gevent
from gevent.exceptions import ConcurrentObjectUseError
from gevent.monkey import get_original
from gevent.socket import cancel_wait
from gevent.socket import socket as GeventSocket

from sticky_session import handoff
from sticky_session.reader import BUFFER_BYTES

if TYPE_CHECKING:
    import ssl

# libev's.
_READ = 1
# Numbers, which are faster than the standard library's enumeration.
_NOW = int(MSG_DONTWAIT)
_NONBLOCKING_STREAM = int(SOCK_STREAM | SOCK_NONBLOCK)
_LOOK_NOW = int(MSG_DONTWAIT | MSG_PEEK)

_epoll = get_original("select", "epoll")


class _HandedOverError(Exception):
    """There is gevent's socket now, which may be closed before anything comes."""


class Transport:
    """Receives from one client, and sends to it.

    :param descriptor: owned from now on
    :param family: its address family
    :ivar secure: whether TLS is spoken
    """

    __slots__ = ("_raw", "_receiving", "_timeout", "_waiting", "_watcher", "secure")

    def __init__(self, descriptor: int, family: int) -> None:
        # SOCK_NONBLOCK sets nothing on the descriptor here. Without it methods would wait as long as the app's
        # socket.setdefaulttimeout() says, before they even try.
        self._raw = _socket.socket(family, _NONBLOCKING_STREAM, 0, descriptor)
        # gevent's socket, or its TLS socket, when there is one; the other is the one within it then.
        self._waiting: Any = None
        self._watcher: Any = None
        # Whether a greenlet waits by the watcher.
        self._receiving = False
        self._timeout: float | None = None
        self.secure = False

    def fileno(self) -> int:
        """The descriptor."""
        return self._raw.fileno()

    def peer(self) -> Any:
        """The other end's address.

        :raises OSError: it has gone already
        """
        return self._raw.getpeername()

    @property
    def closed(self) -> bool:
        """Whether it is, which an app may have done as well."""
        return self._raw.fileno() < 0

    @property
    def socket(self) -> Any:
        """gevent's socket, or its TLS socket."""
        if self._waiting is None:
            raw = self._raw
            if self.closed:
                # The app has kept what it was given: it gets what it would have.
                closed = GeventSocket(raw.family, SOCK_STREAM)
                closed.close()
                return closed
            self._waiting = GeventSocket(raw.family, SOCK_STREAM, 0, fileno=raw.detach())
            # The app's socket.setdefaulttimeout() is not meant for its clients.
            self._waiting.settimeout(self._timeout)
            self._raw = self._waiting._sock
            if self._receiving:
                cancel_wait(self._watcher, _HandedOverError)
        return self._waiting

    @property
    def is_taken(self) -> bool:
        """Whether the app may have asked for the socket; over TLS that can't be told."""
        return self._waiting is not None

    @property
    def _sock(self) -> Any:
        """The same, where simple-websocket looks for it."""
        return self.socket

    def encrypt(self, context: ssl.SSLContext, *, suppress_ragged_eofs: bool) -> None:
        """Shake hands for TLS.

        :raises OSError: the client can't or won't
        """
        self._waiting = context.wrap_socket(
            self.socket, server_side=True, suppress_ragged_eofs=suppress_ragged_eofs, do_handshake_on_connect=False
        )
        self._raw = self._waiting._sock
        self.secure = True
        self._waiting.do_handshake()

    @property
    def app_socket(self) -> Any:
        """The same as :attr:`socket`, but if there is none yet one that is made when it is used."""
        return LazySocket(self) if self._waiting is None else self._waiting

    # --- without waiting

    def watch(self, callback: Callable[[], None]) -> None:
        """Have something called, once, in the hub, when there is something to receive, or the end."""
        if self._watcher is None:
            self._watcher = gevent.get_hub().loop.io(self._raw.fileno(), _READ)
        self._watcher.start(callback)

    def unwatch(self) -> None:
        """Have it called no more."""
        self._watcher.stop()

    def is_about_to_wake(self) -> bool:
        """Whether what :meth:`watch` was given is going to be called, because something has come."""
        return self._watcher is not None and self._watcher.active and not self.closed and self.has_input()

    def receive_now(self) -> bytes:
        """What has come; nothing is the end. Not over TLS.

        :raises BlockingIOError: nothing has come yet
        """
        return self._raw.recv(BUFFER_BYTES, _NOW)

    def send_now(self, data: bytes) -> int:
        """Send what the kernel has room for now; never encrypted.

        :returns: how many bytes that was
        :raises OSError: the client is gone
        """
        try:
            return self._raw.send(data, _NOW)
        except BlockingIOError:
            return 0

    def has_input(self) -> bool:
        """Whether something has come, or the end."""
        if self.has_decrypted():
            return True
        try:
            self._raw.recv(1, _LOOK_NOW)
        except OSError as error:
            return error.errno != errno.EAGAIN
        return True

    def has_decrypted(self) -> bool:
        """Whether something has come over TLS of which the kernel knows no more."""
        return self.secure and bool(self._waiting.pending())

    def bytes_in_kernel(self) -> int:
        """How much of what was sent the client's side has not acknowledged; SIOCOUTQ in tcp(7) and unix(7)."""
        answer = fcntl.ioctl(self._raw.fileno(), termios.TIOCOUTQ, bytes(4))
        size: int = struct.unpack("i", answer)[0]
        return size

    # --- waiting

    def settimeout(self, seconds: float | None) -> None:
        """How long :meth:`receive` and :meth:`send` may wait."""
        self._timeout = seconds
        if self._waiting is not None:
            self._waiting.settimeout(seconds)

    def receive(self, size: int) -> bytes:
        """Wait for something, at most ``size`` bytes; nothing is the end.

        :raises TimeoutError: nothing has come
        :raises OSError: the connection broke
        """
        while self._waiting is None:
            arrived = self._arrived(size)
            if arrived is not None:
                return arrived
            if self._timeout is not None:
                break
            self._wait()
        data: bytes = self.socket.recv(size)
        return data

    def _arrived(self, size: int) -> bytes | None:
        """What has come; None if nothing has.

        An exception makes an object of each stack frame that it passes, which stays for as long as that one does: so it
        must not get into one that waits.
        """
        try:
            return self._raw.recv(size, _NOW)
        except BlockingIOError:
            return None

    def _wait(self) -> None:
        """Wait until something comes, or gevent's socket has been made; or for nothing at all."""
        if self._receiving:
            raise ConcurrentObjectUseError("two greenlets receive from one client")
        # Not Hub.wait(), nor gevent's socket: both keep more of the C stack, for as long as a WebSocket is silent.
        self.watch(gevent.getcurrent().switch)
        watcher = self._watcher
        self._receiving = True
        try:
            gevent.get_hub().switch()
        except _HandedOverError:
            return
        finally:
            self._receiving = False
            watcher.stop()

    def send(self, data: memoryview) -> int:
        """Send some of it.

        :returns: how many bytes
        :raises TimeoutError: the client takes nothing
        :raises OSError: it is gone
        """
        size: int = self.socket.send(data)
        return size

    # --- the end

    def interrupt(self) -> bool:
        """Tell a greenlet that waits for something that the connection is closed, in the loop's next turn.

        :returns: whether there is one
        """
        watcher = self._watcher if self._receiving else getattr(self._waiting, "_read_event", None)
        if watcher is None or watcher.callback is None:
            return False
        cancel_wait(watcher)
        return True

    def finish(self) -> None:
        """Tell the client that this was all.

        :raises OSError: it is gone
        """
        if not self.secure:
            self._raw.shutdown(SHUT_WR)

    def cut(self) -> None:
        """End both directions, without TLS's goodbye. Whoever waits for something finds the end."""
        with contextlib.suppress(OSError):
            self._raw.shutdown(SHUT_RDWR)

    def reset(self) -> None:
        """The same, and what the kernel still holds is thrown away.

        :raises OSError: it is gone
        """
        self._raw.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self._raw.shutdown(SHUT_RDWR)

    def forget(self) -> None:
        """Have this process told no more of what arrives: another one has the connection now, and nobody waits here.

        libev leaves that to close(2), which doesn't do it while somebody else has the same socket open. It would wake
        this worker once more for each move, and have libev make its epoll object anew, with all of the worker's
        connections.
        """
        number = gevent.get_hub().loop.fileno()
        if number is None or (self._watcher is None and self._waiting is None):
            # Not epoll; or what was never waited for.
            return
        poll = _epoll.fromfd(os.dup(number))
        # What was never waited for is not there.
        with contextlib.suppress(OSError):
            poll.unregister(self._raw.fileno())
        poll.close()

    def close(self) -> None:
        """Close it. A greenlet that an app has left waiting is told so first."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None and not self._receiving:
            watcher.stop()
            watcher.close()
        if self._waiting is not None:
            with contextlib.suppress(OSError):
                self._waiting.close()
        elif self._receiving and not self.closed:
            hub = gevent.get_hub()
            hub.cancel_wait(watcher, OSError(errno.EBADF, "The connection was closed in another greenlet"), True)
            # Not the socket: if something comes before the callbacks' turn, the greenlet wakes and would wait anew.
            hub.loop.run_callback(handoff.close, self._raw.detach())
        else:
            self._raw.close()


class LazySocket:
    """The client's socket for an app that wants it: gevent's, made when it is first used.

    :param transport: has it
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport.socket, name)
