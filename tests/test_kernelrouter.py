"""The arbiter's part of the kernel router: what no worker accepts, who may accept, and who routes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kernel_place import WORKERS, Place, host

from sticky_session import OptionError, PlatformError, Ring, handoff, kernelrouter
from sticky_session.generation import Generation
from sticky_session.kernelrouter import VARIABLE, KernelRouter, try_out


@pytest.fixture
def place() -> Iterator[Place]:
    with Place(queue_size=2) as place:
        yield place


# --- what no worker accepts


def test_what_waits_is_the_workers(place: Place) -> None:
    """A few connections are left to the slot's worker."""
    generation = place.generation()
    place.router.open(generation)
    for _ in range(2):
        place.connect(1)
    place.router.turn()
    assert place.arrived(generation, 1) == []
    assert generation.has_connections(1)
    assert not generation.has_connections(0)
    assert place.router.tick_seconds < 1
    assert place.router.waiting() == 2


def test_too_many(place: Place) -> None:
    """More than queue_size go into the slot's channel; where that is full so many wait here, and the next get 503."""
    generation = place.generation()
    place.router.open(generation)
    filler = place.connect(0)
    with contextlib.suppress(BlockingIOError):
        # Nobody reads it.
        while True:
            handoff.send(generation.channels[1].sending_end, handoff.encode(0), filler.fileno())
    clients = [place.connect(1) for _ in range(5)]
    for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    other = place.connect(2)
    place.router.turn()
    assert place.router.has_connections
    for refused in clients[2:]:
        assert refused.recv(100).startswith(b"HTTP/1.1 503 ")
    assert place.arrived(generation, 2) == []
    assert set(place.arrived(generation, 1)) == {filler.getpeername()[0]}
    place.router.turn()
    assert place.arrived(generation, 1) == [host(client) for client in clients[:2]]
    assert generation.has_connections(2)
    other.close()


def test_failed_slot() -> None:
    """What waits for a slot that has failed goes to the stand-ins, and so does what comes."""
    with Place(failover_seconds=0) as place:
        generation = place.generation()
        place.router.open(generation)
        early = place.connect(1)
        generation.table.vacate(1)
        place.router.turn()
        assert "Slot 1 is empty for more than 0 s: its clients go to other slots" in place.log.lines
        ring = Ring(WORKERS)
        stand_in = ring.slot_without(socket.inet_aton(host(early)), {1})
        assert place.arrived(generation, stand_in) == [host(early)]
        for _ in range(10):
            late = place.connect(1)
            slot = ring.slot_without(socket.inet_aton(host(late)), {1})
            group = generation.groups[0]
            assert group is not None
            assert [peer[0] for _, peer in accept(group, slot)] == [host(late)]
        generation.table.fill(1, os.getpid())
        place.router.turn()
        assert "Slot 1 is back" in place.log.lines
        place.connect(1)
        assert generation.has_connections(1)


def accept(group: Any, slot: int) -> list[tuple[int, Any]]:
    """Accept what waits for a slot, and close it."""
    found = list(group.accept(slot))
    for descriptor, _ in found:
        os.close(descriptor)
    return found


def test_slot_that_is_gone(place: Place) -> None:
    """What waits for a slot that the ring has no more goes where it belongs now; the socket stays for the next time."""
    generation = place.generation()
    place.router.open(generation)
    client = place.connect(2)
    generation.ring_size = 2
    place.router.open(generation)
    place.router.turn()
    assert place.arrived(generation, Ring(2).slot(socket.inet_aton(host(client)))) == [host(client)]
    for _ in range(10):
        place.connect(2)
    assert not generation.has_connections(2)
    generation.ring_size = WORKERS
    place.router.open(generation)
    place.connect(2)
    assert generation.has_connections(2)


def test_handed_back(place: Place) -> None:
    """What a worker hands back, because a channel was full, is delivered."""
    generation = place.generation()
    place.router.open(generation)
    client = place.connect(1)
    group = generation.groups[0]
    assert group is not None
    ((descriptor, _),) = group.accept(1)
    handoff.send(generation.returns.sending_end, handoff.encode(0), descriptor)
    os.close(descriptor)
    place.router.turn()
    assert place.arrived(generation, 1) == [host(client)]


# --- who accepts


