"""The bus: what the workers of a generation tell each other, from each to each, with nobody in between.

Every slot has a channel for it, which the arbiter made and keeps open. A worker holds the sending ends of all and reads
from its own slot's. One message is one frame (:mod:`.busframe`), so it arrives whole or not at all, and what one worker
sends to another keeps its order.

Rules:

- Sending never waits. What a channel has no room for is queued here, in the sender, and when too much is queued for a
  slot the oldest is dropped, counted and reported.
- A slot without a worker gets nothing.
- A frame is addressed to the worker that served the slot when it was sent; another one, which finds it in the channel
  later, throws it away. So a new worker begins with an empty bus, whatever its predecessor left.
- Who is no worker of this generation has no end of any of these channels: they are inherited from the arbiter, and
  have no name in any file system.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.queue import Queue

from sticky_session.busframe import MAX_MESSAGE_BYTES, NOT_NOW, Message, Receiver, send_end
from sticky_session.generation import Generation, Seat

# What one worker keeps for one slot that takes its messages too slowly.
QUEUE_BYTES = MAX_MESSAGE_BYTES
QUEUE_MESSAGES = 50_000
# What has been taken from the bus and waits for the app; beyond it, the bus is not read.
INBOX_BYTES = 8 * 2**20
# How many messages are taken, or sent from a queue, before others in this process get their turn.
BURST = 64
# How long sending pauses when something but room has run out.
PAUSE_SECONDS = 0.05
# How often dropped messages are reported: in the log, and to gunicorn's metrics.
LOG_SECONDS = 60.0
METRIC_SECONDS = 1.0

# Nobody has the other end, not even the arbiter: it was killed, and this process is about to find out.
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN})

_get_ident = get_original("_thread", "get_ident")


def introduce(generation: Generation, seat: Seat, pid: int) -> None:
    """Arbiter: give a worker the sending ends of the slots that are newer than it.

    What finds no room is tried again at the arbiter's next turn; the worker queues what it has for that slot.
    """
    while seat.known_slots < len(generation.buses):
        slot = seat.known_slots
        if not send_end(generation.buses[seat.slot], pid, slot, generation.buses[slot].sending_end):
            return
        seat.known_slots += 1


class Inbox:
    """What has come for one listener and waits for it."""

    def __init__(self) -> None:
        self._queue: Queue[bytes] = Queue()
        self._bytes = 0
        self._has_room = Event()
        self._has_room.set()

    def put(self, payload: bytes) -> None:
        """Add a payload."""
        self._bytes += len(payload)
        if self._bytes > INBOX_BYTES:
            self._has_room.clear()
        self._queue.put_nowait(payload)

    def wait_for_room(self) -> None:
        """Wait until less than :data:`INBOX_BYTES` wait."""
        self._has_room.wait()

    def __iter__(self) -> Iterator[bytes]:
        """Wait for payloads, for ever."""
        while True:
            payload = self._queue.get()
            self._bytes -= len(payload)
            if self._bytes <= INBOX_BYTES:
                self._has_room.set()
            yield payload


class _Outbox:
    """What one slot has not been sent yet.

    :ivar end: the slot's sending end; None while the arbiter has not passed it on
    :ivar addressee: the worker that it is meant for
    """

    __slots__ = ("_bytes", "_messages", "addressee", "end", "is_flushing")

    def __init__(self, end: _socket.socket | None = None) -> None:
        self.end = end
        self.addressee = 0
        self.is_flushing = False
        self._messages: deque[Message] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_half_full(self) -> bool:
        """Whether it may soon have to drop something."""
        return 2 * self._bytes > QUEUE_BYTES or 2 * len(self._messages) > QUEUE_MESSAGES

    def address(self, pid: int) -> None:
        """Begin anew if it is another worker now."""
        if pid != self.addressee:
            self.addressee = pid
            self._messages.clear()
            self._bytes = 0

    def push(self, message: Message) -> int:
        """Add a message.

        :returns: how many had to go for it
        """
        self._messages.append(message)
        self._bytes += message.size
        dropped = 0
        while self._bytes > QUEUE_BYTES or len(self._messages) > QUEUE_MESSAGES:
            self.pop()
            dropped += 1
        return dropped

    def first(self) -> Message:
        """The oldest."""
        return self._messages[0]

    def pop(self) -> None:
        """The oldest is done."""
        self._bytes -= self._messages.popleft().size


class Bus:
    """A worker's place on the bus.

    Sending works from the beginning; :meth:`start` when it serves its slot, :meth:`stop` before it leaves it.

    :param pid: the worker's process id, which it is addressed by
    :param log: gunicorn's logger
    """

    def __init__(self, seat: Seat, pid: int, log: Any) -> None:
        self._pid = pid
        self._process = os.getpid()
        self._thread = _get_ident()
        self._hub = gevent.get_hub()
        self._log = log
        self._table = seat.generation.table
        self._receiving_end = seat.generation.buses[seat.slot].receiving_end
        self._receiver = Receiver(self._receiving_end)
        self._outboxes = [_Outbox(channel.sending_end) for channel in seat.generation.buses]
        self._inboxes: dict[bytes, list[Inbox]] = {}
        self._reader: gevent.Greenlet | None = None
        self._dropped: Counter[int] = Counter()
        self._unmeasured = 0
        self._teller: gevent.Greenlet | None = None

    # --- listening

    def listen(self, channel: str) -> Inbox:
        """A new inbox for all that others send on a channel, in this process, too."""
        inbox = Inbox()
        self._inboxes.setdefault(channel.encode(), []).append(inbox)
        return inbox

    def start(self) -> None:
        """This worker serves its slot from now on."""
        self._reader = gevent.spawn(self._read)

    def stop(self) -> None:
        """This worker is about to leave its slot; what comes now is for the next one to throw away."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.kill(block=False)

    def _read(self) -> None:
        me = self._reader
        watcher = self._hub.loop.io(self._receiving_end.fileno(), 1)
        try:
            while True:
                self._hub.wait(watcher)
                for _ in range(BURST):
                    # A process that the app has forked may get here, and must leave its parent's messages alone.
                    if self._reader is not me or os.getpid() != self._process:
                        return
                    try:
                        inboxes = self._receive()
                    except BlockingIOError:
                        break
                    except EOFError:
                        # The arbiter was killed, and the worker is about to find out.
                        return
                    for inbox in inboxes:
                        inbox.wait_for_room()
        finally:
            watcher.stop()
            watcher.close()

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
                self._log.error("A broadcast was lost: no descriptors left in this worker; raise ulimit -n")
                return []
            if frame.brings_end:
                self._add_end(frame.slot, frame.take_end())
                return []
            inboxes = self._inboxes.get(frame.channel, [])
            if inboxes:
                payload = frame.payload()
                for inbox in inboxes:
                    inbox.put(payload)
            return inboxes
        finally:
            frame.close()

    def _add_end(self, slot: int, descriptor: int) -> None:
        outbox = self._outbox(slot)
        end = _socket.socket(fileno=descriptor)
        # The app's socket.setdefaulttimeout() would have every send wait.
        end.setblocking(False)
        if outbox.end is None:
            outbox.end = end
            self._start_flushing(slot, outbox)
        else:
            end.close()

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
        by_channel = in_turn and self._reader is not None
        for inbox in () if by_channel else self._inboxes.get(channel.encode(), ()):
            if inbox is not sender:
                inbox.put(message.payload)
        holder = self._table.holder
        with contextlib.closing(message):
            for slot in range(self._table.slots):
                pid = holder(slot)
                if pid and (pid != self._pid or by_channel):
                    self._send_to(slot, pid, message)

    def is_sending(self) -> bool:
        """Whether anything is queued for workers that are still there, and that this one can reach.

        Who has left its slot is not told any more of slots that are newer.
        """
        for slot, outbox in enumerate(self._outboxes):
            outbox.address(self._table.holder(slot))
        return any(outbox and outbox.end is not None for outbox in self._outboxes)

    def is_crowded(self) -> bool:
        """Whether messages may soon have to be dropped."""
        return any(outbox.is_half_full for outbox in self._outboxes)

    def _outbox(self, slot: int) -> _Outbox:
        while slot >= len(self._outboxes):
            self._outboxes.append(_Outbox())
        return self._outboxes[slot]

    def _send_to(self, slot: int, pid: int, message: Message) -> None:
        outbox = self._outbox(slot)
        outbox.address(pid)
        if outbox.end is not None and not outbox:
            try:
                message.send(outbox.end, slot, pid)
                return
            except OSError as error:
                if error.errno in _GONE:
                    return
                if error.errno not in NOT_NOW:
                    raise
        self._note_dropped(slot, outbox.push(message))
        self._start_flushing(slot, outbox)

    def _start_flushing(self, slot: int, outbox: _Outbox) -> None:
        if outbox and outbox.end is not None and not outbox.is_flushing:
            outbox.is_flushing = True
            gevent.spawn(self._flush, slot, outbox, outbox.end)

    def _flush(self, slot: int, outbox: _Outbox, end: _socket.socket) -> None:
        """Send what is queued for a slot, as it makes room."""
        watcher = self._hub.loop.io(end.fileno(), 2)
        try:
            while outbox:
                self._hub.wait(watcher)
                try:
                    self._send_queued(slot, outbox, end)
                except OSError as error:
                    if error.errno in _GONE:
                        return
                    if error.errno not in NOT_NOW:
                        raise
                    if error.errno != errno.EAGAIN:
                        gevent.sleep(PAUSE_SECONDS)
        finally:
            outbox.is_flushing = False
            watcher.stop()
            watcher.close()

    def _send_queued(self, slot: int, outbox: _Outbox, end: _socket.socket) -> None:
        """Send until nothing is left, or there is no room, or others in this process should get their turn."""
        outbox.address(self._table.holder(slot))
        for _ in range(min(len(outbox), BURST)):
            message = outbox.first()
            with contextlib.closing(message):
                message.send(end, slot, outbox.addressee)
            outbox.pop()

    # --- what was dropped

    def _note_dropped(self, slot: int, count: int) -> None:
        if count:
            self._dropped[slot] += count
            self._unmeasured += count
            if self._teller is None:
                self._teller = gevent.spawn(self._tell_dropped)

    def _tell_dropped(self) -> None:
        """Say what was dropped, at once and then once a minute for as long as it goes on."""
        while self._dropped:
            dropped, self._dropped = self._dropped, Counter()
            for slot, count in sorted(dropped.items()):
                self._log.warning(
                    "%s messages to the worker of slot %s (pid:%s) were dropped, the oldest first: "
                    "it is stopped, or too busy to take them",
                    count,
                    slot,
                    self._outbox(slot).addressee,
                )
            end = time.monotonic() + LOG_SECONDS
            while time.monotonic() < end:
                self._measure_dropped()
                gevent.sleep(METRIC_SECONDS)
        self._measure_dropped()
        self._teller = None

    def _measure_dropped(self) -> None:
        count, self._unmeasured = self._unmeasured, 0
        if count:
            extra = {"metric": "sticky_session.bus_dropped", "value": count, "mtype": "counter"}
            self._log.debug("%s messages were dropped", count, extra=extra)


# The bus of the worker that this process is, if it is one and has one.
_bus_in_this_process: list[Bus] = []


def current_bus() -> Bus | None:
    """The bus of the worker that this process is; None in any other process."""
    return _bus_in_this_process[0] if _bus_in_this_process else None


def set_current_bus(bus: Bus) -> None:
    """Let :func:`current_bus` have it."""
    _bus_in_this_process[:] = [bus]
