"""Slots: channels, the shared table, and what happens to frames that nobody reads."""

from __future__ import annotations

import _socket
import contextlib
import mmap
import os
import select
import socket
import time
from collections.abc import Iterator
from socket import AF_UNIX, SOCK_SEQPACKET

import pytest

from sticky_session import handoff
from sticky_session.config import Options
from sticky_session.generation import Generation, Seat
from sticky_session.slots import Channel, Table, pour, wake


def options(partitions: int) -> Options:
    """The defaults, but for the number of partitions."""
    return Options.from_environment({"STICKY_SESSION_PARTITIONS": str(partitions)})


@pytest.fixture
def table() -> Iterator[Table]:
    """A table with room for four slots."""
    table = Table(4)
    yield table
    table.close()


@pytest.fixture
def generation() -> Iterator[Generation]:
    """A generation of two slots that can become four."""
    generation = Generation(None, options(4), 2, [])
    yield generation
    generation.close()


@pytest.fixture
def doorbell() -> Iterator[tuple[int, int]]:
    """A pipe as the arbiter has it."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    yield ends
    for end in ends:
        os.close(end)


def in_child(action: object) -> int:
    """Run ``action`` in a forked process, and return its pid when it has ended."""
    pid = os.fork()
    if pid == 0:
        try:
            action()  # type: ignore[operator]
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def frames(channel: Channel) -> list[int]:
    """The binds of the frames in a channel, taken out of it."""
    receiver = handoff.Receiver(channel.receiving_end)
    binds = []
    while True:
        try:
            frame = receiver.receive()
        except BlockingIOError:
            return binds
        assert frame is not None
        os.close(frame.descriptor)
        binds.append(frame.bind)


def put(channel: Channel, bind: int) -> None:
    """Send a frame with a descriptor of /dev/null."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        handoff.send(channel.sending_end, handoff.encode(bind), descriptor)
    finally:
        os.close(descriptor)


def fill(channel: Channel) -> None:
    """Send frames until the channel takes no more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            put(channel, 0)


# --- the table


def test_admission(table: Table) -> None:
    """Workers see at once whether they may accept, and can wait for it."""

    def can_be_read() -> bool:
        return bool(select.select([table.admission], [], [], 0)[0])

    for admits in (False, True, True, False, True):
        table.set_admits(admits)
        assert (table.admits, can_be_read()) == (admits, admits)


def test_table_begins_empty(table: Table) -> None:
    """In the beginning no slot is held, and no listener has been heard of."""
    assert [table.holder(slot) for slot in range(4)] == [0] * 4
    assert [table.last_holder(slot) for slot in range(4)] == [0] * 4
    assert table.last_beat == 0


def test_fill_and_vacate(table: Table) -> None:
    """A slot is held from fill to vacate; who held it last is remembered; other slots are as they were."""
    table.fill(2, 1234)
    assert (table.holder(2), table.last_holder(2)) == (1234, 1234)
    before = time.monotonic()
    table.vacate(2)
    assert (table.holder(2), table.last_holder(2)) == (0, 1234)
    assert before <= table.empty_since(2) <= time.monotonic()
    assert [table.holder(slot) for slot in (0, 1, 3)] == [0] * 3
    assert [table.last_holder(slot) for slot in (0, 1, 3)] == [0] * 3


def test_vacate_of_somebody_else(table: Table) -> None:
    """The end of a worker that has been replaced does not empty its successor's slot."""
    table.fill(0, 1)
    table.fill(0, 2)
    table.vacate(0, 1)
    assert table.holder(0) == 2
    table.vacate(0, 2)
    assert table.holder(0) == 0


def test_table_is_shared(table: Table) -> None:
    """What a forked child writes, its parent reads, also when the child is gone."""
    pid = in_child(lambda: (table.fill(3, os.getpid()), table.beat()))
    assert table.holder(3) == pid
    assert 0 < table.last_beat <= time.monotonic()


