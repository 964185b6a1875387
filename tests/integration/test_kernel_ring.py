"""The ring in the kernel: each connection waits at the socket of its slot, and what else we count on there."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import bpf_machine
import pytest

import groups
from groups import Group, check, listen, loopback_addresses
from harness import connect
from sticky_session import Ring
from sticky_session.address import Masks
from sticky_session.bpf import slot_program
from sticky_session.errors import PlatformError
from sticky_session.reuseport import attach

# Always the same socket.
FIRST = [(bpf_machine.RETURN_K, 0, 0, 0)]


@contextlib.contextmanager
def client(group: Group, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    with connect(group.port, address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield sock


def by_itself(what: str) -> None:
    """Run a function of groups.py as a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(groups.__file__)), what], capture_output=True, text=True, timeout=100, check=False
    )
    if done.returncode == groups.NOT_ALLOWED:
        pytest.skip(f"this user may not have a network of its own: {done.stderr}")
    assert done.returncode == 0, done.stderr


# --- the slot of each address


@pytest.mark.parametrize(
    ("slots", "partitions", "seed", "masks"),
    [(5, 1024, 0, (32, 64)), (8, 1000, 2**32 - 1, (24, 64)), (64, 4096, 99, (32, 64)), (1, 1024, 0, (32, 64))],
)
def test_ipv4(slots: int, partitions: int, seed: int, masks: tuple[int, int]) -> None:
    """Clients on IPv4 find the slot that the ring names."""
    with Group("127.0.0.1", slots) as group:
        check(group, loopback_addresses(2000), Ring(slots, partitions, seed), masks, host="127.0.0.1")


def test_ipv4_on_ipv6_sockets() -> None:
    """So do clients on IPv4 where the sockets are IPv6 ones: there, too, their key is made of the IPv4 address."""
    with Group("::", 7) as group:
        check(group, loopback_addresses(2000), Ring(7), (24, 64), host="127.0.0.1")
        check(group, ["::1"] * 5, Ring(7), host="::1")


def test_loopback_ipv6() -> None:
    """So does the one client that there is on IPv6's loopback, whatever the seed makes of it."""
    with Group("::1", 3) as group:
        for seed in range(20):
            check(group, ["::1"], Ring(3, seed=seed), (32, 128), host="::1")


def test_ipv6() -> None:
    """So do clients from thousands of IPv6 addresses, also those that answer SYN cookies."""
    by_itself("ipv6")


def test_unprivileged() -> None:
    """Nothing of this takes any rights."""
    by_itself("unprivileged")


def test_little_memory() -> None:
    """Older kernels take the programs of the default rings; what is said if one takes too much memory."""
    by_itself("memory")


def test_several_binds() -> None:
    """Each address that is listened on has a group of its own."""
    with Group("127.0.0.1", 4) as one, Group("::", 4) as other:
        check(one, loopback_addresses(200), Ring(4), host="127.0.0.1")
        check(other, loopback_addresses(200), Ring(4, seed=1), host="127.0.0.1")


# --- changes


def test_replaced_while_clients_connect() -> None:
    """A program is replaced at once: all clients get through, to their slot by the old ring or by the new one."""
    rings = [Ring(slots) for slots in (4, 5, 6, 5)]
    addresses = loopback_addresses(1500)
    key = Masks().key
    done = threading.Event()
    replaced = 0

    def replace() -> None:
        nonlocal replaced
        while not done.is_set():
            replaced += 1
            group.route(rings[replaced % len(rings)])
            done.wait(0.0005)

    with Group("127.0.0.1", 6) as group:
        group.route(rings[0])
        thread = threading.Thread(target=replace)
        thread.start()
        try:
            arrived = {}
            for address in addresses:
                with client(group, address):
                    arrived.update({peer: slot for slot, peer in group.accept()})
        finally:
            done.set()
            thread.join()
        assert set(arrived) == set(addresses)
        assert all(slot in {ring.slot(key(peer)) for ring in rings} for peer, slot in arrived.items())
    assert replaced > 20


def test_growing() -> None:
    """A socket that joins gets nobody before the program names it; then only those that the ring moves."""
    addresses = loopback_addresses(300)
    with Group("127.0.0.1", 3) as group:
        check(group, addresses, Ring(3), host="127.0.0.1")
        group.grow(4)
        for address in addresses:
            with client(group, address):
                assert list(group.accept()) == [(Ring(3).slot(Masks().key(address)), address)]
        check(group, addresses, Ring(4), host="127.0.0.1")