def test_one_generation_after_the_other(place: Place) -> None:
    """Only one generation's workers may accept; what waits is the next one's, or waits for it."""
    first, second = place.generation(), place.generation(WORKERS + 1)
    assert not first.table.admits
    place.router.open(first)
    assert (first.table.admits, second.table.admits, place.router.is_open) == (True, False, True)
    client = place.connect(0)
    place.router.open(second)
    assert (first.table.admits, second.table.admits, place.router.is_open) == (False, True, True)
    assert second.has_connections(0)
    assert not first.has_connections(0)
    place.router.shut()
    assert (first.table.admits, second.table.admits, place.router.is_open) == (False, False, False)
    place.router.turn()
    assert place.arrived(second, 0) == []
    client.close()


def test_listener_takes_over(place: Place) -> None:
    """Where a listener accepts from the first socket everybody comes there; what waits in the others is delivered."""
    generation = place.generation()
    place.router.open(generation)
    client = place.connect(2)
    listened = Generation(SimpleNamespace(cfg=place.cfg), place.options, WORKERS, [place.listening])
    place.generations.append(listened)
    place.router.gather(listened)
    assert not generation.table.admits
    place.router.turn()
    assert place.arrived(listened, 2) == [host(client)]
    others = [place.connect(slot) for slot in (0, 1, 2)]
    assert sorted(place.accept() for _ in others) == sorted(host(other) for other in others)
    # Its groups are of no use to anybody when the last generation that had them is gone.
    place.router.prune([listened])
    place.router.turn()
    place.connect(1)
    assert place.accept() == host(place.clients[-1])


def test_address_that_is_dropped(place: Place) -> None:
    """What waits at an address that is listened on no more is delivered, and then nobody can connect."""
    generation = place.generation()
    place.router.open(generation)
    client = place.connect(1)
    place.router.drop(place.listening)
    place.listening.close()
    place.router.turn()
    assert place.arrived(generation, 1) == [host(client)]
    with pytest.raises(ConnectionRefusedError), socket.create_connection(client.getpeername()):
        pass


def test_child(place: Place) -> None:
    """A child closes what is the arbiter's alone, and takes nothing out of its epoll object."""
    generation = place.generation()
    place.router.open(generation)
    pid = os.fork()
    if pid == 0:
        place.router.close_in_child(keep=generation.groups)
        group = generation.groups[0]
        os._exit(0 if group is not None and group.members[1].fileno() >= 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    place.connect(1)
    assert generation.has_connections(1)


def test_next_arbiter(place: Place) -> None:
    """A new arbiter inherits the siblings, numbers and all, and closes what it has no use for."""
    generation = place.generation()
    place.router.open(generation)
    environ: dict[str, str] = {}
    with place.router.offer([place.listening], environ):
        numbers = environ[VARIABLE].split(",")
        assert all(os.get_inheritable(int(number)) for number in numbers)
        inherited = {VARIABLE: ",".join(str(os.dup(int(number))) for number in numbers)}
    assert environ == {}
    assert not any(os.get_inheritable(int(number)) for number in numbers)
    younger = KernelRouter.from_environment(inherited, place.log)
    assert inherited == {}
    (group,) = younger.choose(place.cfg, place.options, [place.listening], WORKERS + 1)
    assert group is not None
    client = place.connect(2)
    assert [peer[0] for _, peer in accept(group, 2)] == [host(client)]
    with pytest.raises(OptionError, match=r"router=kernel: workers=6: .* end one of the two first"):
        younger.choose(place.cfg, place.options, [place.listening], 6, [place.listening])
    younger.close_inherited()
    younger.close()


def test_next_arbiter_without_siblings() -> None:
    """What this arbiter was started with is not offered to the next one: those descriptors are something else now."""
    with Place(router="listener") as place:
        place.generation()
        environ = {VARIABLE: "1000"}
        with place.router.offer([place.listening], environ):
            assert environ == {}


# --- who routes


def test_listener_by_default() -> None:
    """Without being asked for, nothing is done to a socket."""
    with Place(router="listener") as place:
        assert place.generation().groups == []
        assert place.listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel doesn't take the program the listener routes, or there is one line why not."""

    def refuse(*_: Any) -> None:
        raise PlatformError("no")

    monkeypatch.setattr(kernelrouter, "attach", refuse)
    with Place() as place, pytest.raises(OptionError, match="router=kernel: no"):
        place.generation()
    with Place(router="auto", client_header="off") as place:
        assert place.generation().groups == []
        assert place.log.lines == ["The listener routes, not the kernel (router=auto): no"]


def test_kernel_that_pretends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the program and does something else is found out."""
    monkeypatch.setattr(kernelrouter, "attach", lambda *_: None)
    with pytest.raises(PlatformError, match="doesn't choose sockets by the router's program"):
        try_out([])


def test_kernel_that_does() -> None:
    """This one does as it is told."""
    try_out(kernelrouter.ONLY_FIRST)