def test_largest_pid(table: Table) -> None:
    """A cell takes any process id that Linux can have."""
    table.fill(1, 2**22)
    assert table.holder(1) == 2**22


def test_last_closed(table: Table) -> None:
    """The arbiter learns which listener accepts no more."""
    assert table.last_closed == 0
    table.note_closed(1234)
    assert table.last_closed == 1234
    assert table.last_beat == 0


def test_boot_report(table: Table) -> None:
    """Of all workers that can't boot, one reports why."""
    in_child(table.boot_report.take)
    assert not table.boot_report.take()


def test_boot_report_first(table: Table) -> None:
    """The first one does."""
    assert table.boot_report.take()


def test_boot_report_again(table: Table) -> None:
    """After a worker has booted, however many did, one more report is made, and only one."""
    assert table.boot_report.take()
    table.boot_report.renew()
    table.boot_report.renew()
    assert table.boot_report.take()
    assert not table.boot_report.take()


def test_table_gives_memory_back() -> None:
    """A closed table leaves no view on its memory behind, which would keep it mapped."""
    table = Table(4)
    memory = table._memory
    table.close()
    memory.close()
    assert isinstance(memory, mmap.mmap)
    assert memory.closed


# --- generations


def test_generation(generation: Generation) -> None:
    """A generation has a channel for each slot, and is filled once each has a worker."""
    assert len(generation.channels) == 2
    assert not generation.is_filled(2)
    generation.table.fill(0, 1)
    assert not generation.is_filled(2)
    assert generation.is_filled(1)
    generation.table.fill(1, 2)
    assert generation.is_filled(2)


def test_grow(generation: Generation) -> None:
    """Growing keeps the channels that there are; new slots are empty since now; it never shrinks."""
    channels = list(generation.channels)
    before = time.monotonic()
    generation.grow(4)
    generation.grow(1)
    assert generation.channels[:2] == channels
    assert len(generation.channels) == 4
    assert generation.table.empty_since(3) >= before


@pytest.mark.usefixtures("_no_collection")
def test_close_generation() -> None:
    """Closing gives every descriptor back."""
    before = set(os.listdir("/proc/self/fd"))
    generation = Generation(None, options(8), 8, [])
    assert len(os.listdir("/proc/self/fd")) >= len(before) + 16
    generation.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_channels_are_not_inherited(generation: Generation) -> None:
    """No program that an app starts gets a channel."""
    for channel in generation.channels:
        assert not os.get_inheritable(channel.sending_end.fileno())
        assert not os.get_inheritable(channel.receiving_end.fileno())


# --- seats


def test_seat(generation: Generation, doorbell: tuple[int, int]) -> None:
    """A worker takes its slot and leaves it, and the arbiter is woken each time."""
    seat = Seat(1, generation, doorbell[1])
    pid = in_child(seat.take)
    assert generation.table.holder(1) == pid
    assert os.read(doorbell[0], 10) == b"!"
    seat.leave()
    assert generation.table.holder(1) == pid, "only the holder itself can leave"
    in_child(lambda: (seat.take(), seat.leave()))
    assert generation.table.holder(1) == 0
    assert os.read(doorbell[0], 10) == b"!!!"


def test_close_others(generation: Generation, doorbell: tuple[int, int]) -> None:
    """A worker keeps the receiving end of its own channel alone, and what it needs to send to the others."""
    Seat(1, generation, doorbell[1]).close_others()
    ends = [end.fileno() for channel in generation.channels for end in (channel.sending_end, channel.receiving_end)]
    assert [end >= 0 for end in ends] == [True, False, True, True]
    returns = generation.returns
    assert (returns.sending_end.fileno() >= 0, returns.receiving_end.fileno() >= 0) == (True, False)


def test_full_doorbell(doorbell: tuple[int, int]) -> None:
    """A doorbell that nobody answers never makes a worker wait or fail."""
    for _ in range(70_000):
        wake(doorbell[1])
    assert len(os.read(doorbell[0], 100_000)) > 1000


