"""The bus: what the workers of a generation tell each other, from each to each, with nobody in between.

Every slot has a channel for it, which the arbiter made and keeps open. A worker holds the sending ends of all and reads
from its own slot's. One message is one frame (:mod:`.busframe`), so it arrives whole or not at all, and what one worker
sends to another keeps its order.

Rules:

- Sending never waits. What a channel has no room for is queued in the sender (:mod:`.busoutbox`), and when too much is
  queued for a slot the oldest is dropped.
- A slot without a worker gets nothing.
- A frame is addressed to the worker that served the slot when it was sent; another one, which finds it in the channel
  later, throws it away. So a new worker begins with an empty bus, whatever its predecessor left.
- Who is no worker of this generation has no end of any of these channels: they are inherited from the arbiter, and
  have no name in any file system.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import gevent
from gevent.event import Event
from gevent.hub import Waiter
from gevent.monkey import get_original

from sticky_session.busframe import Frame, Message, Receiver, send_end
from sticky_session.busoutbox import BURST, LOG_SECONDS, PAUSE_SECONDS, Outbox
from sticky_session.generation import Generation, Seat

# What has been taken from the bus and waits for the app; beyond it, the bus is not read.
INBOX_BYTES = 8 * 2**20

# What may be lost for want of descriptors.
_BROADCASTS = "large broadcasts"
_ENDS = "ways to new workers, which are sent again"

_get_ident = get_original("_thread", "get_ident")


def introduce(generation: Generation, seat: Seat, pid: int) -> None:
    """Arbiter: give a worker the sending ends of the slots that are newer than it.

    What finds no room, in the bus or among the worker's descriptors, is tried again at the arbiter's next turn; the
    worker queues what it has for that slot.
    """
    lost_ends = generation.table.lost_ends(seat.slot)
    if lost_ends != seat.lost_ends:
        # All of them: those that it has it closes.
        seat.lost_ends, seat.known_slots = lost_ends, seat.first_slots
    while seat.known_slots < len(generation.buses):
        slot = seat.known_slots
        if not send_end(generation.buses[seat.slot], pid, slot, generation.buses[slot].sending_end):
            return
        seat.known_slots += 1


class Inbox:
    """What has come for one listener, a greenlet, and waits for it."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._payloads: deque[bytes] = deque()
        self._bytes = 0
        # The listener's, while it has nothing to do.
        self._waiter: Waiter | None = None
        self._has_room = Event()
        self._has_room.set()

    def put(self, payload: bytes) -> None:
        """Add a payload."""
        self._payloads.append(payload)
        self._bytes += len(payload)
        if self._bytes > INBOX_BYTES:
            self._has_room.clear()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._hub.loop.run_callback(waiter.switch, None)

    def give(self, payload: bytes) -> None:
        """In the hub: the same, but a listener that has nothing to do deals with it before this returns."""
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            self.put(payload)
        else:
            waiter.switch(payload)

    @property
    def is_full(self) -> bool:
        """Whether more than :data:`INBOX_BYTES` wait."""
        return not self._has_room.is_set()

    def wait_for_room(self) -> None:
        """Wait until it is full no more."""
        self._has_room.wait()

    def __iter__(self) -> Iterator[bytes]:
        """Wait for payloads, for ever."""
        while True:
            if self._payloads:
                payload = self._payloads.popleft()
                self._bytes -= len(payload)
                if self._bytes <= INBOX_BYTES:
                    self._has_room.set()
                yield payload
                continue
            self._waiter = Waiter(self._hub)
            try:
                given: bytes | None = self._waiter.get()
            finally:
                self._waiter = None
            if given is not None:
                yield given


