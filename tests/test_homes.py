"""Re-homing without processes: where requests belong."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session.config import Options
from sticky_session.forwarded import ClientHeader
from sticky_session.generation import Seat
from sticky_session.handoff import Receiver
from sticky_session.head import AddressFinder, Verdict
from sticky_session.identify import MAX_HEAD_BYTES
from sticky_session.rehoming import MAX_KNOWN, Homes, host_of, no_room
from sticky_session.request import Head, Limits, parse
from sticky_session.ring import Ring
from sticky_session.slots import Channel, Table

WORKERS = 4
PEER = ("127.0.0.1", 4711)
LIMITS = Limits(4094, 100, 8190)


# --- where requests belong


class Place:
    """A worker's seat, without any process.

    :param slots: how many channels the worker knows
    """

    def __init__(self, slots: int = WORKERS, slot: int = 0, **options: Any) -> None:
        self.options = Options.collect(lambda option: (options.get(option.name, option.default), option.name))
        self.table = Table(64)
        self.channels = [Channel() for _ in range(slots)]
        self.returns = Channel()
        self.bell, doorbell = os.pipe()
        os.set_blocking(self.bell, False)
        os.set_blocking(doorbell, False)
        self._doorbell = doorbell
        generation: Any = SimpleNamespace(
            buses=[], table=self.table, channels=list(self.channels), returns=self.returns, options=self.options
        )
        self.homes = Homes(Seat(slot, generation, doorbell), self.options.header())

    def rung(self) -> bool:
        """Whether the arbiter has been woken since the last call."""
        try:
            return bool(os.read(self.bell, 100))
        except BlockingIOError:
            return False

    def close(self) -> None:
        for channel in (*self.channels, self.returns):
            channel.close()
        self.table.close()
        os.close(self.bell)
        os.close(self._doorbell)


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    place.table.set_ring(WORKERS)
    yield place
    place.close()


def head_of(*values: str, name: str = "X-Forwarded-For") -> Head:
    fields = "".join(f"\r\n{name}: {value}" for value in values)
    return parse(f"GET / HTTP/1.1\r\nHost: test{fields}", LIMITS)


def slot_of(client: str, workers: int = WORKERS) -> int:
    return Ring(workers).slot(socket.inet_aton(client))


def test_targets(place: Place) -> None:
    """The header's client, or the peer where it names none."""
    for number in range(40):
        client = f"192.0.2.{number}"
        for _ in range(2):
            assert place.homes.target(head_of(client), PEER) == slot_of(client)
        assert place.homes.target(head_of("", f"{client}, 192.0.2.99"), PEER) == slot_of(client)
        assert place.homes.target(head_of("unknown"), (client, 1)) == slot_of(client)
        assert place.homes.target(head_of(), (client, 1)) == slot_of(client)
    assert place.homes.target(head_of(), "") == Ring(WORKERS).slot(b"")
    assert (host_of(PEER), host_of("")) == ("127.0.0.1", "")


def test_ring_that_changes(place: Place) -> None:
    """Other numbers of workers, and slots that others stand in for, count from the next request on."""
    clients = [f"192.0.2.{number}" for number in range(40)]

    def targets() -> list[int]:
        return [place.homes.target(head_of(client), PEER) for client in clients]

    assert targets() == [slot_of(client) for client in clients]
    place.table.set_ring(5)
    assert targets() == [slot_of(client, 5) for client in clients]
    place.table.set_failed({1, 2}, 5)
    keys = [socket.inet_aton(client) for client in clients]
    assert targets() == [Ring(5).slot_without(key, {1, 2}) for key in keys]
    place.table.set_failed((), 5)
    place.table.set_ring(WORKERS)
    assert targets() == [slot_of(client) for client in clients]


def test_no_ring_yet() -> None:
    """Before any listener was ready everything stays."""
    place = Place(slot=3)
    assert place.homes.target(head_of("192.0.2.1"), PEER) == 3
    place.close()


def test_masks_and_seed() -> None:
    """The ring's options count here as in the listener."""
    place = Place(ipv4_prefix=24, seed=7, partitions=16)
    place.table.set_ring(3)
    ring = Ring(3, 16, 7)
    for number in range(30):
        expected = ring.slot(socket.inet_aton(f"192.0.{number}.0"))
        assert place.homes.target(head_of(f"192.0.{number}.77"), PEER) == expected
    place.close()


def test_memory_is_bounded(place: Place) -> None:
    """Clients may send as many different headers as they like, and long ones."""
    for number in range(MAX_KNOWN + 100):
        client = f"10.0.{number >> 8}.{number & 255}"
        assert place.homes.target(head_of(client), PEER) == slot_of(client)
        assert place.homes.target(head_of(f"{client}, {'x' * 100}"), PEER) == slot_of(client)
        assert place.homes.target(head_of(), (client, 1)) == slot_of(client)
    known = place.homes._known
    assert len(known) <= MAX_KNOWN
    assert len(place.homes._peers) <= MAX_KNOWN
    assert max(map(len, known)) <= 64