def test_doorbell_of_dead_arbiter() -> None:
    """A doorbell whose arbiter is gone is no error; a descriptor that is none is one."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    wake(write_end)
    os.close(write_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        wake(write_end)


# --- pouring


def test_pour() -> None:
    """Every frame left in a channel gets to the channel that the route names, in order."""
    generation = Generation(None, options(3), 3, [])
    source, *targets = generation.channels
    for bind in range(7):
        put(source, bind)
    assert pour(source, targets, lambda frame: (frame.bind % 2, frame.bind)) == 0
    assert [frames(target) for target in targets] == [[0, 2, 4, 6], [1, 3, 5]]
    assert frames(source) == []
    generation.close()


def test_pour_keeps_address_and_data() -> None:
    """A poured frame is the same frame."""
    generation = Generation(None, options(2), 2, [])
    source, target = generation.channels
    for given in ((7, ("192.0.2.1", 99), b"GET / ", None), (7, None, b"GET / ", "192.0.2.1")):
        with open(os.devnull) as null:
            handoff.send(source.sending_end, handoff.encode(*given), null.fileno())
        assert pour(source, [target], lambda frame: (0, frame.bind)) == 0
        frame = handoff.Receiver(target.receiving_end).receive()
        assert frame is not None
        assert frame[1:] == given
        os.close(frame.descriptor)
    generation.close()


@pytest.mark.usefixtures("_no_collection")
def test_pour_into_full_channel() -> None:
    """What finds no room goes back and is poured when there is; nothing is lost, and no descriptor is left open."""
    generation = Generation(None, options(2), 2, [])
    source, target = generation.channels
    fill(target)
    for bind in range(1, 4):
        put(source, bind)
    before = set(os.listdir("/proc/self/fd"))
    assert pour(source, [target], lambda frame: (0, frame.bind)) == 0
    assert not source.is_empty
    assert set(frames(target)) == {0}
    assert pour(source, [target], lambda frame: (0, frame.bind)) == 0
    assert source.is_empty
    assert sorted(frames(target)) == [1, 2, 3]
    assert set(os.listdir("/proc/self/fd")) == before
    generation.close()


@pytest.mark.usefixtures("_no_collection")
def test_pour_while_others_send() -> None:
    """Both channels are full, and the place of what has been taken out is taken at once: that one is lost, no more."""
    generation = Generation(None, options(2), 2, [])
    source, target = generation.channels
    fill(target)
    fill(source)
    before = set(os.listdir("/proc/self/fd"))

    def route(frame: handoff.Frame) -> tuple[int, int]:
        fill(source)
        return 0, frame.bind

    assert pour(source, [target], route) == 1
    assert set(os.listdir("/proc/self/fd")) == before
    generation.close()


def test_is_empty(generation: Generation) -> None:
    """Looking whether a channel is empty takes nothing out of it."""
    channel = generation.channels[0]
    assert channel.is_empty
    put(channel, 5)
    assert not channel.is_empty
    assert not channel.is_empty
    assert frames(channel) == [5]
    assert channel.is_empty


def test_channel_never_waits() -> None:
    """Not even where an app has called socket.setdefaulttimeout()."""
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.001)
    try:
        channel = Channel()
    finally:
        socket.setdefaulttimeout(former)
    try:
        assert channel.is_empty
        with contextlib.suppress(BlockingIOError):
            while True:
                handoff.send(channel.sending_end, b"x", 0)
    finally:
        channel.close()


def test_channel_keeps_message_boundaries() -> None:
    """A channel carries whole messages: a frame is never received in two pieces."""
    channel = Channel()
    assert isinstance(channel.receiving_end, _socket.socket)
    assert channel.receiving_end.family == AF_UNIX
    assert channel.receiving_end.type == SOCK_SEQPACKET
    channel.close()
