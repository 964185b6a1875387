"""The bus: whole messages in order, of any size, to those who serve, and never a wait."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sticky_session import ClusterError, bus, busframe, busoutbox, handoff
from sticky_session.bus import Bus, Inbox, introduce
from sticky_session.busframe import Message, send_end
from sticky_session.config import Options
from sticky_session.generation import Generation, Seat

CHANNEL = "test"
SLOTS = 3


class Log:
    """What gunicorn's logger is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.metrics: list[dict[str, Any]] = []

    def warning(self, text: str, *args: object) -> None:
        self.warnings.append(text % args)

    def error(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        # The handlers of an app's may wait.
        assert gevent.getcurrent() is not gevent.get_hub()
        self.errors.append(text % args + (f" ({exc_info})" if exc_info else ""))

    def debug(self, text: str, *args: object, extra: dict[str, Any]) -> None:
        assert text % args
        self.metrics.append(extra)


def pid_of(slot: int) -> int:
    """The process id that a worker here pretends to have."""
    return 1001 + slot


class Worker:
    """A worker's part of the bus, in this process."""

    def __init__(self, generation: Generation, slot: int, pid: int | None = None, *, serves: bool = True) -> None:
        self.slot = slot
        self.pid = pid or pid_of(slot)
        self.log = Log()
        self.seat = Seat(slot, generation, -1)
        self.known_slots = self.seat.known_slots
        self.bus = Bus(self.seat, self.pid, self.log)
        self.outbox = self.bus._outbox
        self.inbox = self.bus.listen(CHANNEL)
        self.received: list[bytes] = []
        self.collector = gevent.spawn(self._collect)
        if serves:
            generation.table.fill(slot, self.pid)

    def _collect(self) -> None:
        for payload in self.inbox:
            self.received.append(payload)

    def send(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.bus.publish(CHANNEL, payload, self.inbox)

    def wait_for(self, count: int) -> list[bytes]:
        """Wait for so many payloads."""
        wait_for(lambda: len(self.received) >= count, f"{count} messages; there are {len(self.received)}")
        return self.received

    def stop(self) -> None:
        self.bus.stop()
        self.collector.kill()
        for queue in self.outbox._queues[self.known_slots :]:
            if queue.end is not None:
                queue.end.close()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Let others run until the condition holds."""
    with gevent.Timeout(20, AssertionError(f"not within 20 s: {what}")):
        while not condition():
            gevent.sleep(0.001)


def options(**given: int) -> Options:
    return Options.from_environment({f"STICKY_SESSION_{name.upper()}": str(value) for name, value in given.items()})


@pytest.fixture
def generation() -> Iterator[Generation]:
    """A generation of three slots that can become eight."""
    generation = Generation(None, options(partitions=8), SLOTS, [])
    yield generation
    generation.close()


@pytest.fixture
def workers(generation: Generation) -> Iterator[list[Worker]]:
    """A worker in each slot; they don't read yet."""
    workers = [Worker(generation, slot) for slot in range(SLOTS)]
    yield workers
    for worker in workers:
        worker.stop()
    gevent.sleep(0)


def numbered(count: int, size: int = 0) -> list[bytes]:
    return [b"%08d" % number + b"x" * size for number in range(count)]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process has none left."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    # More than are open, so that it is the limit that is reached, and soon.
    highest = max(int(each) for each in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limit[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_everybody_else_gets_it(workers: list[Worker]) -> None:
    """What one sends arrives once at each of the others, and not at itself."""
    for worker in workers:
        worker.bus.start()
    workers[0].send(b"first", b"second")
    workers[1].send(b"third")
    assert workers[2].wait_for(3) == [b"first", b"second", b"third"]
    assert workers[1].wait_for(2) == [b"first", b"second"]
    assert workers[0].wait_for(1) == [b"third"]


def test_others_of_this_process_get_it(workers: list[Worker]) -> None:
    """Two who listen to one channel in one process hear each other, and one that has no inbox is heard by both."""
    second = workers[0].bus.listen(CHANNEL)
    workers[0].bus.publish(CHANNEL, b"from the first", workers[0].inbox)
    workers[0].bus.publish(CHANNEL, b"from outside")
    assert list(itertools.islice(second, 2)) == [b"from the first", b"from outside"]
    assert workers[0].wait_for(1) == [b"from outside"]


def test_channels_are_apart(workers: list[Worker]) -> None:
    """Who listens to one channel hears nothing of another."""
    workers[1].bus.start()
    workers[0].bus.publish("other", b"other")
    workers[0].bus.publish("te", b"shorter")
    workers[0].send(b"mine")
    assert workers[1].wait_for(1) == [b"mine"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    channel=st.text(st.characters(codec="utf-8"), max_size=60),
    sizes=st.lists(
        st.integers(0, 3000)
        | st.integers(busframe.INLINE_BYTES - 3, busframe.INLINE_BYTES + 3)
        | st.integers(busframe.INLINE_BYTES, 2_000_000),
        max_size=12,
    ),
    seed=st.binary(min_size=1, max_size=40),
)
def test_any_sizes(workers: list[Worker], channel: str, sizes: list[int], seed: bytes) -> None:
    """Messages of all sizes, in the frame and by memfd, arrive unchanged and in order; no descriptor is leaked."""
    sender, receiver = workers[0], workers[1]
    # An inbox of an example before, which nobody empties any more, would make it wait.
    receiver.bus._inboxes.clear()
    inbox = receiver.bus.listen(channel)
    payloads = [(seed * (size // len(seed) + 1))[:size] for size in sizes]
    receiver.bus.start()
    before = open_descriptors()
    for payload in payloads:
        sender.bus.publish(channel, payload)
    received = list(itertools.islice(inbox, len(sizes)))
    assert received == payloads
    wait_for(lambda: open_descriptors() <= before, "all descriptors are closed")
    receiver.bus.stop()


def test_largest(workers: list[Worker]) -> None:
    """64 MB arrive; one byte more is an error of the sender's that says what to do, and nothing is sent."""
    workers[1].bus.start()
    payload = bytes(busframe.MAX_MESSAGE_BYTES)
    with pytest.raises(ClusterError, match=r"of 67108865 bytes .* expected at most 67108864. Send it in parts"):
        workers[0].send(payload + b"x")
    workers[0].send(payload)
    assert workers[1].wait_for(1) == [payload]


def test_long_channel_name(workers: list[Worker]) -> None:
    """A name that has no room in a frame is refused."""
    with pytest.raises(ClusterError, match="at most 255 bytes"):
        workers[0].bus.publish("ä" * 128, b"")


def test_memfd_is_sealed(generation: Generation, workers: list[Worker]) -> None:
    """Nobody can change a payload while others read it."""
    message = Message(CHANNEL, bytes(busframe.INLINE_BYTES + 1))
    with contextlib.closing(message):
        message.send(generation.buses[1].sending_end, 1, workers[1].pid)
    _, descriptors, _ = handoff.receive_into(generation.buses[1].receiving_end, bytearray(1000))
    (descriptor,) = descriptors
    try:
        with pytest.raises(PermissionError):
            os.write(descriptor, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(descriptor)


def test_empty_slot_gets_nothing(generation: Generation, workers: list[Worker]) -> None:
    """Nothing is sent to a slot that nobody serves."""
    generation.table.vacate(1)
    workers[0].send(b"for nobody")
    assert generation.buses[1].is_empty
    assert not generation.buses[2].is_empty


def test_new_worker_begins_with_an_empty_bus(generation: Generation, workers: list[Worker]) -> None:
    """What was meant for the predecessor, in the channel and in senders' queues, is none of the successor's."""
    sender = workers[0]
    sender.send(*numbered(2000), bytes(busframe.INLINE_BYTES + 1))
    generation.table.vacate(1)
    successor = Worker(generation, 1, pid=2001)
    successor.bus.start()
    sender.send(b"for the new one")
    assert successor.wait_for(1) == [b"for the new one"]
    successor.stop()


def test_queue_is_given_up_when_the_slot_is_vacated(generation: Generation, workers: list[Worker]) -> None:
    """A queue for a worker that has gone is discarded when its channel has room, though nobody sends any more."""
    sender = workers[0]
    sender.send(*numbered(2000))
    generation.table.vacate(1)
    successor = Worker(generation, 1, pid=2001, serves=False)
    successor.bus.start()
    wait_for(lambda: not sender.outbox._queues[1], "the queue is empty")
    wait_for(lambda: generation.buses[1].is_empty, "the channel is empty")
    assert successor.received == []
    successor.stop()


def test_nobody_is_far_behind_in_an_empty_slot(
    generation: Generation, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was queued for a worker that has been killed slows nobody, and is kept no longer, if none comes after it."""
    monkeypatch.setattr(busoutbox, "QUEUE_MESSAGES", 1000)
    monkeypatch.setattr(busoutbox, "LOOK_SECONDS", 0.01)
    workers[0].send(*numbered(5000))
    assert workers[0].bus.is_crowded()
    generation.table.vacate(1)
    generation.table.vacate(2)
    queues = workers[0].outbox._queues
    wait_for(lambda: not any(queues), "empty queues")
    generation.table.fill(1, pid_of(1))
    workers[0].send(*numbered(5000))
    assert workers[0].bus.is_crowded()
    generation.table.vacate(1)
    assert not workers[0].bus.is_crowded()


def test_in_turn(workers: list[Worker]) -> None:
    """What somebody has sent by a worker that left isn't overtaken by what he sends then by another."""
    payloads = numbered(3 * bus.BURST)
    leaving, other = workers[:2]
    for payload in payloads:
        leaving.bus.publish(CHANNEL, payload)
    leaving.bus.stop()
    other.bus.start()
    other.bus.publish(CHANNEL, b"next", in_turn=True)
    assert other.wait_for(len(payloads) + 1) == [*payloads, b"next"]


def test_in_turn_while_nobody_reads(generation: Generation, workers: list[Worker]) -> None:
    """A worker that leaves has nothing to wait for."""
    workers[0].bus.start()
    workers[0].bus.stop()
    generation.table.vacate(0)
    workers[1].bus.start()
    workers[0].bus.publish(CHANNEL, b"x", in_turn=True)
    assert workers[0].wait_for(1) == workers[1].wait_for(1) == [b"x"]


def test_who_leaves_can_wait_for_its_queue(generation: Generation, workers: list[Worker]) -> None:
    """A worker knows whether somebody who is still there has not been sent everything."""
    assert not workers[0].bus.is_sending()
    workers[0].send(*numbered(5000))
    assert workers[0].bus.is_sending()
    workers[1].bus.start()
    generation.table.vacate(2)
    wait_for(lambda: not workers[0].bus.is_sending(), "the queue is empty")
    assert workers[1].wait_for(5000) == numbered(5000)


def test_who_leaves_does_not_wait_for_slots_that_it_never_reaches(
    generation: Generation, workers: list[Worker]
) -> None:
    """Nobody brings the end of a newer slot's channel to a worker that has left."""
    workers[0].bus.stop()
    generation.grow(SLOTS + 1)
    newer = Worker(generation, SLOTS)
    generation.table.vacate(1)
    generation.table.vacate(2)
    workers[0].send(b"x")
    assert workers[0].outbox._queues[SLOTS]
    assert not workers[0].bus.is_sending()
    newer.stop()


def test_order_of_what_had_to_wait(workers: list[Worker]) -> None:
    """What didn't fit into the channel at once comes after it, in order, and what is sent meanwhile after that."""
    payloads = numbered(5000, 200)
    workers[0].send(*payloads[:3000])
    workers[1].bus.start()
    for payload in payloads[3000:]:
        workers[0].send(payload)
        gevent.sleep(0)
    assert workers[1].wait_for(5000) == payloads
    assert workers[0].log.warnings == []


def test_sending_to_a_stopped_worker_does_not_hinder_others(workers: list[Worker]) -> None:
    """While one slot's channel is full and its queue overflows, the others get all at once."""
    payloads = numbered(3000, 1000)
    workers[2].bus.start()
    for payload in payloads:
        workers[0].send(payload)
        gevent.sleep(0)
    assert workers[2].wait_for(3000) == payloads


def test_oldest_are_dropped(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many messages the newest are kept; those dropped are counted, and a line of the log says so once."""
    monkeypatch.setattr(busoutbox, "QUEUE_MESSAGES", 10)
    sender, receiver = workers[0], workers[1]
    payloads = numbered(5000)
    sender.send(*payloads)
    held = 5000 - 10 - sender.outbox._dropped[1]
    wait_for(lambda: sender.log.metrics, "the metric")
    assert len(sender.log.warnings) == 2, "one line for each of the two slots"
    assert f"{4990 - held} messages to the worker of slot 1 (pid:{receiver.pid}) were dropped" in sender.log.warnings[0]
    assert sender.log.metrics == [
        {"metric": "sticky_session.bus_dropped", "value": 2 * (4990 - held), "mtype": "counter"}
    ]
    receiver.bus.start()
    assert receiver.wait_for(held + 10) == payloads[:held] + payloads[-10:]


def test_dropped_messages_are_reported_now_and_then(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """While messages go on being dropped a line comes once a minute, and after a quiet one the next drop is told."""
    monkeypatch.setattr(busoutbox, "QUEUE_MESSAGES", 1)
    monkeypatch.setattr(busoutbox, "LOG_SECONDS", 0.02)
    monkeypatch.setattr(busoutbox, "METRIC_SECONDS", 0.01)
    sender = workers[0]
    for number in range(1, 4):
        sender.send(*numbered(2000))
        wait_for(lambda number=number: len(sender.log.warnings) == 2 * number, "a line for each slot")  # type: ignore[misc]
    wait_for(lambda: sender.outbox._teller is None, "the quiet minute")
    sender.send(*numbered(5))
    wait_for(lambda: len(sender.log.warnings) == 8, "a line for each slot")
    assert sum(metric["value"] for metric in sender.log.metrics) >= 2000


def test_crowded(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is dropped, who can wait is told to."""
    monkeypatch.setattr(busoutbox, "QUEUE_MESSAGES", 1000)
    while not workers[0].bus.is_crowded():
        workers[0].send(b"x")
    assert not workers[0].log.warnings
    assert not workers[0].outbox._dropped
    for worker in workers[1:]:
        worker.bus.start()
    wait_for(lambda: not workers[0].bus.is_crowded(), "others are no longer far behind")


def test_queue_is_bounded_by_bytes(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """However large messages are, only so many bytes are kept for a slot."""
    monkeypatch.setattr(busoutbox, "QUEUE_BYTES", 1_000_000)
    sender = workers[0]
    sender.send(*numbered(1000, 10_000))
    assert 90 < len(sender.outbox._queues[1]) <= 100


def test_channel_holds_little_of_large_payloads(generation: Generation, workers: list[Worker]) -> None:
    """Though memfds are not counted by the kernel, a channel that nobody reads is full after some of them."""
    sender = workers[0]
    generation.table.vacate(2)
    payload = bytes(4_000_000)
    for _ in range(100):
        sender.send(payload)
        if sender.outbox._queues[1]:
            break
    held = 0
    while not generation.buses[1].is_empty:
        _, descriptors, _ = handoff.receive_into(generation.buses[1].receiving_end, bytearray(1000))
        os.close(descriptors[0])
        held += len(payload)
    assert held < 2.5 * busframe.MAX_MESSAGE_BYTES


def test_no_descriptors_left(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """A large message that no memfd can be made for waits, and is sent when one can."""
    payload = bytes(busframe.INLINE_BYTES + 1)
    make = os.memfd_create
    failures = iter([OSError(24, "Too many open files")] * 3)

    def fail(*args: Any) -> int:
        for failure in failures:
            raise failure
        return make(*args)

    monkeypatch.setattr(os, "memfd_create", fail)
    for worker in workers[1:]:
        worker.bus.start()
    workers[0].send(payload, b"after it")
    for worker in workers[1:]:
        assert worker.wait_for(2) == [payload, b"after it"]


def test_no_descriptors_left_for_what_comes(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what comes the large is lost then; it is counted, and that is said now and then."""
    monkeypatch.setattr(bus, "LOG_SECONDS", 0.01)
    for worker in workers[:2]:
        worker.bus.start()
    large = bytes(busframe.INLINE_BYTES + 1)
    # Made before, as there is no descriptor for it either.
    messages = [Message(CHANNEL, payload) for payload in (large, b"small", large)]
    for message in (messages[0], messages[2]):
        message._descriptor = busframe._sealed(large)
    with no_descriptors():
        for message in messages:
            message.send(workers[1].seat.generation.buses[1].sending_end, 1, workers[1].pid)
        assert workers[1].wait_for(1) == [b"small"]
        wait_for(lambda: sum(each["value"] for each in workers[1].log.metrics) == 2, "both losses")
    for message in messages:
        message.close()
    assert {each["metric"] for each in workers[1].log.metrics} == {"sticky_session.bus_dropped"}
    assert "raise ulimit -n" in workers[1].log.errors[0]
    workers[0].send(large)
    assert workers[1].wait_for(2)[1] == large


def test_busy_app_is_not_flooded(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """While the app doesn't take its messages the bus is not read, so that senders keep and bound them."""
    monkeypatch.setattr(bus, "INBOX_BYTES", 10_000)
    payloads = numbered(3000, 1000)
    workers[1].collector.kill()
    workers[1].bus.start()
    workers[0].send(*payloads)
    for _ in range(100):
        gevent.sleep(0)
    assert workers[1].inbox._bytes <= 10_000 + 1008
    assert list(itertools.islice(workers[1].inbox, 3000)) == payloads


def test_stopped_bus_is_not_read(generation: Generation, workers: list[Worker]) -> None:
    """Once a worker is about to leave its slot it takes nothing more out of the channel."""
    for worker in workers:
        worker.bus.start()
    workers[0].send(b"before")
    workers[1].wait_for(1)
    workers[1].bus.stop()
    workers[0].send(b"after")
    workers[2].wait_for(2)
    assert workers[1].received == [b"before"]
    assert not generation.buses[1].is_empty


def test_native_thread(workers: list[Worker]) -> None:
    """Any thread may send, and what it sends keeps its order."""
    workers[1].bus.start()
    payloads = numbered(500)
    thread = threading.Thread(target=workers[0].send, args=payloads)
    thread.start()
    assert workers[1].wait_for(500) == payloads
    thread.join()


def test_many_writers(generation: Generation) -> None:
    """Four processes write to one slot as fast as they can: it gets all from each, in order, small and large."""
    reader = Worker(generation, 0)
    generation.grow(5)
    children = []
    for slot in range(1, 5):
        pid = os.fork()
        if pid == 0:
            try:
                gevent.reinit()
                writer = Bus(Seat(slot, generation, -1), os.getpid(), Log())
                for number in range(2000):
                    writer.publish(CHANNEL, b"%d %d " % (slot, number) + bytes(200_000 if number % 500 == 7 else 10))
                    if number % 50 == 0:
                        gevent.sleep(0)
                while writer._outbox._queues[0]:
                    gevent.sleep(0.001)
            finally:
                os._exit(0)
        children.append(pid)
    reader.bus.start()
    received = reader.wait_for(8000)
    for pid in children:
        os.waitpid(pid, 0)
    for slot in range(1, 5):
        own = [payload for payload in received if payload.startswith(b"%d " % slot)]
        assert [int(payload.split()[1]) for payload in own] == list(range(2000))
    reader.stop()


def test_forked_process_leaves_messages_alone(workers: list[Worker]) -> None:
    """A process that the app forks takes none of its parent's messages."""
    workers[1].bus.start()
    gevent.sleep(0)
    pid = os.fork()
    if pid == 0:
        with gevent.Timeout(5, False):
            gevent.reinit()
            while True:
                gevent.sleep(0.001)
        os._exit(len(workers[1].received))
    payloads = numbered(300)
    for payload in payloads:
        workers[0].send(payload)
        gevent.sleep(0)
    assert workers[1].wait_for(300) == payloads
    os.kill(pid, 9)
    os.waitpid(pid, 0)


# --- slots that come later


@pytest.mark.usefixtures("_no_collection")
def test_newer_slot(generation: Generation, workers: list[Worker]) -> None:
    """A worker gets the ends of newer slots, keeps what it has for them until then, and leaks no descriptor."""
    older = workers[0]
    generation.grow(SLOTS + 2)
    newer = [Worker(generation, slot) for slot in (SLOTS, SLOTS + 1)]
    for worker in newer:
        worker.bus.start()
    older.send(b"one", bytes(busframe.INLINE_BYTES + 1))
    gevent.sleep(0)
    assert [worker.received for worker in newer] == [[], []]
    before = open_descriptors()
    for _ in range(3):
        introduce(generation, older.seat, older.pid)
    older.bus.start()
    older.send(b"two")
    for worker in newer:
        assert worker.wait_for(3) == [b"one", bytes(busframe.INLINE_BYTES + 1), b"two"]
    assert open_descriptors() == before + 2
    assert older.seat.known_slots == SLOTS + 2
    for worker in newer:
        worker.stop()


def test_newer_slot_without_descriptors(generation: Generation, workers: list[Worker]) -> None:
    """An end that finds no descriptor is sent again, until it does; nothing is lost."""
    older = workers[0]
    older.bus.start()
    generation.grow(SLOTS + 2)
    newer = [Worker(generation, slot) for slot in (SLOTS, SLOTS + 1)]
    for worker in newer:
        worker.bus.start()
    older.send(b"one")
    before = open_descriptors()
    with no_descriptors():
        for _ in range(3):
            introduce(generation, older.seat, older.pid)
            wait_for(lambda: generation.buses[0].is_empty, "the end of reading")
    assert len(older.log.errors) == 1
    assert "raise ulimit -n" in older.log.errors[0]
    introduce(generation, older.seat, older.pid)
    introduce(generation, older.seat, older.pid)
    for worker in newer:
        assert worker.wait_for(1) == [b"one"]
    assert open_descriptors() == before + 2
    for worker in newer:
        worker.stop()


def test_newer_slot_while_the_bus_is_full(generation: Generation, workers: list[Worker]) -> None:
    """An end for which there is no room is passed on later."""
    older = workers[0]
    workers[1].send(*numbered(5000))
    generation.grow(SLOTS + 1)
    introduce(generation, older.seat, older.pid)
    assert older.seat.known_slots == SLOTS
    older.bus.start()
    older.wait_for(5000)
    introduce(generation, older.seat, older.pid)
    assert older.seat.known_slots == SLOTS + 1
    wait_for(lambda: older.outbox._queues[SLOTS:] and older.outbox._queues[SLOTS].end, "the end")


def test_end_never_waits(generation: Generation, workers: list[Worker]) -> None:
    """Sending to a newer slot doesn't wait, though an app has called socket.setdefaulttimeout()."""
    older = workers[0]
    generation.grow(SLOTS + 1)
    newer = Worker(generation, SLOTS)
    introduce(generation, older.seat, older.pid)
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.001)
    try:
        older.bus.start()
        wait_for(lambda: older.outbox._queues[SLOTS:] and older.outbox._queues[SLOTS].end, "the end")
    finally:
        socket.setdefaulttimeout(former)
    older.send(*numbered(5000))
    assert len(older.outbox._queues[SLOTS]) > 0
    newer.bus.start()
    assert newer.wait_for(5000) == numbered(5000)
    newer.stop()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("addressee", ["other", "twice"])
def test_end_that_is_not_wanted(generation: Generation, workers: list[Worker], addressee: str) -> None:
    """An end for another worker, or that is known, is closed."""
    worker = workers[0]
    before = open_descriptors()
    for _ in range(5):
        pid = worker.pid if addressee == "twice" else 4242
        assert send_end(generation.buses[0], pid, 1, generation.buses[1].sending_end)
    worker.bus.start()
    wait_for(lambda: generation.buses[0].is_empty, "all have been taken")
    assert open_descriptors() == before
    assert len(worker.outbox._queues) == SLOTS


def test_no_bus() -> None:
    """Where the option is off there are no channels for it."""
    generation = Generation(None, options(bus=0), SLOTS, [])
    assert generation.buses == []
    assert len(generation.channels) == SLOTS
    introduce(generation, Seat(0, generation, -1), 1)
    generation.close()


def test_inbox_in_order() -> None:
    """An inbox gives out what was put in, in order."""
    inbox = Inbox()
    payloads = numbered(10)
    for payload in payloads:
        inbox.put(payload)
    assert list(itertools.islice(inbox, 10)) == payloads


def test_inbox_of_an_idle_listener() -> None:
    """Who waits gets everything in order, from the hub and from others."""
    inbox, received = Inbox(), []

    def listen() -> None:
        for payload in inbox:
            received.append(payload)
            if payload == b"2":
                gevent.sleep(0)

    def give() -> None:
        inbox.give(b"1")
        assert received == [b"0", b"1"]
        for payload in (b"2", b"3", b"4"):
            inbox.give(payload)

    listener = gevent.spawn(listen)
    gevent.sleep(0)
    inbox.put(b"0")
    assert received == []
    gevent.get_hub().loop.run_callback(give)
    wait_for(lambda: len(received) == 5, "five payloads")
    assert received == [b"%d" % number for number in range(5)]
    listener.kill()


def test_listener_that_waits(workers: list[Worker]) -> None:
    """While one listener of a process is busy with a message the others go on hearing theirs, and it misses none."""
    other = workers[1].bus.listen("other")
    go_on = gevent.event.Event()
    heard = []

    def listen() -> None:
        for payload in other:
            go_on.wait()
            heard.append(payload)

    listener = gevent.spawn(listen)
    workers[1].bus.start()
    workers[0].bus.publish("other", b"first")
    workers[0].bus.publish("other", b"second")
    workers[0].send(b"for the first listener")
    assert workers[1].wait_for(1) == [b"for the first listener"]
    assert heard == []
    go_on.set()
    wait_for(lambda: len(heard) == 2, "both messages")
    assert heard == [b"first", b"second"]
    listener.kill()


def test_listener_that_stops_the_bus(workers: list[Worker]) -> None:
    """The bus may be stopped by who deals with a message; what comes after it stays in the channel."""
    inbox = workers[1].bus.listen("other")

    def listen() -> None:
        for _ in inbox:
            workers[1].bus.stop()

    listener = gevent.spawn(listen)
    for worker in workers:
        worker.bus.start()
    gevent.sleep(0)
    workers[0].bus.publish("other", b"the end")
    workers[0].send(b"after it")
    wait_for(lambda: workers[1].bus._watcher is None, "the end of reading")
    workers[2].wait_for(1)
    assert not workers[1].seat.generation.buses[1].is_empty
    assert workers[1].received == []
    listener.kill()


def test_arbiter_that_is_gone(generation: Generation, workers: list[Worker]) -> None:
    """A channel whose other end nobody has is read no more."""
    workers[1].bus.start()
    generation.buses[1].sending_end.close()
    # Sockets of a closed channel are always ready, and would be looked at again and again.
    wait_for(lambda: workers[1].bus._watcher is None, "the end of reading")


def test_effects_come_after_their_causes(workers: list[Worker]) -> None:
    """What a listener says about a message is heard after that, by its own process's others and by other workers."""
    second = workers[1].bus.listen(CHANNEL)
    heard = []

    def answer() -> None:
        for payload in second:
            heard.append(payload)
            workers[1].bus.publish(CHANNEL, b"about " + payload, second)

    listener = gevent.spawn(answer)
    for worker in workers:
        worker.bus.start()
    gevent.sleep(0)
    workers[0].send(b"one")
    assert workers[1].wait_for(2) == [b"one", b"about one"]
    thread = threading.Thread(target=workers[1].send, args=(b"two",))
    thread.start()
    assert workers[2].wait_for(4)[2:] == [b"two", b"about two"]
    thread.join()
    assert heard == [b"one", b"two"]
    listener.kill()


@pytest.mark.parametrize("log_fails", [False, True])
def test_message_that_cannot_be_taken(
    workers: list[Worker], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, log_fails: bool
) -> None:
    """Where taking a message fails that is logged, and those after it are taken, even if logging fails."""
    take = busframe.Frame.payload
    failures = iter([MemoryError("no room")])

    def fail(frame: busframe.Frame) -> bytes:
        for failure in failures:
            raise failure
        return take(frame)

    monkeypatch.setattr(busframe.Frame, "payload", fail)
    if log_fails:
        monkeypatch.setattr(workers[1].log, "error", time_out)
    workers[1].bus.start()
    workers[0].send(*numbered(3))
    assert workers[1].wait_for(2) == numbered(3)[1:]
    told = ["Taking a broadcast from the bus failed, and it may be lost (no room)"]
    assert workers[1].log.errors == ([] if log_fails else told)
    assert ("no time" in capsys.readouterr().err) == log_fails


def time_out(*_: object, **__: object) -> None:
    raise TimeoutError("no time")
