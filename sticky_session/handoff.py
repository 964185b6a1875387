"""The frame, and the only place where descriptors are sent and received.

A frame is one message on a Unix SOCK_SEQPACKET channel: a small header, optionally the client's address and the
bytes already read from it, and exactly one descriptor as SCM_RIGHTS ancillary data (unix(7), cmsg(3))::

    0      1        2          4      6        8            8+A        8+A+D
    | kind | use    | bind     | port | length | address    | data     |
      u8     u8       u16        u16    u16      A = 0, 4     D = length
                                                 or 16 bytes
             (network byte order)

``bind`` is the index of the listening socket that the connection came in on. ``kind`` is the address's length: 0
where the peer's own address counts, which the worker asks the kernel for. ``use`` tells what the address is: 0 for one
that takes the place of the peer's (PROXY protocol), 1 for one that the connection is only routed by (a header's).
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Sequence
from socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, SCM_RIGHTS, SOL_SOCKET
from struct import Struct
from typing import NamedTuple, Protocol

from gevent.monkey import get_original

from sticky_session.address import pack, unpack
from sticky_session.errors import StickySessionError

_HEADER = Struct("!BBHHH")
_ROUTES_ONLY = 1
_DESCRIPTOR = Struct("i")
_RIGHTS_SPACE = CMSG_SPACE(_DESCRIPTOR.size)
_NO_RIGHTS: list[tuple[int, int, bytes]] = []
# Numbers, since arithmetic with the standard library's enumeration takes longer than to decode a frame.
_NOW = int(MSG_DONTWAIT)
_NOW_AND_CLOEXEC = int(MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
_CUT_OFF = int(MSG_CTRUNC)

# gevent's os.close, which a preloaded app or listen() may have put in, leaves it to gevent's loop to close, and the
# arbiter and the listener don't run that.
close: Callable[[int], None] = get_original("os", "close")

# unix(7), sendmsg(2): the frame can't be sent now, but perhaps later.
CHANNEL_FULL = frozenset({errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})

MAX_DATA_BYTES = 65535
MAX_FRAME_BYTES = _HEADER.size + 16 + MAX_DATA_BYTES


class FrameError(StickySessionError):
    """A message on a channel is no frame; nobody else writes there, so it is a bug of ours."""


class Frame(NamedTuple):
    """A received frame.

    :ivar address: ``(host, port)`` in place of the peer's, or None
    :ivar data: what has been read from the connection already
    :ivar client: the host that it is routed by where that is neither the peer's nor ``address``
    """

    descriptor: int
    bind: int
    address: tuple[str, int] | None
    data: bytes
    client: str | None

    @property
    def host(self) -> str | None:
        """The host that it is routed by; None for the peer's own."""
        return self.address[0] if self.address else self.client

    def encode(self, bind: int) -> bytes:
        """The bytes of the same frame for another channel, where its listening socket may have another index."""
        return encode(bind, self.address, self.data, self.client)


class Socket(Protocol):
    """What is used of a socket here; the C type :class:`_socket.socket` has it, unpatched by gevent."""

    def fileno(self) -> int: ...

    def sendmsg(
        self, buffers: Sequence[bytes | memoryview], ancdata: list[tuple[int, int, bytes]], flags: int, /
    ) -> int: ...

    def recvmsg_into(
        self, buffers: list[bytearray], ancbufsize: int, flags: int, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]: ...


def encode(bind: int, address: tuple[str, int] | None = None, data: bytes = b"", client: str | None = None) -> bytes:
    """The bytes of a frame.

    :param bind: index of the listening socket, 0 to 65535
    :param address: the client's (host, port) if it takes the place of the peer's
    :param data: bytes already read from the client, at most :data:`MAX_DATA_BYTES`
    :param client: the host that it is routed by if it is neither the peer's nor ``address``
    """
    if address is not None:
        packed = pack(address[0])
        return _HEADER.pack(len(packed), 0, bind, address[1], len(data)) + packed + data
    if client is not None:
        packed = pack(client)
        return _HEADER.pack(len(packed), _ROUTES_ONLY, bind, 0, len(data)) + packed + data
    return _HEADER.pack(0, 0, bind, 0, len(data)) + data


def decode(message: bytes) -> tuple[int, tuple[str, int] | None, bytes, str | None]:
    """The inverse of :func:`encode`.

    :raises FrameError: it is no frame
    """
    if len(message) < _HEADER.size:
        raise FrameError(f"a frame of {len(message)} bytes; expected at least {_HEADER.size}")
    kind, use, bind, port, length = _HEADER.unpack_from(message)
    start = _HEADER.size + kind
    if kind not in (0, 4, 16) or len(message) != start + length:
        raise FrameError(f"a frame of {len(message)} bytes, address {kind}, data {length}; they don't add up")
    data = message[start:]
    if not kind:
        return bind, None, data, None
    host = unpack(message[_HEADER.size : start])
    return (bind, None, data, host) if use == _ROUTES_ONLY else (bind, (host, port), data, None)


def send(channel: Socket, message: bytes, descriptor: int) -> None:
    """Send a frame without waiting. The caller still owns ``descriptor`` and closes it.

    :raises BlockingIOError: the channel is full
    :raises OSError: ETOOMANYREFS, too many descriptors are on their way (unix(7)); ENOBUFS or ENOMEM
    """
    channel.sendmsg((message,), [(SOL_SOCKET, SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))], _NOW)


def send_parts(channel: Socket, parts: Sequence[bytes | memoryview], descriptor: int | None = None) -> None:
    """Send one message, made of these parts, without waiting. The caller still owns ``descriptor``.

    :raises OSError: as :func:`send`
    """
    rights = _NO_RIGHTS if descriptor is None else [(SOL_SOCKET, SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))]
    channel.sendmsg(parts, rights, _NOW)


def receive_into(channel: Socket, buffer: bytearray) -> tuple[int, list[int], bool]:
    """Take the next message without waiting; what is longer than the buffer is cut off.

    :returns: its size, its descriptors, which the caller owns and which are close-on-exec, and whether the kernel had
        to drop one because this process has none left
    :raises BlockingIOError: the channel is empty
    :raises EOFError: nobody has the other end any more
    """
    size, ancillary, flags, _ = channel.recvmsg_into([buffer], _RIGHTS_SPACE, _NOW_AND_CLOEXEC)
    if not size and not ancillary:
        raise EOFError("the channel is closed")
    return size, _descriptors(ancillary) if ancillary else [], bool(flags & _CUT_OFF)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array("i")
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            descriptors.frombytes(data)
    return descriptors.tolist()


class Receiver:
    """Takes frames from a channel into one buffer, made once."""

    __slots__ = ("_buffer", "_channel")

    def __init__(self, channel: Socket) -> None:
        self._channel = channel
        self._buffer = bytearray(MAX_FRAME_BYTES)

    def receive(self) -> Frame | None:
        """Take the next frame without waiting. The caller owns its descriptor, which is close-on-exec.

        :returns: None where the kernel had to drop the descriptor because this process has none left
        :raises BlockingIOError: the channel is empty
        :raises EOFError: nobody has the other end any more
        :raises FrameError: it is no frame; its descriptors are closed
        """
        size, descriptors, lost = receive_into(self._channel, self._buffer)
        if len(descriptors) == 1 and not lost:
            try:
                return Frame(descriptors[0], *decode(bytes(self._buffer[:size])))
            except FrameError:
                close(descriptors[0])
                raise
        for descriptor in descriptors:
            close(descriptor)
        if lost:
            return None
        raise FrameError(f"a frame of {size} bytes with {len(descriptors)} descriptors; expected one")
