"""How generations follow one another, and how one grows and shrinks: the steps, each taken when its time has come.

- ``current`` is the generation that the listener feeds, or whose workers accept themselves (:mod:`.kernelrouter`).
- ``next`` is one being built after SIGHUP. When workers fill all of its slots, the listener is replaced and it becomes
  the current one; if it can't boot, it is abandoned and the current one goes on.
- ``old`` are those that run dry: their workers are told to stop as soon as the last listener that feeds them is gone,
  and what nobody has taken from their channels goes to the current one.

A ring grows when the new slots are filled, and shrinks before they are emptied: SIGTTIN, SIGTTOU.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sticky_session.address import Masks
from sticky_session.bus import introduce
from sticky_session.delivery import peer_host
from sticky_session.generation import Bind, Generation
from sticky_session.handoff import Frame
from sticky_session.listeners import Listeners
from sticky_session.ring import Ring
from sticky_session.slots import Channel, pour

if TYPE_CHECKING:
    from sticky_session.worker import Worker


class Succession:
    """The arbiter's generations.

    :param first: the one that the first listener feeds
    :param workers: live mapping from process id to worker, of those whose end has not been noted yet
    """

    def __init__(self, first: Generation, workers: dict[int, Worker], listeners: Listeners, log: Any) -> None:
        self.current = first
        self.next: Generation | None = None
        self.old: list[Generation] = []
        self._workers = workers
        self._listeners = listeners
        self._log = log

    def __iter__(self) -> Iterator[Generation]:
        """All that still have channels, the oldest first."""
        yield from self.old
        yield self.current
        if self.next is not None:
            yield self.next

    @property
    def newest(self) -> Generation:
        """The one that was made last, whose configuration the arbiter has."""
        return self.current if self.next is None else self.next

    def sockets(self) -> list[Any]:
        """The listening sockets of the current and the next generation, each once."""
        found = list(self.current.sockets)
        if self.next is not None:
            found += [sock for sock in self.next.sockets if sock not in found]
        return found

    # --- a reload

    def begin(self, generation: Generation) -> None:
        """Build a generation beside the current one. There must be no next one."""
        self.next = generation

    def abandon(self) -> None:
        """Give up the next generation, if there is one; the current one goes on."""
        if self.next is not None:
            self.old.append(self.next)
            self.next = None

    def change_over(self) -> None:
        """When all of the next generation's slots are filled, make it the current one, and let the listener feed it."""
        upcoming = self.next
        if upcoming is None or not upcoming.is_filled(upcoming.ring_size):
            return
        self.old.append(self.current)
        self.current, self.next = upcoming, None
        # Proxies' connections that the former workers leave may come to its own before the listener does.
        upcoming.table.set_ring(upcoming.ring_size)
        self._listeners.stop(signal.SIGTERM)

    # --- the current ring's size

    def resize(self, wanted: int) -> None:
        """Let the ring have ``wanted`` slots, 0 to the capacity, as soon as it can. 0 means that nobody is served.

        :raises OSError: there can't be so many channels
        """
        current = self.current
        current.table.set_final(wanted == 0)
        if self.next is not None or wanted == current.ring_size:
            return
        if wanted == 0:
            self._listeners.stop(signal.SIGTERM)
            return
        current.grow(wanted)
        if current.is_filled(wanted):
            current.ring_size = wanted
            self._listeners.stop(signal.SIGTERM)

    # --- workers

    def to_fill(self, wanted: int) -> Iterator[tuple[Generation, int]]:
        """The slots that another worker is to be started for now.

        :param wanted: how many slots the current generation should have if no other is on its way
        """
        now = time.monotonic()
        for generation in (self.current, self.next):
            if generation is None:
                continue
            occupied = self.occupied(generation)
            for slot in range(wanted if self.next is None else generation.ring_size):
                if slot not in occupied and now >= generation.retry_at.get(slot, 0.0):
                    yield generation, slot

    def to_rescue(self) -> Iterator[tuple[Generation, int]]:
        """The slots that hold connections and have no worker: somebody must serve them before all end."""
        for generation in (*self.old, self.current):
            occupied = self.occupied(generation)
            for slot in range(len(generation.channels)):
                if slot not in occupied and generation.has_connections(slot):
                    yield generation, slot

    def occupied(self, generation: Generation) -> set[int]:
        """The slots that a worker serves, or is about to."""
        return {
            worker.seat.slot
            for worker in self._workers.values()
            if worker.seat.generation is generation
            and not worker.told_to_stop
            and (not worker.held_slot or generation.table.holder(worker.seat.slot) == worker.pid)
        }

    def _members(self, generation: Generation) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.seat.generation is generation]

    def _kept(self, generation: Generation, wanted: int) -> int:
        """How many slots of a generation keep their workers."""
        if generation is not self.current:
            return 0
        if self.next is not None:
            return generation.ring_size
        return max(wanted, generation.ring_size) if wanted else 0

    def introduce(self) -> None:
        """Let workers reach the slots that are newer than they are, by the bus."""
        for generation in self:
            for worker in self._members(generation):
                if not worker.told_to_stop:
                    introduce(generation, worker.seat, worker.pid)

    def surplus(self, wanted: int) -> list[Worker]:
        """The workers that are too many, once no listener feeds them; they have not been told to stop."""
        return [
            worker
            for generation in (*self.old, self.current)
            if not self._listeners.still_feed(generation)
            for worker in self._members(generation)
            if worker.seat.slot >= self._kept(generation, wanted) and not worker.told_to_stop
        ]

    def run_dry(self, wanted: int) -> None:
        """Give away what waits where nobody reads any more, and close the generations that are done."""
        for generation in list(self.old):
            if self._listeners.still_feed(generation):
                continue
            self._pour_unserved(generation, 0)
            # Its workers passed on here what the listener should have passed on.
            self._pour(generation, generation.returns)
            channels = (*generation.channels, generation.returns)
            if not self._members(generation) and all(channel.is_empty for channel in channels):
                self.old.remove(generation)
                generation.close()
        if wanted and not self._listeners.still_feed(self.current):
            self._pour_unserved(self.current, self._kept(self.current, wanted))
        if wanted and not self._listeners:
            # Another arbiter's accepts, or ours has died, and workers still pass on connections by it.
            self._pour(self.current, self.current.returns)

    def _pour_unserved(self, generation: Generation, first: int) -> None:
        """Give away what waits in the slots from ``first`` on that nobody serves.

        Those who served them may be busy with their last requests for long, and others still pass on connections.
        """
        for slot in range(first, len(generation.channels)):
            if not generation.table.holder(slot):
                self._pour(generation, generation.channels[slot])

    def _pour(self, generation: Generation, channel: Channel) -> None:
        """Give the connections left in a channel to the current ring."""
        if channel.is_empty:
            return
        current = self.current
        options = current.options
        ring = Ring(current.ring_size, options.partitions, options.seed)
        masks = Masks(options.ipv4_prefix, options.ipv6_prefix)

        def route(frame: Frame) -> tuple[int, int] | None:
            bind = same_bind(generation.binds[frame.bind], current.binds)
            host = peer_host(frame.descriptor) if frame.host is None else frame.host
            return None if bind is None else (ring.slot(masks.key(host)), bind)

        lost = pour(channel, current.channels, route)
        if lost:
            self._log.error("%s connections were lost on their way to another worker", lost)


def same_bind(bind: Bind, binds: list[Bind]) -> int | None:
    """The index of what is bound alike among others; at least of the same kind, if possible."""
    if bind in binds:
        return binds.index(bind)
    kind = (bind.family, bind.for_bus)
    return next((index for index, it in enumerate(binds) if (it.family, it.for_bus) == kind), None)
