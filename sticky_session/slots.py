"""The slots: the channels to them, and the table that says who serves which.

Everything here is made by the arbiter before it forks, so it survives any child.
"""

from __future__ import annotations

import _socket
import errno
import mmap
import os
import time
from collections.abc import Callable, Container
from socket import AF_UNIX, MSG_DONTWAIT, MSG_PEEK, SO_SNDBUF, SOCK_NONBLOCK, SOCK_SEQPACKET, SOL_SOCKET

from sticky_session import handoff

# The table's cells: those that there are once, and then those of each slot.
_BEAT, _CLOSED, _RING, _FAILOVERS, _FINAL, _SLOTS, _ADMITS, _HEADER_CELLS = range(8)
_HOLDER, _EMPTY_SINCE, _LAST_HOLDER, _FAILED, _LOST_ENDS, _CELLS_A_SLOT = range(6)


class Channel:
    """The socket pair that a slot's frames travel on. The arbiter keeps both ends open.

    :param room_bytes: how much it holds, as SO_SNDBUF counts it (socket(7)); None for the system's default
    """

    __slots__ = ("receiving_end", "sending_end")

    def __init__(self, room_bytes: int | None = None) -> None:
        # Not even where an app has called socket.setdefaulttimeout() may anybody wait at it.
        self.sending_end, self.receiving_end = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)
        if room_bytes is not None:
            self.sending_end.setsockopt(SOL_SOCKET, SO_SNDBUF, room_bytes)

    def close(self) -> None:
        """Close both ends in this process."""
        self.sending_end.close()
        self.receiving_end.close()

    @property
    def is_empty(self) -> bool:
        """Whether no frame waits in it."""
        try:
            self.receiving_end.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return True
        return False


