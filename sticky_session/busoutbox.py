"""Messages on their way to other workers: sent at once where a bus has room, kept in a bounded queue where not.

When too much is queued for a slot the oldest is dropped, counted and reported.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import gevent

from sticky_session.busframe import MAX_MESSAGE_BYTES, NOT_NOW, Message
from sticky_session.slots import Table

# What one worker keeps for one slot that takes its messages too slowly.
QUEUE_BYTES = MAX_MESSAGE_BYTES
QUEUE_MESSAGES = 50_000
# How many messages are sent from a queue, or taken from the bus, before others in this process get their turn.
BURST = 64
# How long sending pauses when something but room has run out, and taking when it has failed.
PAUSE_SECONDS = 0.05
# How often a queue's slot is looked at, whose bus makes no room.
LOOK_SECONDS = 1.0
# How often dropped messages are reported: in the log, and to gunicorn's metrics.
LOG_SECONDS = 60.0
METRIC_SECONDS = 1.0

# Nobody has the other end, not even the arbiter: it was killed, and this process is about to find out.
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN})


class _Queue:
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


class Outbox:
    """Sends a worker's messages, in order for each slot, and never waits.

    :param ends: sending ends, by slot; slots that are newer are met as messages or ends for them come
    :param table: tells who serves a slot
    :param log: gunicorn's logger
    """

    def __init__(self, ends: Iterable[_socket.socket], table: Table, log: Any) -> None:
        self._queues = [_Queue(end) for end in ends]
        self._table = table
        self._log = log
        self._hub = gevent.get_hub()
        self._dropped: Counter[int] = Counter()
        self._unmeasured = 0
        self._teller: gevent.Greenlet | None = None

    def is_sending(self) -> bool:
        """Whether anything is queued for workers that are still there, and that this one can reach.

        What is for others is forgotten. Who has left its slot is not told any more of slots that are newer.
        """
        self._forget_the_gone()
        return any(queue and queue.end is not None for queue in self._queues)

    def is_crowded(self) -> bool:
        """Whether messages may soon have to be dropped; what is for workers that are gone is forgotten first."""
        self._forget_the_gone()
        return any(queue.is_half_full for queue in self._queues)

    def _forget_the_gone(self) -> None:
        """Drop what is queued for workers that serve their slots no more."""
        for slot, queue in enumerate(self._queues):
            queue.address(self._table.holder(slot))

    def add_end(self, slot: int, descriptor: int) -> None:
        """Own the descriptor of a newer slot's sending end; that of one that is known is closed."""
        queue = self._queue(slot)
        end = _socket.socket(fileno=descriptor)
        # The app's socket.setdefaulttimeout() would have every send wait.
        end.setblocking(False)
        if queue.end is None:
            queue.end = end
            self._start_flushing(slot, queue)
        else:
            end.close()

    def send(self, slot: int, pid: int, message: Message) -> None:
        """Send a message to the worker that serves a slot, now or when there is room."""
        queue = self._queue(slot)
        queue.address(pid)
        if queue.end is not None and not queue:
            try:
                message.send(queue.end, slot, pid)
                return
            except OSError as error:
                if error.errno in _GONE:
                    return
                if error.errno not in NOT_NOW:
                    raise
        self._note_dropped(slot, queue.push(message))
        self._start_flushing(slot, queue)

    def _queue(self, slot: int) -> _Queue:
        while slot >= len(self._queues):
            self._queues.append(_Queue())
        return self._queues[slot]

    def _start_flushing(self, slot: int, queue: _Queue) -> None:
        if queue and queue.end is not None and not queue.is_flushing:
            queue.is_flushing = True
            gevent.spawn(self._flush, slot, queue, queue.end)

    def _flush(self, slot: int, queue: _Queue, end: _socket.socket) -> None:
        """Send what is queued for a slot, as it makes room."""
        watcher = self._hub.loop.io(end.fileno(), 2)
        try:
            while queue:
                if not self._has_room(watcher):
                    # Where the worker is gone and no other comes, nobody makes any.
                    queue.address(self._table.holder(slot))
                    continue
                try:
                    self._send_queued(slot, queue, end)
                except OSError as error:
                    if error.errno in _GONE:
                        return
                    if error.errno not in NOT_NOW:
                        raise
                    if error.errno != errno.EAGAIN:
                        gevent.sleep(PAUSE_SECONDS)
        finally:
            queue.is_flushing = False
            watcher.stop()
            watcher.close()

    def _has_room(self, watcher: Any) -> bool:
        """Wait for room, but only for a moment."""
        has_room = False
        with gevent.Timeout(LOOK_SECONDS, False):
            self._hub.wait(watcher)
            has_room = True
        return has_room

    def _send_queued(self, slot: int, queue: _Queue, end: _socket.socket) -> None:
        """Send until nothing is left, or there is no room, or others in this process should get their turn."""
        queue.address(self._table.holder(slot))
        for _ in range(min(len(queue), BURST)):
            message = queue.first()
            with contextlib.closing(message):
                message.send(end, slot, queue.addressee)
            queue.pop()

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
                    self._queue(slot).addressee,
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