def test_peers_are_remembered(place: Place) -> None:
    """One that has said nothing, until addresses move; it is not taken for a header that says the same."""
    peer = ("192.0.2.1", 1)
    other = next(
        client for client in (f"192.0.2.{number}" for number in range(9)) if slot_of(client) != slot_of(peer[0])
    )
    for workers in (WORKERS, 5):
        place.table.set_ring(workers)
        for _ in range(2):
            assert place.homes.target(head_of(), peer) == slot_of(peer[0], workers)
            assert place.homes.target(head_of(""), peer) == slot_of(peer[0], workers)
    second = Place(client_hop="2")
    second.table.set_ring(WORKERS)
    assert second.homes.target(head_of(), peer) == slot_of(peer[0])
    # There is no second entry, so the peer counts, and that is another one.
    assert second.homes.target(head_of(peer[0]), (other, 1)) == slot_of(other)
    second.close()


ENTRIES = st.one_of(
    st.sampled_from(["192.0.2.1", "192.0.2.2", '"192.0.2.3"', "[2001:db8::1]:80", "unknown", '"', '",', "", "\\"]),
    st.text(st.sampled_from('",;=\\ .:[]0129abfor'), max_size=12),
)


@given(
    values=st.lists(st.lists(ENTRIES, max_size=3).map(",".join), max_size=4),
    name=st.sampled_from(["X-Forwarded-For", "Forwarded"]),
    hop=st.sampled_from(["first", "last", 1, 2, 3]),
)
def test_worker_and_listener_agree(values: list[str], name: str, hop: str | int) -> None:
    """Whatever the header, however often it is there: a first request never moves."""
    if name == "Forwarded":
        values = [value.replace("192", "for=192").replace("[", 'for="[').replace("]:80", ']:80"') for value in values]
    place = Place(client_header=name, client_hop=str(hop))
    try:
        place.table.set_ring(WORKERS)
        text = "GET / HTTP/1.1\r\nHost: test" + "".join(f"\r\n{name}: {value}" for value in values)
        seen = text.encode("latin-1") + b"\r\n\r\n"
        client = AddressFinder(ClientHeader(name, hop), MAX_HEAD_BYTES).reader().feed(seen)
        host = PEER[0] if isinstance(client, Verdict) else client
        packed = socket.inet_pton(socket.AF_INET6, host)[:8] + bytes(8) if ":" in host else socket.inet_aton(host)
        for _ in range(2):
            assert place.homes.target(parse(text, LIMITS), PEER) == Ring(WORKERS).slot(packed)
    finally:
        place.close()


# --- the way


def test_send(place: Place) -> None:
    """Everything goes into the slot's channel, and the client with it, who is not the peer."""
    place.table.fill(2, 4711)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert place.homes.send(2, ours.fileno(), 3, b"read before", head_of('"192.0.2.1"', "192.0.2.2"))
        frame = Receiver(place.channels[2].receiving_end).receive()
        assert frame is not None
        assert frame[1:] == (3, None, b"read before", "192.0.2.1")
        theirs.send(b"hello")
        with socket.socket(fileno=frame.descriptor) as arrived:
            assert arrived.recv(10) == b"hello"
        assert not place.rung()
        assert place.homes.send(2, ours.fileno(), 0, b"", head_of())
        frame = Receiver(place.channels[2].receiving_end).receive()
        assert frame is not None
        os.close(frame.descriptor)
        assert frame.client is None


def test_send_to_an_unknown_slot(place: Place) -> None:
    """What has no channel here goes to the listener."""
    with socket.socket() as sock:
        assert place.homes.send(WORKERS, sock.fileno(), 0, b"data", head_of("192.0.2.1"))
        frame = Receiver(place.returns.receiving_end).receive()
        assert frame is not None
        os.close(frame.descriptor)
        assert (frame.data, frame.client) == (b"data", "192.0.2.1")


def test_send_to_an_empty_slot(place: Place) -> None:
    """The arbiter is woken: after a reload it is the only one that can pass it on."""
    with socket.socket() as sock:
        assert place.homes.send(1, sock.fileno(), 0, b"", head_of())
        assert place.rung()


def test_send_to_a_full_channel(place: Place) -> None:
    """There is no room at some time, and room again when something was taken out; the descriptor stays ours."""
    place.table.fill(1, 4711)
    with socket.socket() as sock:
        count = 0
        while place.homes.send(1, sock.fileno(), 0, b"x" * 1000, head_of()):
            count += 1
        assert count > 10
        assert not place.homes.send(1, sock.fileno(), 0, b"", head_of())
        receiver = Receiver(place.channels[1].receiving_end)
        for _ in range(count):
            frame = receiver.receive()
            assert frame is not None
            os.close(frame.descriptor)
        assert place.homes.send(1, sock.fileno(), 0, b"", head_of())
        assert sock.fileno() >= 0


def test_forsaken(place: Place) -> None:
    """Only when all end and nobody serves the slot any more."""
    assert not place.homes.is_forsaken(1)
    assert not place.homes.is_forsaken(WORKERS)
    place.table.set_final(True)
    assert place.homes.is_forsaken(1)
    for slot in (1, WORKERS):
        place.table.fill(slot, 4711)
    assert not place.homes.is_forsaken(1)
    # The way to a newer slot leads through the listener, which is the first to end.
    assert place.homes.is_forsaken(WORKERS)
    place.table.vacate(1)
    place.table.set_final(False)
    assert not place.homes.is_forsaken(1)


def test_no_room() -> None:
    """503, and when to try again."""
    said: list[Any] = []
    body = no_room({}, lambda *start: said.append(start))
    ((status, headers),) = said
    assert status == "503 Service Unavailable"
    assert dict(headers)["Retry-After"] == "1"
    assert dict(headers)["Content-Length"] == str(len(b"".join(body)))
