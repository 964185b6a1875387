"""The frame, and the only place where descriptors are sent and received.

A frame is one message on a Unix SOCK_SEQPACKET channel: a small header, optionally the client's address and the
bytes already read from it, and exactly one descriptor as SCM_RIGHTS ancillary data (unix(7), cmsg(3))::

    0      1        2          4      6        8            8+A        8+A+D
    | kind | zero   | bind     | port | length | address    | data     |
      u8     u8       u16        u16    u16      A = 0, 4     D = length
                                                 or 16 bytes
             (network byte order)

``bind`` is the index of the listening socket that the connection came in on. ``kind`` is the address's length: 0
where the peer's own address counts, which the worker asks the kernel for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, SCM_RIGHTS, SOL_SOCKET
from struct import Struct
from typing import NamedTuple, Protocol

from gevent.monkey import get_original

from sticky_session.address import pack, unpack
from sticky_session.errors import StickySessionError

_HEADER = Struct("!BxHHH")
_DESCRIPTOR = Struct("i")
_RIGHTS_SPACE = CMSG_SPACE(_DESCRIPTOR.size)

# gevent's os.close, which a preloaded app or listen() may have put in, leaves it to gevent's loop to close, and the
# arbiter and the listener don't run that.
close: Callable[[int], None] = get_original("os", "close")

MAX_DATA_BYTES = 65535
MAX_FRAME_BYTES = _HEADER.size + 16 + MAX_DATA_BYTES


class FrameError(StickySessionError):
    """A message on a channel is no frame; nobody else writes there, so it is a bug of ours."""


class Frame(NamedTuple):
    """A received frame. ``address`` is ``(host, port)``, or None where the peer's own counts."""

    descriptor: int
    bind: int
    address: tuple[str, int] | None
    data: bytes


class Socket(Protocol):
    """What is used of a socket here; the C type :class:`_socket.socket` has it, unpatched by gevent."""

    def sendmsg(self, buffers: list[bytes], ancdata: list[tuple[int, int, bytes]], flags: int, /) -> int: ...

    def recvmsg_into(
        self, buffers: list[bytearray], ancbufsize: int, flags: int, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]: ...


def encode(bind: int, address: tuple[str, int] | None = None, data: bytes = b"") -> bytes:
    """The bytes of a frame.

    :param bind: index of the listening socket, 0 to 65535
    :param address: the client's (host, port) if it is not the peer's
    :param data: bytes already read from the client, at most :data:`MAX_DATA_BYTES`
    """
    if address is None:
        return _HEADER.pack(0, bind, 0, len(data)) + data
    packed = pack(address[0])
    return _HEADER.pack(len(packed), bind, address[1], len(data)) + packed + data


def decode(message: bytes) -> tuple[int, tuple[str, int] | None, bytes]:
    """The inverse of :func:`encode`.

    :raises FrameError: it is no frame
    """
    if len(message) < _HEADER.size:
        raise FrameError(f"a frame of {len(message)} bytes; expected at least {_HEADER.size}")
    kind, bind, port, length = _HEADER.unpack_from(message)
    start = _HEADER.size + kind
    if kind not in (0, 4, 16) or len(message) != start + length:
        raise FrameError(f"a frame of {len(message)} bytes, address {kind}, data {length}; they don't add up")
    address = (unpack(message[_HEADER.size : start]), port) if kind else None
    return bind, address, message[start:]


def send(channel: Socket, message: bytes, descriptor: int) -> None:
    """Send a frame without waiting. The caller still owns ``descriptor`` and closes it.

    :raises BlockingIOError: the channel is full
    :raises OSError: ETOOMANYREFS, too many descriptors are on their way (unix(7)); ENOBUFS or ENOMEM
    """
    channel.sendmsg([message], [(SOL_SOCKET, SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))], MSG_DONTWAIT)


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
        size, ancillary, flags, _ = self._channel.recvmsg_into(
            [self._buffer], _RIGHTS_SPACE, MSG_DONTWAIT | MSG_CMSG_CLOEXEC
        )
        if not size and not ancillary:
            raise EOFError("the channel is closed")
        descriptors = array("i")
        for level, kind, data in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                descriptors.frombytes(data)
        if len(descriptors) == 1 and not flags & MSG_CTRUNC:
            try:
                return Frame(descriptors[0], *decode(bytes(self._buffer[:size])))
            except FrameError:
                close(descriptors[0])
                raise
        for descriptor in descriptors:
            close(descriptor)
        if flags & MSG_CTRUNC:
            return None
        raise FrameError(f"a frame of {size} bytes with {len(descriptors)} descriptors; expected one")
