"""Groups of listening sockets that share a port, with the ring's program, and clients from thousands of addresses.

Run with a function's name, as a program, it does what needs a process of its own: other rights, or another network.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness import Client, Server, connect, wait_until
from sticky_session import Ring
from sticky_session.address import Masks, unpack
from sticky_session.bpf import slot_program
from sticky_session.errors import PlatformError
from sticky_session.reuseport import attach

# sched.h, netdevice(7), linux/ipv6.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _SIOCSIFADDR = 0x8914, 0x8916
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
NOBODY = 65534
# How many connections may wait: no test has more.
BACKLOG = 512


def listen(host: str, port: int = 0, *, backlog: int = BACKLOG, share: bool = True) -> socket.socket:
    """A listening socket; on :: for IPv4, too."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if share:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if host == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        sock.bind((host, port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


class Group:
    """Listening sockets on one port, one for each slot; a context manager."""

    def __init__(self, host: str, slots: int, *, backlog: int = BACKLOG) -> None:
        self.host = host
        self.backlog = backlog
        self.sockets = [listen(host, backlog=backlog)]
        self.port: int = self.sockets[0].getsockname()[1]
        self.grow(slots)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            sock.close()

    def grow(self, slots: int) -> None:
        """Have so many sockets."""
        while len(self.sockets) < slots:
            self.sockets.append(listen(self.host, self.port, backlog=self.backlog))

    def route(self, ring: Ring, masks: tuple[int, int] = (32, 64)) -> None:
        """Have connections go to their slots."""
        attach(self.sockets[0], slot_program(ring.owners, ring.seed, *masks))

    def accept(self) -> Iterator[tuple[int, str]]:
        """Take all connections that wait: slot and client's address of each."""
        for slot, sock in enumerate(self.sockets):
            with contextlib.suppress(BlockingIOError):
                while True:
                    connection, peer = sock.accept()
                    connection.close()
                    yield slot, peer[0]


def check(group: Group, addresses: Sequence[str], ring: Ring, masks: tuple[int, int] = (32, 64), *, host: str) -> None:
    """Connect from each address, and find all connections at the slots that the ring says."""
    group.route(ring, masks)
    key = Masks(*masks).key
    arrived = 0
    for first in range(0, len(addresses), 100):
        with contextlib.ExitStack() as clients:
            for address in addresses[first : first + 100]:
                client = clients.enter_context(connect(group.port, address, host=host))
                # Reset at the end: no port stays taken.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for slot, peer in group.accept():
                assert slot == ring.slot(key(peer)), peer
                arrived += 1
    assert arrived == len(addresses)


def loopback_addresses(count: int, seed: int = 0) -> list[str]:
    """Addresses from all over 127.0.0.0/8."""
    draw = random.Random(seed)
    return [f"127.{draw.randrange(1, 255)}.{draw.randrange(256)}.{draw.randrange(1, 255)}" for _ in range(count)]


# --- in a process of its own


def unprivileged() -> None:
    """A user without any rights has a group, and its program."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert int(status["CapEff"], 16) == 0
    with Group("127.0.0.1", 6) as group:
        check(group, loopback_addresses(500), Ring(6), host="127.0.0.1")


def ipv6() -> None:
    """Thousands of IPv6 addresses, with several masks, and with SYN cookies; in a network that has such addresses."""
    _enter_network()
    draw = random.Random(6)
    # Many of the same /48 and /64.
    networks = [b"\xfd" + draw.randbytes(5) for _ in range(20)]
    subnets = [draw.choice(networks) + draw.choice([b"\0\0", draw.randbytes(2)]) for _ in range(200)]
    addresses = [unpack(draw.choice(subnets) + draw.randbytes(8)) for _ in range(1000)]
    for address in addresses:
        _add_address(address)
    wait_until(lambda: not _tentative_addresses(), what="all addresses can be used")
    with Group("::", 5) as group:
        for masks in ((32, 64), (24, 48), (32, 128), (32, 33), (32, 0)):
            check(group, addresses, Ring(5, 1000, seed=7), masks, host="::1")
        # Without cookies it is the SYN that the program is run on, with them the ACK.
        Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("2")
        check(group, addresses, Ring(5), host="::1")
        check(group, loopback_addresses(1000), Ring(4), host="127.0.0.1")
        assert _statistic("SyncookiesRecv") == 2000


def server() -> None:
    """Clients from many IPv6 networks of a server that has the kernel route."""
    _enter_network()
    draw = random.Random(7)
    addresses = [unpack(b"\xfd" + draw.randbytes(15)) for _ in range(300)]
    for address in addresses:
        _add_address(address)
    wait_until(lambda: not _tentative_addresses(), what="all addresses can be used")
    key = Masks().key
    with Server(workers=5, router="kernel", bind=("[::]:0",)) as server:
        for address in addresses:
            with Client(server.port, address, host="::1") as client:
                assert client.get("/").json()["slot"] == Ring(5).slot(key(address))


def memory() -> None:
    """The default number of partitions is good for kernels before 6.8, which gave a program 20 KiB; more may not be."""
    _enter_network()
    # There it is not there, in a network of one's own, and as low as that if nobody has changed it.
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/sys/net/core/optmem_max").write_text("20480")
    with Group("127.0.0.1", 1) as group:
        for slots in (1, 2, 16, 64, 1024):
            group.route(Ring(slots), (31, 127))
        with pytest.raises(PlatformError, match=r"Cannot allocate memory; .*net\.core\.optmem_max"):
            group.route(Ring(100, 4096))


def _enter_network() -> None:
    """Have a network of this process's own, with loopback alone. See network_namespaces(7).

    :raises PermissionError: that isn't allowed here
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Who isn't root can be it among users of one's own.
    if libc.unshare(_CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWUSER | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP | _IFF_LOOPBACK))


def _add_address(address: str) -> None:
    """Give an IPv6 address to the loopback interface."""
    # struct in6_ifreq
    request = struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, address), 128, socket.if_nametoindex("lo"))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFADDR, request)


def _tentative_addresses() -> bool:
    """Whether the kernel still looks if somebody else has the addresses; on loopback that is over soon."""
    # Address, interface, length of the prefix, scope, flags. linux/if_addr.h: IFA_F_TENTATIVE.
    return any(int(line.split()[4], 16) & 0x40 for line in Path("/proc/net/if_inet6").read_text().splitlines())


def _statistic(name: str) -> int:
    """One of the counters of TCP, of this network."""
    names, values = (line.split() for line in Path("/proc/net/netstat").read_text().splitlines()[:2])
    return int(values[names.index(name)])


# What main() ends with where there can't be another network.
NOT_ALLOWED = 77


def main() -> None:
    """Do what the command line names."""
    try:
        {"unprivileged": unprivileged, "ipv6": ipv6, "memory": memory, "server": server}[sys.argv[1]]()
    except PermissionError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_ALLOWED)


if __name__ == "__main__":
    main()