class Claim:
    """Something that only one of several processes does: the first that takes it. Memory can't promise that."""

    __slots__ = ("_descriptor",)

    def __init__(self) -> None:
        self._descriptor = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def take(self) -> bool:
        """Whether the caller is the first."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def renew(self) -> None:
        """Let somebody take it again."""
        os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """Give it up in this process."""
        handoff.close(self._descriptor)


class Table:
    """What arbiter, listener and workers tell each other, in memory they share.

    Every cell is an aligned 64-bit word with one writer at a time, read and written whole. Times are seconds of
    CLOCK_MONOTONIC, which is the same in all processes.

    :param slots: how many slots there is room for
    """

    def __init__(self, slots: int) -> None:
        self._memory = mmap.mmap(-1, 8 * (_HEADER_CELLS + _CELLS_A_SLOT * slots))
        view = memoryview(self._memory)
        self._numbers = view.cast("Q")
        self._times = view.cast("d")
        # Why a worker can't boot, what a user should know of a proxy or of eventlet, and whose broadcasts cross
        # workers, is said once.
        self.boot_report = Claim()
        self.advice = Claim()
        self.eventlet_report = Claim()
        self.bus_report = Claim()
        # Can be read from while workers may accept, for those that wait for it.
        self.admission = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def _cell(self, slot: int) -> int:
        return _HEADER_CELLS + _CELLS_A_SLOT * slot

    def holder(self, slot: int) -> int:
        """The process id of the worker that serves the slot; 0 while there is none."""
        return self._numbers[self._cell(slot) + _HOLDER]

    def holders(self) -> list[int]:
        """The same of all slots."""
        end = self._cell(self.slots)
        return self._numbers[_HEADER_CELLS + _HOLDER : end : _CELLS_A_SLOT].tolist()

    def fill(self, slot: int, pid: int) -> None:
        """A worker has booted and serves the slot from now on."""
        cell = self._cell(slot)
        self._numbers[cell + _LAST_HOLDER] = pid
        self._numbers[cell + _HOLDER] = pid

    def last_holder(self, slot: int) -> int:
        """The process id of the worker that was the last to serve the slot, and may still."""
        return self._numbers[self._cell(slot) + _LAST_HOLDER]

    def vacate(self, slot: int, pid: int | None = None) -> None:
        """Nobody serves the slot from now on (or: the worker ``pid`` no longer does, if it did)."""
        cell = self._cell(slot)
        if pid is None or self._numbers[cell + _HOLDER] == pid:
            self._times[cell + _EMPTY_SINCE] = time.monotonic()
            self._numbers[cell + _HOLDER] = 0

    def note_lost_end(self, slot: int) -> None:
        """The slot's worker: a bus's sending end that the arbiter has sent found no descriptor."""
        self._numbers[self._cell(slot) + _LOST_ENDS] += 1

    def lost_ends(self, slot: int) -> int:
        """How many were lost so."""
        return self._numbers[self._cell(slot) + _LOST_ENDS]

    def empty_since(self, slot: int) -> float:
        """When the slot was last vacated."""
        return self._times[self._cell(slot) + _EMPTY_SINCE]

    def set_failed(self, failed: Container[int], slots: int) -> None:
        """Who delivers: of the first ``slots`` slots those in ``failed`` have others stand in for them from now on."""
        for slot in range(slots):
            self._numbers[self._cell(slot) + _FAILED] = slot in failed
        self._numbers[_FAILOVERS] += 1

    def failed(self, slots: int) -> frozenset[int]:
        """Those of the first ``slots`` slots that others stand in for."""
        return frozenset(slot for slot in range(slots) if self._numbers[self._cell(slot) + _FAILED])

    def set_slots(self, slots: int) -> None:
        """Arbiter: so many slots have channels from now on."""
        self._numbers[_SLOTS] = slots

    @property
    def slots(self) -> int:
        """How many slots have channels: no other can have a worker."""
        return self._numbers[_SLOTS]

    def beat(self) -> None:
        """The listener is alive."""
        self._times[_BEAT] = time.monotonic()

    @property
    def last_beat(self) -> float:
        """When the listener last said that it is alive."""
        return self._times[_BEAT]

    def set_ring(self, workers: int) -> None:
        """Listener, arbiter before the first one or in its place: connections are routed by a ring of this size now."""
        self._numbers[_RING] = workers

    @property
    def routing(self) -> tuple[int, int]:
        """What changes whenever keys move; a kept-alive connection from before may be in the wrong place."""
        return self._numbers[_RING], self._numbers[_FAILOVERS]

    def set_final(self, final: bool) -> None:
        """Arbiter: whether workers that leave have no successors from now on."""
        self._numbers[_FINAL] = final

    @property
    def is_final(self) -> bool:
        """Whether nobody may ever read what is sent to a slot without a worker."""
        return bool(self._numbers[_FINAL])

    def set_admits(self, admits: bool) -> None:
        """Arbiter: whether workers may accept from the listening sockets of their slots from now on."""
        if admits != self.admits:
            self._numbers[_ADMITS] = admits
            if admits:
                os.eventfd_write(self.admission, 1)
            else:
                os.eventfd_read(self.admission)

    @property
    def admits(self) -> bool:
        """Whether workers may accept from the listening sockets of their slots."""
        return bool(self._numbers[_ADMITS])

    def note_closed(self, listener: int) -> None:
        """The listener with this process id accepts no more."""
        self._numbers[_CLOSED] = listener

    @property
    def last_closed(self) -> int:
        """The process id of the last listener that has ceased to accept."""
        return self._numbers[_CLOSED]

    def close(self) -> None:
        """Give the memory back in this process."""
        self._numbers.release()
        self._times.release()
        self._memory.close()
        self.boot_report.close()
        self.advice.close()
        self.eventlet_report.close()
        self.bus_report.close()
        handoff.close(self.admission)


def wake(doorbell: int) -> None:
    """Wake the arbiter: write a byte to its doorbell, a pipe. A full pipe has rung already."""
    try:
        os.write(doorbell, b"!")
    except BlockingIOError:
        pass
    except OSError as error:
        # The arbiter is gone, and its children are about to find out.
        if error.errno != errno.EPIPE:
            raise


def pour(source: Channel, targets: list[Channel], route: Callable[[handoff.Frame], tuple[int, int] | None]) -> int:
    """Move the frames left in a channel that nobody reads any more into other channels.

    It ends at a frame whose new channel is full: that one goes back, to be tried again later.

    :param route: gives the index in ``targets`` for a frame, and its bind there; None if there is no place for it
    :returns: how many connections were lost
    """
    receiver = handoff.Receiver(source.receiving_end)
    lost = 0
    while True:
        try:
            frame = receiver.receive()
        except BlockingIOError:
            return lost
        if frame is None:
            lost += 1
            continue
        place = route(frame)
        try:
            if place is None:
                lost += 1
                continue
            target, bind = place
            handoff.send(targets[target].sending_end, frame.encode(bind), frame.descriptor)
        except BlockingIOError:
            try:
                handoff.send(source.sending_end, frame.encode(frame.bind), frame.descriptor)
            except OSError:
                # Others send to it, too, and have taken the place.
                lost += 1
            return lost
        except OSError:
            lost += 1
        finally:
            handoff.close(frame.descriptor)
