"""Connections on their way to their slots: the ring, those that stand in for failed slots, queues, and refusals.

Used by whoever accepts for the workers: the listener, and in its place the arbiter where the kernel routes.
"""

from __future__ import annotations

import _socket
import math
import select
from typing import Any

from sticky_session import handoff
from sticky_session.address import Masks
from sticky_session.failover import Failover
from sticky_session.generation import Generation
from sticky_session.outbox import Outbox
from sticky_session.refusal import Refusals, unavailable
from sticky_session.ring import Ring


class Delivery:
    """Delivers to one generation's channels.

    :param poll: the process's epoll object; events of our descriptors go to :meth:`handle`
    :param queue_size: how many connections may wait for one slot here, beside those in its channel
    :param refusals: where those go that find no place
    """

    def __init__(
        self, generation: Generation, poll: select.epoll, queue_size: int, refusals: Refusals, log: Any
    ) -> None:
        options = generation.options
        self.ring = Ring(generation.ring_size, options.partitions, options.seed)
        self.masks = Masks(options.ipv4_prefix, options.ipv6_prefix)
        self.failover = Failover(generation.table, generation.ring_size, options.failover_seconds, log)
        self.outbox = Outbox(poll, [channel.sending_end for channel in generation.channels], queue_size, refusals.add)
        self.refusals = refusals
        self._leftovers = [handoff.Receiver(channel.receiving_end) for channel in generation.channels]
        self._log = log

    @property
    def busy(self) -> bool:
        """Whether there is something to be looked after in a moment."""
        return bool(self.failover.any_empty or self.refusals or self.outbox)

    def deliver(self, descriptor: int, message: bytes, affinity: bytes) -> None:
        """Send a connection where it belongs, now or when there is room, and own its descriptor from now on."""
        slot = self.ring.slot_without(affinity, self.failover.failed)
        self.outbox.deliver(slot, descriptor, message, affinity)

    def handle(self, descriptor: int) -> None:
        """Do what an event is about."""
        if descriptor in self.outbox:
            self.outbox.handle(descriptor)
        elif descriptor in self.refusals:
            self.refusals.handle(descriptor)

    def tick(self, now: float) -> None:
        """Do what there is no event for."""
        self.refusals.sweep(now)
        for slot in self.failover.failed:
            # A worker that had not heard of it yet may have passed a connection on to it.
            self.take_back(self._leftovers[slot])
        self.outbox.retry()

    def look_at_slots(self, now: float) -> bool:
        """Where slots have failed, give what waits for them to those that stand in.

        :returns: whether others have failed now
        """
        if not self.failover.look(now):
            return False
        for slot in sorted(self.failover.failed):
            self.take_back(self._leftovers[slot])
            for descriptor, message, affinity in self.outbox.withdraw(slot):
                self.deliver(descriptor, message, affinity)
        return True

    def take_back(self, receiver: handoff.Receiver, limit: float = math.inf) -> None:
        """Take frames out of a channel, and give them to those that they belong to."""
        taken = 0
        while taken < limit:
            try:
                frame = receiver.receive()
            except BlockingIOError:
                return
            if frame is None:
                # The kernel drops a descriptor that finds no place; the others wait here for another try.
                self._log.error("A connection was lost: no descriptors left")
                return
            taken += 1
            affinity = self.masks.key(peer_host(frame.descriptor) if frame.host is None else frame.host)
            self.deliver(frame.descriptor, frame.encode(frame.bind), affinity)


def peer_host(descriptor: int) -> str:
    """The peer's IP address; empty if it has none or is gone."""
    sock = _socket.socket(fileno=descriptor)
    try:
        peer = sock.getpeername()
    except OSError:
        return ""
    finally:
        sock.detach()
    return str(peer[0]) if isinstance(peer, tuple) else ""


def refusal_of(generation: Generation) -> bytes | None:
    """What a generation's clients are told who find no place; None over TLS, where nothing can be said."""
    return None if generation.cfg.is_ssl else unavailable(1 + int(generation.options.failover_seconds))
