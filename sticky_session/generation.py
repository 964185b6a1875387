"""The generation: what is made anew on every reload, and lives as long as somebody is served by it.

SIGHUP makes a new generation beside the current one; see :mod:`.succession` for how the one follows the other.
"""

from __future__ import annotations

import _socket
import contextlib
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sticky_session.bpf import most_workers
from sticky_session.bussocket import BusSocket
from sticky_session.config import Options
from sticky_session.reuseport import Group
from sticky_session.slots import Channel, Table, wake
from sticky_session.surroundings import Surroundings

# How much each slot's bus holds; the kernel doubles it for its own overhead (socket(7), SO_SNDBUF). The default of
# wmem_max on most machines allows no more.
BUS_ROOM_BYTES = 212_992


class Bind(NamedTuple):
    """What a connection was accepted on.

    :ivar for_bus: whether it is the bus socket, whose connections carry no requests
    """

    family: int
    address: Any
    for_bus: bool


@dataclass(eq=False)
class Generation:
    """One set of channels and their table, and what was in force when it was made.

    A later reload may fail, and then this one goes on with its own configuration and sockets.

    :ivar app: gunicorn's application object, a copy of the one that reloads change; its ``cfg`` is the configuration
    :ivar ring_size: how many slots the listener's ring has; the channels may be more while the ring grows or shrinks
    :ivar sockets: the listening sockets (gunicorn's objects, and the bus socket), by the frame's index; generations may
        share them
    :ivar groups: where the kernel routes: of each socket the group that it belongs to, None for the bus socket; where
        the listener does: nothing
    :ivar binds: what they are bound to
    :ivar buses: what the workers tell each other travels on these, see :mod:`.bus`; none if the option is off
    :ivar failures: slot -> how many times in a row its worker failed to boot
    :ivar retry_at: slot -> when another worker may be started for it after that, by CLOCK_MONOTONIC
    :ivar surroundings: what its processes find around them; None while that is what the arbiter has itself
    :ivar wanted: how many slots it was to have when a later configuration was read
    """

    app: Any
    options: Options
    ring_size: int
    sockets: list[Any]
    groups: list[Group | None] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    buses: list[Channel] = field(default_factory=list)
    failures: dict[int, int] = field(default_factory=dict)
    retry_at: dict[int, float] = field(default_factory=dict)
    surroundings: Surroundings | None = None
    wanted: int = 0

    def __post_init__(self) -> None:
        self.binds = [Bind(it.FAMILY, it.getsockname(), isinstance(it, BusSocket)) for it in self.sockets]
        with contextlib.ExitStack() as made:
            self.table = Table(self.capacity)
            made.callback(self.table.close)
            # To the listener: a worker that doesn't have a client's own channel sends its connection there.
            self.returns = Channel()
            made.callback(self.returns.close)
            made.callback(self._close_channels)
            made.callback(self.close_buses)
            self.grow(self.ring_size)
            made.pop_all()

    @property
    def cfg(self) -> Any:
        """gunicorn's configuration."""
        return self.app.cfg

    @property
    def bus_socket(self) -> BusSocket | None:
        """The listening socket for messages from outside, if there is one."""
        return next((it for it in self.sockets if isinstance(it, BusSocket)), None)

    def gunicorns_sockets(self) -> list[Any]:
        """The listening sockets for requests."""
        return [it for it in self.sockets if not isinstance(it, BusSocket)]

    @property
    def capacity(self) -> int:
        """How many slots there can be."""
        partitions = self.options.partitions
        return most_workers(partitions) if self.groups else partitions

    def grow(self, slots: int) -> None:
        """Have channels for ``slots`` slots, empty from now on.

        :raises OSError: there can't be so many
        """
        for group in self.groups:
            if group is not None:
                group.grow(slots)
        while len(self.channels) < slots:
            channel = Channel()
            if self.options.bus:
                try:
                    self.buses.append(Channel(BUS_ROOM_BYTES))
                except OSError:
                    channel.close()
                    raise
            self.channels.append(channel)
            self.table.vacate(len(self.channels) - 1)
            self.table.set_slots(len(self.channels))

    def is_filled(self, slots: int) -> bool:
        """Whether workers serve the first ``slots`` slots."""
        return all(self.table.holder(slot) for slot in range(slots))

    def has_connections(self, slot: int) -> bool:
        """Whether frames wait in a slot's channel, or connections that are to be accepted by its worker."""
        if not self.channels[slot].is_empty:
            return True
        return self.table.admits and any(group is not None and group.waiting(slot) for group in self.groups)

    def close_buses(self) -> None:
        """Have no end of the bus in this process, which is the listener's."""
        for bus in self.buses:
            bus.close()

    def close(self) -> None:
        """Close channels and table in this process; the sockets may be another generation's, too."""
        self._close_channels()
        self.close_buses()
        self.returns.close()
        self.table.close()

    def _close_channels(self) -> None:
        for channel in self.channels:
            channel.close()


@dataclass
class Seat:
    """What one worker gets of its generation: its slot, its end of the channel, and ways to tell the arbiter.

    :ivar doorbell: writing end of the pipe that wakes the arbiter
    :ivar first_slots: arbiter: how many slots' buses the worker has been able to send to from the beginning
    :ivar known_slots: arbiter: how many it can send to, but for the ends that were lost on the way
    :ivar lost_ends: arbiter: how many of those it has heard of
    :ivar listening: worker: the sockets that it accepts from itself, where the kernel routes, and the indexes of their
        binds
    """

    slot: int
    generation: Generation
    doorbell: int
    first_slots: int = field(init=False)
    known_slots: int = field(init=False)
    lost_ends: int = field(init=False)

    def __post_init__(self) -> None:
        self.known_slots = self.first_slots = len(self.generation.buses)
        self.lost_ends = self.generation.table.lost_ends(self.slot)
        # In the worker.
        self.listening: list[tuple[Any, int]] = []

    @property
    def channel(self) -> _socket.socket:
        """The worker's end of the slot's channel."""
        return self.generation.channels[self.slot].receiving_end

    @property
    def has_connections(self) -> bool:
        """Whether somebody waits for the slot's worker."""
        return self.generation.has_connections(self.slot)

    def take(self) -> None:
        """This process has booted and serves the slot."""
        self.generation.table.fill(self.slot, os.getpid())
        wake(self.doorbell)

    def leave(self) -> None:
        """This process takes no more connections: the slot may be refilled at once."""
        self.generation.table.vacate(self.slot, os.getpid())
        wake(self.doorbell)

    def close_others(self) -> None:
        """Close what only other slots' workers, and the listener, read and accept from, in a worker."""
        for bind, group in enumerate(self.generation.groups):
            if group is not None:
                self.listening.append((group.members[self.slot], bind))
                group.close(keep=self.slot)
            else:
                self.listening.append((_duplicate(self.generation.sockets[bind]), bind))
        self.generation.returns.receiving_end.close()
        for slot, channel in enumerate(self.generation.channels):
            if slot != self.slot:
                channel.receiving_end.close()
        for slot, bus in enumerate(self.generation.buses):
            if slot != self.slot:
                bus.receiving_end.close()


def _duplicate(listening: Any) -> _socket.socket:
    sock = _socket.socket(fileno=os.dup(listening.fileno()))
    sock.setblocking(False)
    return sock
