"""Groups of listening sockets that share a port, and the program that chooses among them: socket(7), SO_REUSEPORT.

The sockets of a group are numbered in the order in which they began to listen. One that is closed gives its number to
the last one. The kernel has one program for a group; a new one takes the place of the old one for the next packet.
Sockets of several users never make a group.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from socket import (
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SHUT_RDWR,
    SO_BINDTODEVICE,
    SO_KEEPALIVE,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_INFO,
    TCP_NODELAY,
)
from typing import Any

from sticky_session.errors import PlatformError

# asm-generic/socket.h, linux/in.h, linux/in6.h. Python has no names for them.
_SO_ATTACH_REUSEPORT_CBPF = 51
_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
# linux/tcp.h: where struct tcp_info has tcpi_unacked and tcpi_sacked; of a listening socket these are how many
# connections wait, and how many may (net/ipv4/tcp.c, tcp_get_info).
_QUEUE = struct.Struct("24x2I")
# The longest name of an interface, linux/if.h.
_IFNAMSIZ = 16
# What connections have from the socket that they were accepted from, and what lets several have its address.
_COPIED = ((SOL_SOCKET, SO_REUSEADDR), (SOL_SOCKET, SO_KEEPALIVE), (IPPROTO_TCP, TCP_NODELAY))

# BPF_RET | BPF_K: everybody goes to the first socket.
ONLY_FIRST = ((0x06, 0, 0, 0),)


def attach(sock: Any, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Let a program choose, from the next packet on, which socket of a group a connection goes to.

    :param sock: any socket of the group
    :param program: classic BPF, (code, jt, jf, k) for each instruction; it returns the socket's number
    :raises PlatformError: the kernel doesn't take it
    """
    # struct sock_filter and struct sock_fprog, linux/filter.h.
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    instructions = ctypes.create_string_buffer(packed, len(packed))
    try:
        sock.setsockopt(
            SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(program), ctypes.addressof(instructions))
        )
    except OSError as error:
        # The program takes more of it than its own size: the kernel translates it.
        cure = "raise the sysctl net.core.optmem_max, or " if error.errno == errno.ENOMEM else ""
        raise PlatformError(
            f"the kernel refuses the router's program of {len(program)} instructions: {error.strerror}; "
            f"expected Linux 4.6 or newer, and sockets with SO_REUSEPORT; {cure}use the listener"
        ) from error


class Group:
    """The listening sockets of one address: one for each slot, whose number in the group is the slot's.

    None is closed while the group is in use, so that no number changes, and nobody who waits in one is lost.

    :param first: the first slot's, which listens already. Nobody else could have had its address
    :param others: those of the next slots, if there is a group already
    :ivar members: the sockets, by slot; the first is a copy
    """

    def __init__(self, first: Any, others: Iterable[_socket.socket] = ()) -> None:
        self.members = [_socket.socket(fileno=os.dup(first.fileno())), *others]
        for member in self.members:
            member.setblocking(False)

    def grow(self, slots: int) -> None:
        """Have sockets for ``slots`` slots. A new one gets no connections before a program names it.

        :raises OSError: there can't be so many
        :raises PlatformError: there can't be a program
        """
        first = self.members[0]
        if slots > 1 and len(self.members) == 1:
            # Only now: a group of one is what the socket was before.
            first.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
            # There was no group that could have a program before. Until it has one the second socket must get nobody,
            # for whom there may be no worker for long: a SYN that is dropped comes again in a second.
            second = _sibling(first, least_ttl=255)
            try:
                attach(first, ONLY_FIRST)
                _hear_from(second, 0)
            except BaseException:
                second.close()
                raise
            self.members.append(second)
        while len(self.members) < slots:
            self.members.append(_sibling(first))

    def waiting(self, slot: int) -> int:
        """How many connections wait to be accepted for a slot."""
        return _queue(self.members[slot])[0]

    @property
    def backlog(self) -> int:
        """How many connections may wait for each slot."""
        return _queue(self.members[0])[1]

    def accept(self, slot: int) -> Iterator[tuple[int, Any]]:
        """Take the connections that wait for a slot: descriptors, which the caller owns, and peers.

        :raises OSError: as accept(2); never because there are no more
        """
        while True:
            try:
                yield self.members[slot]._accept()  # type: ignore[attr-defined]  # without a socket object around it
            except BlockingIOError:
                return

    def end(self) -> None:
        """Listen no more, in no process: those who still wait are reset."""
        for member in self.members:
            # shutdown(2) has a listening socket closed for all who have it.
            member.shutdown(SHUT_RDWR)

    def close(self, keep: int | None = None) -> None:
        """Close the sockets in this process.

        :param keep: a slot whose socket stays open
        """
        for slot, member in enumerate(self.members):
            if slot != keep:
                member.close()


def _sibling(first: _socket.socket, least_ttl: int = 0) -> _socket.socket:
    """A socket that listens as another one does, in its group.

    :param least_ttl: see :func:`_hear_from`
    """
    sock = _socket.socket(first.family, SOCK_STREAM)
    try:
        for level, option in _COPIED:
            sock.setsockopt(level, option, first.getsockopt(level, option))
        if first.family == AF_INET6:
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, first.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
        device = first.getsockopt(SOL_SOCKET, SO_BINDTODEVICE, _IFNAMSIZ)
        if device:
            sock.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, device)
        sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        sock.setblocking(False)
        if least_ttl:
            _hear_from(sock, least_ttl)
        sock.bind(first.getsockname())
        sock.listen(_queue(first)[1])
    except BaseException:
        sock.close()
        raise
    return sock


def _hear_from(sock: _socket.socket, least_ttl: int) -> None:
    """Drop what has made too many hops: ip(7), IP_MINTTL. Hardly any packet has 255 left, not even from this machine.

    A filter of its own (SO_ATTACH_FILTER) would say it better, but not every user may set one.
    """
    sock.setsockopt(IPPROTO_IP, _IP_MINTTL, least_ttl)
    if sock.family == AF_INET6:
        sock.setsockopt(IPPROTO_IPV6, _IPV6_MINHOPCOUNT, least_ttl)


def _queue(listening: _socket.socket) -> tuple[int, int]:
    """How many connections wait to be accepted, and how many may."""
    waiting, most = _QUEUE.unpack(listening.getsockopt(IPPROTO_TCP, TCP_INFO, _QUEUE.size))
    return waiting, most