def test_shrinking() -> None:
    """What waits at a socket when the program names it no more still waits there; the last one may be closed then."""
    addresses = loopback_addresses(300)
    with Group("127.0.0.1", 4) as group, contextlib.ExitStack() as clients:
        group.route(Ring(4))
        for address in addresses:
            clients.enter_context(client(group, address))
        group.route(Ring(3))
        assert {slot for slot, _ in group.accept()} == {0, 1, 2, 3}
        group.sockets.pop().close()
        check(group, addresses, Ring(3), host="127.0.0.1")


# --- what we know of the kernel


def test_numbers_are_the_order_of_listening() -> None:
    """A socket's number is when it began to listen; the last one gets that of one that is closed."""
    with Group("127.0.0.1", 5) as group:
        sockets = list(group.sockets)

        def chosen(number: int) -> int:
            attach(group.sockets[0], [(bpf_machine.RETURN_K, 0, 0, number)])
            with client(group):
                ((slot, _),) = group.accept()
            return sockets.index(group.sockets[slot])

        assert [chosen(number) for number in range(5)] == [0, 1, 2, 3, 4]
        group.sockets.pop(1).close()
        assert [chosen(number) for number in range(4)] == [0, 4, 2, 3]


def test_number_of_no_socket() -> None:
    """Where the program names no socket, any one gets the connection: nobody is refused."""
    with Group("127.0.0.1", 3) as group:
        attach(group.sockets[0], [(bpf_machine.RETURN_K, 0, 0, 3)])
        slots = set()
        for address in loopback_addresses(50):
            with client(group, address):
                ((slot, _),) = group.accept()
                slots.add(slot)
        assert slots == {0, 1, 2}


def test_full_queue() -> None:
    """A connection for which its socket has no room waits for it in the client; it never goes to another one."""
    with Group("127.0.0.1", 2, backlog=3) as group:
        attach(group.sockets[0], FIRST)
        with contextlib.ExitStack() as clients:
            # One more than listen() was told: the kernel's queue is full when it has more than that.
            for _ in range(4):
                clients.enter_context(client(group))
            with pytest.raises(TimeoutError):
                connect(group.port, timeout=0.3)
            assert [slot for slot, _ in group.accept()] == [0] * 4
            with client(group):
                assert [slot for slot, _ in group.accept()] == [0]


def test_closed_with_connections() -> None:
    """Connections that wait at a socket are reset when it is closed, but not while there is a copy of it."""
    with Group("127.0.0.1", 2) as group:
        attach(group.sockets[0], [(bpf_machine.RETURN_K, 0, 0, 1)])
        with client(group) as waiting, client(group) as left:
            copy = group.sockets[1].dup()
            group.sockets.pop().close()
            copy.accept()[0].close()
            assert waiting.recv(1) == b""
            copy.close()
            with pytest.raises(ConnectionResetError):
                left.recv(1)


def test_handshake_on_the_way() -> None:
    """A client belongs to the socket that its SYN came to, also if the program says something else at its end."""
    with Group("127.0.0.1", 2) as group:
        for sock in group.sockets:
            # The connection is there for the server when data come (tcp(7)).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        attach(group.sockets[0], [(bpf_machine.RETURN_K, 0, 0, 1)])
        with client(group) as early:
            assert list(group.accept()) == []
            attach(group.sockets[0], FIRST)
            early.send(b"x")
            assert [slot for slot, _ in group.accept()] == [1]


def test_shared_later() -> None:
    """A socket that already listens can be given siblings; nobody who doesn't ask to share gets the port then."""
    with listen("127.0.0.1", share=False) as first:
        host, port = first.getsockname()
        with pytest.raises(PlatformError, match="Invalid argument"):
            attach(first, FIRST)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with listen(host, port) as second:
            attach(first, slot_program([1]))
            with pytest.raises(OSError, match="already in use"):
                listen(host, port, share=False)
            with connect(port):
                second.accept()[0].close()


@pytest.mark.parametrize(("program", "_reason"), bpf_machine.REJECTED)
def test_rejected(program: bpf_machine.Program, _reason: str) -> None:
    """The kernel refuses what the tests' checker does, and says so."""
    with Group("127.0.0.1", 1) as group:
        with pytest.raises(PlatformError, match=f"refuses .* of {len(program)} instructions: Invalid argument"):
            attach(group.sockets[0], program)
