"""Connections on their way to the slots: sent at once where the channel has room, kept in a bounded queue where not."""

from __future__ import annotations

import errno
import select
from collections import deque
from collections.abc import Callable, Sequence

from sticky_session import handoff


class Outbox:
    """Sends frames, in order for each slot.

    :param poll: the listener's epoll object; events of the channels go to :meth:`handle`
    :param channels: where to send, by slot
    :param refuse: takes the descriptor of a connection that finds no place
    :ivar most: how many connections may wait for one slot
    """

    def __init__(
        self, poll: select.epoll, channels: Sequence[handoff.Socket], most: int, refuse: Callable[[int], None]
    ) -> None:
        self.most = most
        self._poll = poll
        self._channels = channels
        self._refuse = refuse
        # Descriptor, frame and affinity key.
        self._waiting: list[deque[tuple[int, bytes, bytes]]] = [deque() for _ in channels]
        self._slots = {channel.fileno(): slot for slot, channel in enumerate(channels)}
        # The slots whose channels epoll watches for room.
        self._watched: set[int] = set()

    def __bool__(self) -> bool:
        """Whether somebody waits."""
        return any(self._waiting)

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._slots

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._channels)

    def holds(self, slot: int) -> bool:
        """Whether somebody waits for a slot."""
        return bool(self._waiting[slot])

    def deliver(self, slot: int, descriptor: int, message: bytes, affinity: bytes) -> None:
        """Send a connection, now or when there is room, and own its descriptor from now on."""
        waiting = self._waiting[slot]
        if not waiting and self._send(slot, descriptor, message):
            handoff.close(descriptor)
        elif len(waiting) < self.most:
            waiting.append((descriptor, message, affinity))
        else:
            self._refuse(descriptor)

    def handle(self, descriptor: int) -> None:
        """The channel has room: send what waits for it."""
        self._flush(self._slots[descriptor])

    def retry(self) -> None:
        """Send what waits for something that epoll can't tell of."""
        for slot, waiting in enumerate(self._waiting):
            if waiting and slot not in self._watched:
                self._flush(slot)

    def withdraw(self, slot: int) -> deque[tuple[int, bytes, bytes]]:
        """Take back what waits for a slot."""
        waiting, self._waiting[slot] = self._waiting[slot], deque()
        self._unwatch(slot)
        return waiting

    def refuse_all(self) -> None:
        """Send nothing any more."""
        for slot in range(self.slots):
            for descriptor, _, _ in self.withdraw(slot):
                self._refuse(descriptor)

    def forget(self) -> None:
        """In a child of the process that owns them: close those that wait."""
        for waiting in self._waiting:
            for descriptor, _, _ in waiting:
                handoff.close(descriptor)
            waiting.clear()

    def _send(self, slot: int, descriptor: int, message: bytes) -> bool:
        """Send one frame; if it can't be taken now, see to it that it is tried again when it can."""
        try:
            handoff.send(self._channels[slot], message, descriptor)
        except OSError as error:
            if error.errno not in handoff.CHANNEL_FULL:
                raise
            if error.errno == errno.EAGAIN:
                self._watch(slot)
            else:
                # The channel has room and epoll would say so all the time.
                self._unwatch(slot)
            return False
        return True

    def _flush(self, slot: int) -> None:
        waiting = self._waiting[slot]
        while waiting:
            descriptor, message, _ = waiting[0]
            if not self._send(slot, descriptor, message):
                return
            waiting.popleft()
            handoff.close(descriptor)
        self._unwatch(slot)

    def _watch(self, slot: int) -> None:
        if slot not in self._watched:
            self._watched.add(slot)
            self._poll.register(self._channels[slot].fileno(), select.EPOLLOUT)

    def _unwatch(self, slot: int) -> None:
        if slot in self._watched:
            self._watched.remove(slot)
            self._poll.unregister(self._channels[slot].fileno())
