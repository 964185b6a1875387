"""A worker that accepts itself: its own slot's connections, while it may, and the others' go on to them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from socket import socket
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event
from kernel_place import Log, Place, host

from sticky_session import handoff
from sticky_session.acceptor import Acceptor
from sticky_session.generation import Generation, Seat
from sticky_session.routes import Routes


class Server:
    """What an acceptor sees of the worker's server; it takes connections from its acceptor alone.

    :ivar taken: the clients' hosts
    """

    def __init__(self, generation: Generation, slot: int) -> None:
        bell, self.doorbell = os.pipe()
        os.set_blocking(self.doorbell, False)
        self.bell = bell
        self.log = Log()
        seat = Seat(slot, generation, self.doorbell)
        for bind, group in enumerate(generation.groups):
            assert group is not None
            # As after the fork, where others are closed.
            copy = socket(fileno=os.dup(group.members[slot].fileno()))
            copy.setblocking(False)
            seat.listening.append((copy, bind))
        self.worker = SimpleNamespace(seat=seat, log=self.log, ppid=os.getppid())
        self.draining = False
        self.room = Event()
        self.taken: list[str] = []
        self.acceptor = Acceptor(self)  # type: ignore[arg-type]

    def take(self, source: Any) -> None:
        while source():
            pass

    def begin(self, descriptor: int, bind: int, *, peer: Any) -> None:
        assert bind == 0
        handoff.close(descriptor)
        self.taken.append(peer[0])

    def make_room(self) -> None:
        self.room.set()

    def close(self) -> None:
        self.acceptor.close()
        os.close(self.bell)
        os.close(self.doorbell)


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as place:
        yield place


@pytest.fixture
def generation(place: Place) -> Generation:
    return place.generation()


@pytest.fixture
def server(generation: Generation) -> Iterator[Server]:
    """That of slot 1."""
    server = Server(generation, 1)
    yield server
    server.close()


def turn() -> None:
    """Let the event loop do what there is to do."""
    for _ in range(3):
        gevent.sleep(0.001)


def test_only_while_it_may(place: Place, generation: Generation, server: Server) -> None:
    """It waits until its generation may accept, and ceases when another may."""
    server.acceptor.start()
    place.router.open(generation)
    first = place.connect(1)
    turn()
    assert server.taken == [host(first)]
    place.router.shut()
    second = place.connect(1)
    turn()
    assert server.taken == [host(first)]
    place.router.open(generation)
    turn()
    assert server.taken == [host(first), host(second)]


def test_others_go_on(place: Place, generation: Generation, server: Server) -> None:
    """What is another slot's by now goes to its channel."""
    place.router.open(generation)
    server.acceptor.start()
    own, other = place.connect(1), place.connect(1)
    # As if the ring had changed since: all belong to slot 0, and then to their own again.
    generation.table.set_ring(1)
    turn()
    assert sorted(place.arrived(generation, 0)) == sorted([host(own), host(other)])
    assert server.taken == []
    generation.table.set_ring(3)
    last = place.connect(1)
    turn()
    assert server.taken == [host(last)]


@pytest.mark.parametrize("final", [False, True])
def test_channel_is_full(place: Place, generation: Generation, server: Server, final: bool) -> None:
    """Where there is no room it goes back to the arbiter; in the end, when that reads no more, it is tried again."""
    place.router.open(generation)
    server.acceptor.start()
    filler = place.connect(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            handoff.send(generation.channels[0].sending_end, handoff.encode(0), filler.fileno())
    client = place.connect(1)
    generation.table.set_ring(1)
    generation.table.set_final(final)
    turn()
    assert generation.returns.is_empty == final
    if final:
        assert set(place.arrived(generation, 0)) == {filler.getpeername()[0]}
        assert server.acceptor.passing_on == 1
        assert server.room.wait(5)
        assert server.acceptor.passing_on == 0
    else:
        assert os.read(server.bell, 10) == b"!"
        place.arrived(generation, 0)
        generation.ring_size = 1
        place.router.open(generation)
        place.router.turn()
    assert place.arrived(generation, 0) == [host(client)]


def test_slot_that_came_later(place: Place, generation: Generation, server: Server) -> None:
    """What belongs to a slot that is newer than the worker goes by the arbiter, which is woken for it."""
    routes = Routes(server.worker.seat)
    generation.grow(4)
    generation.table.fill(3, os.getpid())
    generation.ring_size = 4
    place.router.open(generation)
    client = place.connect(3, slots=4)
    group = generation.groups[0]
    assert group is not None
    ((descriptor, _),) = group.accept(3)
    assert routes.pass_on(3, handoff.encode(0), descriptor)
    os.close(descriptor)
    assert os.read(server.bell, 10) == b"!"
    place.router.turn()
    assert place.arrived(generation, 3) == [host(client)]


def test_channel_breaks(place: Place, generation: Generation, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sending fails for good, the connection ends, and nothing of it is left."""

    def fail(*_: object) -> bool:
        raise BrokenPipeError

    place.router.open(generation)
    client = place.connect(1)
    generation.table.set_ring(1)
    monkeypatch.setattr(server.acceptor._routes, "pass_on", fail)
    with pytest.raises(BrokenPipeError):
        server.take(server.acceptor.sources()[0])
    client.settimeout(5)
    assert client.recv(1) == b""
    assert server.acceptor.passing_on == 0


def test_the_last_ones(place: Place, generation: Generation, server: Server) -> None:
    """A worker that drains takes what waits, and closes its copy of the socket at once."""
    place.router.open(generation)
    waiting = [place.connect(1) for _ in range(3)]
    server.draining = True
    for source in server.acceptor.sources():
        server.take(source)
    assert server.taken == [host(client) for client in waiting]
    assert server.acceptor.done


def test_the_last_ones_are_anothers(place: Place, generation: Generation, server: Server) -> None:
    """One whose generation may not accept any more leaves what waits."""
    place.router.open(generation)
    place.connect(1)
    place.router.shut()
    server.draining = True
    for source in server.acceptor.sources():
        server.take(source)
    assert server.taken == []
    assert server.acceptor.done


def test_arbiter_is_gone(place: Place, generation: Generation, server: Server) -> None:
    """Nothing is accepted when the arbiter is gone: another one may have the sockets."""
    place.router.open(generation)
    server.acceptor.start()
    server.worker.ppid = -1
    place.connect(1)
    turn()
    assert server.taken == []
    assert server.acceptor.done


class Failing:
    """A listening socket whose first accept() fails."""

    def __init__(self, listening: socket, number: int) -> None:
        self._listening = listening
        self._errors = [OSError(number, os.strerror(number))]

    def _accept(self) -> Any:
        if self._errors:
            raise self._errors.pop()
        return self._listening._accept()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EMFILE])
def test_errors(place: Place, generation: Generation, server: Server, number: int) -> None:
    """A client that is gone is no matter; without descriptors it pauses, and says so once."""
    listening, bind = server.acceptor._left[0]
    server.acceptor._left[0] = (Failing(listening, number), bind)  # type: ignore[arg-type]
    place.router.open(generation)
    server.acceptor.start()
    client = place.connect(1)
    with gevent.Timeout(5):
        while not server.taken:
            turn()
    assert server.taken == [host(client)]
    if number == errno.EMFILE:
        complaint, recovery = server.log.lines
        assert complaint.startswith("Can't accept connections: Too many open files. ")
        assert recovery.startswith("Descriptors are available again")
    else:
        assert server.log.lines == []