class Bus:
    """A worker's place on the bus.

    Sending works from the beginning; :meth:`start` when it serves its slot, :meth:`stop` before it leaves it.

    :param pid: the worker's process id, which it is addressed by
    :param log: gunicorn's logger
    """

    def __init__(self, seat: Seat, pid: int, log: Any) -> None:
        self._slot = seat.slot
        self._pid = pid
        self._process = os.getpid()
        self._thread = _get_ident()
        self._hub = gevent.get_hub()
        self._log = log
        self._table = seat.generation.table
        buses = seat.generation.buses
        self._receiving_end = buses[seat.slot].receiving_end
        self._receiver = Receiver(self._receiving_end)
        self._outbox = Outbox((channel.sending_end for channel in buses), self._table, log)
        self._inboxes: dict[bytes, list[Inbox]] = {}
        self._lost: Counter[str] = Counter()
        self._teller: gevent.Greenlet | None = None
        # Of what comes; None while this worker doesn't serve its slot.
        self._watcher: Any = None

    # --- listening

    def listen(self, channel: str) -> Inbox:
        """A new inbox for all that others send on a channel, in this process, too."""
        inbox = Inbox()
        self._inboxes.setdefault(channel.encode(), []).append(inbox)
        return inbox

    @property
    def channels(self) -> list[str]:
        """The names of those that somebody listens to."""
        return sorted(name.decode() for name in self._inboxes)

    def start(self) -> None:
        """This worker serves its slot from now on."""
        watcher = self._watcher = self._hub.loop.io(self._receiving_end.fileno(), 1)
        watcher.start(self._read, watcher)

    def stop(self) -> None:
        """This worker is about to leave its slot; what comes now is for the next one to throw away."""
        if self._watcher is not None:
            watcher, self._watcher = self._watcher, None
            watcher.stop()
            watcher.close()

    def _read(self, watcher: Any) -> None:
        """Take one frame, in the hub, so that nobody has to be woken for it but those who listen.

        The rest is taken when the greenlets that it wakes have had their turn.
        """
        if self._take(watcher):
            self._hub.loop.run_callback(self._read_on, watcher)

    def _read_on(self, watcher: Any) -> None:
        for _ in range(BURST):
            if not self._take(watcher):
                return

    def _take(self, watcher: Any) -> bool:
        """Take one frame, in the hub, where nothing may wait, not even a logger.

        :returns: whether there may be more
        """
        # Stopped, or paused until there is room.
        if self._watcher is not watcher or not watcher.active:
            return False
        try:
            # A process that the app has forked may get here, and must leave its parent's messages alone.
            inboxes = self._receive() if os.getpid() == self._process else None
        except BlockingIOError:
            return False
        except EOFError:
            # The arbiter was killed, and the worker is about to find out.
            inboxes = None
        except Exception as error:
            # gevent would never call for this watcher again.
            watcher.stop()
            gevent.spawn(self._recover, watcher, error)
            return False
        if inboxes is None:
            self.stop()
            return False
        for inbox in inboxes:
            if inbox.is_full:
                watcher.stop()
                gevent.spawn(self._resume, watcher, inboxes)
                return False
        return True

    def _resume(self, watcher: Any, inboxes: list[Inbox]) -> None:
        """Go on reading when there is room for what comes."""
        for inbox in inboxes:
            inbox.wait_for_room()
        if self._watcher is watcher:
            watcher.start(self._read, watcher)

    def _recover(self, watcher: Any, error: Exception) -> None:
        """Say that nothing could be taken, and try again, whatever the logger does."""
        gevent.spawn(self._log.error, "Taking a broadcast from the bus failed, and it may be lost", exc_info=error)
        gevent.sleep(PAUSE_SECONDS)
        self._resume(watcher, [])

    def _receive(self) -> list[Inbox]:
        """Take one frame.

        :returns: the inboxes that have got it
        :raises BlockingIOError: there is none
        :raises EOFError: there is nobody to send one
        """
        frame = self._receiver.receive()
        try:
            if frame.addressee != self._pid:
                return []
            if frame.lost:
                self._note_lost(frame)
                return []
            if frame.brings_end:
                self._outbox.add_end(frame.slot, frame.take_end())
                return []
            inboxes = self._inboxes.get(frame.channel, [])
            if len(inboxes) == 1:
                inboxes[0].give(frame.payload())
            elif inboxes:
                # What the first of them does about it must not come before it at the others.
                payload = frame.payload()
                for inbox in inboxes:
                    inbox.put(payload)
            return inboxes
        finally:
            frame.close()

    def _note_lost(self, frame: Frame) -> None:
        """There was no descriptor for what came with a frame."""
        if frame.brings_end:
            self._table.note_lost_end(self._slot)
        self._lost[_ENDS if frame.brings_end else _BROADCASTS] += 1
        if self._teller is None:
            self._teller = gevent.spawn(self._tell_lost)

    def _tell_lost(self) -> None:
        """Say what was lost, at once and then once a minute for as long as it goes on."""
        try:
            while self._lost:
                lost, self._lost = self._lost, Counter()
                for what, count in lost.items():
                    self._log.error("No descriptors left in this worker; raise ulimit -n. Lost: %s %s", count, what)
                if count := lost[_BROADCASTS]:
                    extra = {"metric": "sticky_session.bus_dropped", "value": count, "mtype": "counter"}
                    self._log.debug("%s broadcasts were lost", count, extra=extra)
                gevent.sleep(LOG_SECONDS)
        finally:
            # Whatever the logger does.
            self._teller = None

    # --- sending

    def publish(self, channel: str, payload: bytes, sender: Inbox | None = None, *, in_turn: bool = False) -> None:
        """Send to all who listen to a channel, without waiting. Any thread of the worker may call it.

        :param sender: the inbox that doesn't get it
        :param in_turn: whether this process gets it only after all that others have sent to it before
        :raises ClusterError: it is too large
        """
        message = Message(channel, payload)
        if _get_ident() == self._thread:
            self._send(channel, message, sender, in_turn)
        else:
            self._hub.loop.run_callback_threadsafe(self._send, channel, message, sender, in_turn)

    def _send(self, channel: str, message: Message, sender: Inbox | None, in_turn: bool) -> None:
        # By its own channel, for as long as it reads from there.
        by_channel = in_turn and self._watcher is not None
        for inbox in () if by_channel else self._inboxes.get(channel.encode(), ()):
            if inbox is not sender:
                inbox.put(message.payload)
        try:
            for slot, pid in enumerate(self._table.holders()):
                if pid and (pid != self._pid or by_channel):
                    self._outbox.send(slot, pid, message)
        finally:
            message.close()

    def is_sending(self) -> bool:
        """Whether anything is queued for workers that are still there, and that this one can reach."""
        return self._outbox.is_sending()

    def is_crowded(self) -> bool:
        """Whether messages may soon have to be dropped."""
        return self._outbox.is_crowded()


# The bus of the worker that this process is, if it is one and has one.
_bus_in_this_process: list[Bus] = []


def current_bus() -> Bus | None:
    """The bus of the worker that this process is; None in any other process."""
    return _bus_in_this_process[0] if _bus_in_this_process else None


def set_current_bus(bus: Bus) -> None:
    """Let :func:`current_bus` have it."""
    _bus_in_this_process[:] = [bus]
