"""The frames of the bus: one message each, packed, sent and taken.

Channels are SOCK_SEQPACKET, so a frame arrives whole or not at all, and what one worker sends to another keeps its
order::

    0      1          2      4           8       12          12+C
    | kind | length C | slot | addressee | size  | channel C | payload, or padding |
      u8     u8         u16    u32         u32
             (network byte order)

``kind`` 0 is a message with its payload in the frame. With kind 1 the payload is in a sealed memfd, whose descriptor
travels with the frame (memfd_create(2), SCM_RIGHTS). The channel counts a frame's bytes and not the memory behind a
descriptor, so such a frame is padded: the larger the payload the more, and a channel that nobody reads is full before
it holds much. Kind 2 comes from the arbiter and brings the sending end of a slot that is newer than the worker.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
from collections.abc import MutableSequence
from struct import Struct

from sticky_session import handoff
from sticky_session.errors import ClusterError
from sticky_session.generation import BUS_ROOM_BYTES
from sticky_session.slots import Channel

MAX_MESSAGE_BYTES = 64 * 2**20
# Payloads up to this size travel in the frame, larger ones by memfd.
INLINE_BYTES = 96 * 2**10
MAX_CHANNEL_BYTES = 255

# A message can't be sent now, but perhaps later: beside what every channel may answer, what making a memfd lacks.
NOT_NOW = handoff.CHANNEL_FULL | {errno.EMFILE, errno.ENFILE, errno.ENOSPC}

_HEADER = Struct("!BBHII")
_INLINE, _PARCEL, _END = range(3)
# The largest padding is half of what a channel is sure to have room for, so two or three parcels of the largest size
# fill a channel, or some hundred MB of smaller ones.
_LEAST_PADDING = 4096
_PADDING = memoryview(bytes(_LEAST_PADDING + BUS_ROOM_BYTES))
_SEALS = fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _padding_bytes(size: int) -> int:
    return _LEAST_PADDING + BUS_ROOM_BYTES * size // MAX_MESSAGE_BYTES


class Message:
    """What is sent, to one slot or many.

    :param channel: only those who listen to it get it; at most :data:`MAX_CHANNEL_BYTES` in UTF-8
    :raises ClusterError: it is too large
    """

    __slots__ = ("_descriptor", "_name", "payload", "size")

    def __init__(self, channel: str, payload: bytes) -> None:
        self._name = channel.encode()
        if len(self._name) > MAX_CHANNEL_BYTES:
            raise ClusterError(f"channel {channel!r}: expected a name of at most {MAX_CHANNEL_BYTES} bytes")
        self.payload = payload
        self.size = len(payload)
        if self.size > MAX_MESSAGE_BYTES:
            raise ClusterError(
                f"a message of {self.size} bytes (encoded) can't be sent to the other workers; expected at most "
                f"{MAX_MESSAGE_BYTES}. Send it in parts"
            )
        self._descriptor: int | None = None

    def send(self, end: handoff.Socket, slot: int, addressee: int) -> None:
        """Send it without waiting.

        :raises OSError: it can't be sent; :data:`NOT_NOW` has the numbers of those that pass
        """
        if self.size <= INLINE_BYTES:
            handoff.send_parts(end, (self._head(_INLINE, slot, addressee), self.payload))
            return
        if self._descriptor is None:
            self._descriptor = _sealed(self.payload)
        padding = _PADDING[: _padding_bytes(self.size)]
        handoff.send_parts(end, (self._head(_PARCEL, slot, addressee), padding), self._descriptor)

    def _head(self, kind: int, slot: int, addressee: int) -> bytes:
        return _HEADER.pack(kind, len(self._name), slot, addressee, self.size) + self._name

    def close(self) -> None:
        """Give up what sending has left; it can be sent again."""
        if self._descriptor is not None:
            handoff.close(self._descriptor)
            self._descriptor = None


def _sealed(payload: bytes) -> int:
    """A memfd that nobody can change any more."""
    descriptor = os.memfd_create("sticky-session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(payload)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        fcntl.fcntl(descriptor, *_SEALS)
    except BaseException:
        handoff.close(descriptor)
        raise
    return descriptor


def send_end(channel: Channel, addressee: int, slot: int, end: _socket.socket) -> bool:
    """Arbiter: give a worker the sending end of another slot.

    :param channel: the worker's own
    :returns: False if there is no room for it now
    """
    try:
        handoff.send_parts(channel.sending_end, (_HEADER.pack(_END, 0, slot, addressee, 0),), end.fileno())
    except OSError as error:
        if error.errno not in handoff.CHANNEL_FULL:
            raise
        return False
    return True


class Receiver:
    """Takes frames from a channel into one buffer, made once."""

    __slots__ = ("_buffer", "_channel", "_view")

    def __init__(self, channel: handoff.Socket) -> None:
        self._channel = channel
        self._buffer = bytearray(_HEADER.size + MAX_CHANNEL_BYTES + INLINE_BYTES)
        # A slice of a bytearray would be a copy of its own.
        self._view = memoryview(self._buffer)

    def receive(self) -> Frame:
        """Take the next frame without waiting; it can be used until the one after it is taken. The caller closes it.

        :raises BlockingIOError: there is none
        :raises EOFError: there is nobody to send one
        """
        return Frame(self._view, *handoff.receive_into(self._channel, self._buffer))


class Frame:
    """A frame that has come, in the buffer that it was received into.

    :param size: its bytes
    :param descriptors: what came with it, which it owns until it is closed
    :param lost: whether the kernel had to drop one
    :ivar addressee: the process id of the worker that it is for
    :ivar slot: the slot that a message was sent to, or whose end is brought
    :ivar brings_end: whether it is no message, but brings the sending end of a newer slot
    :ivar channel: a message's channel
    """

    __slots__ = (
        "_buffer",
        "_descriptors",
        "_kind",
        "_payload_size",
        "_size",
        "_start",
        "addressee",
        "brings_end",
        "channel",
        "lost",
        "slot",
    )

    _kind: int
    addressee: int
    slot: int

    def __init__(self, buffer: memoryview, size: int, descriptors: MutableSequence[int], lost: bool) -> None:
        self._buffer = buffer
        self._size = size
        self._descriptors = descriptors
        self.lost = lost
        self._kind, length, self.slot, self.addressee, self._payload_size = _HEADER.unpack_from(buffer)
        self._start = _HEADER.size + length
        self.brings_end = self._kind == _END
        self.channel = buffer[_HEADER.size : self._start].tobytes()

    def payload(self) -> bytes:
        """A copy of a message's payload."""
        if self._kind == _INLINE:
            return self._buffer[self._start : self._size].tobytes()
        return os.pread(self._descriptors[0], self._payload_size, 0)

    def take_end(self) -> int:
        """The descriptor of the end that it brings; the caller owns it from now on."""
        return self._descriptors.pop()

    def close(self) -> None:
        """Close the descriptors that it still owns."""
        for descriptor in self._descriptors:
            handoff.close(descriptor)
