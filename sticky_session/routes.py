"""A worker's view of the ring: where a host belongs, and the way to the other slots' workers."""

from __future__ import annotations

from sticky_session import handoff
from sticky_session.address import Masks
from sticky_session.generation import Seat
from sticky_session.ring import Ring
from sticky_session.slots import wake


class Routes:
    """By the ring that is in force now.

    :ivar slot: our own
    """

    def __init__(self, seat: Seat) -> None:
        self.slot = seat.slot
        self._table = seat.generation.table
        self._doorbell = seat.doorbell
        # Those of slots that came later go by the listener, or the arbiter, which have all.
        self._channels = [channel.sending_end for channel in seat.generation.channels]
        self._returns = seat.generation.returns.sending_end
        self._options = seat.generation.options
        self._masks = Masks(self._options.ipv4_prefix, self._options.ipv6_prefix)
        self._routing = (0, 0)
        self._ring: Ring | None = None
        self._failed: frozenset[int] = frozenset()

    def home(self, host: str) -> int:
        """The slot that a host belongs to; our own while nobody has said how many there are."""
        if self._table.routing != self._routing:
            self._learn()
        if self._ring is None:
            return self.slot
        return self._ring.slot_without(self._masks.key(host), self._failed)

    def _learn(self) -> None:
        self._routing = self._table.routing
        workers = self._routing[0]
        if workers:
            self._ring = Ring(workers, self._options.partitions, self._options.seed)
            self._failed = self._table.failed(workers)

    def is_served(self, slot: int) -> bool:
        """Whether a worker serves the slot now."""
        return bool(self._table.holder(slot))

    def is_forsaken(self, slot: int) -> bool:
        """Whether nobody may ever read what is sent to the slot: all are about to end, the listener first."""
        return self._table.is_final and (slot >= len(self._channels) or not self._table.holder(slot))

    def pass_on(self, slot: int, message: bytes, descriptor: int) -> bool:
        """Send a connection to a slot. The caller still owns the descriptor and closes it.

        :param message: its frame
        :returns: False if there is no room for it now
        """
        if slot >= len(self._channels) and self._table.admits:
            # There is no listener, who would read it at once.
            return self.hand_back(message, descriptor)
        channel = self._channels[slot] if slot < len(self._channels) else self._returns
        if not _send(channel, message, descriptor):
            return False
        if not self._table.holder(slot):
            # After a reload the arbiter gives it to the slot's new worker.
            wake(self._doorbell)
        return True

    def hand_back(self, message: bytes, descriptor: int) -> bool:
        """Send a connection to the arbiter, which has queues for slots whose channels are full.

        :returns: False if there is no room for it now
        """
        if not _send(self._returns, message, descriptor):
            return False
        wake(self._doorbell)
        return True


def _send(channel: handoff.Socket, message: bytes, descriptor: int) -> bool:
    try:
        handoff.send(channel, message, descriptor)
    except OSError as error:
        if error.errno not in handoff.CHANNEL_FULL:
            raise
        return False
    return True
