"""The listening sockets of one address; what the kernel does with them is in integration/test_kernel_ring.py."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sticky_session import PlatformError, reuseport
from sticky_session.reuseport import Group

OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
]


@contextlib.contextmanager
def group_at(host: str, *, only_ipv6: bool = False) -> Iterator[tuple[socket.socket, Group]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=7, dualstack_ipv6=host == "::" and not only_ipv6) as it:
        for level, option in OPTIONS[:2] + OPTIONS[3:]:
            it.setsockopt(level, option, 1)
        group = Group(it)
        yield it, group
        group.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
@pytest.mark.parametrize("only_ipv6", [False, True])
def test_siblings(host: str, only_ipv6: bool) -> None:
    """They have the address of the first and all that matters for connections."""
    with group_at(host, only_ipv6=only_ipv6) as (first, group):
        group.grow(3)
        group.grow(2)
        assert len(group.members) == 3
        for member in group.members:
            assert member.getsockname() == first.getsockname()
            assert all(member.getsockopt(*option) for option in OPTIONS)
            assert not member.getblocking()
            if first.family == socket.AF_INET6:
                only = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                assert member.getsockopt(*only) == first.getsockopt(*only)
        assert group.backlog == 7


def test_group_of_one() -> None:
    """One socket is left as it is: nobody else may share its port."""
    with group_at("127.0.0.1") as (first, group):
        group.grow(1)
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_new_siblings_get_nobody() -> None:
    """Everybody goes on coming to the first until a program says something else; they wait, and are counted."""
    with group_at("127.0.0.1") as (first, group), contextlib.ExitStack() as stack:
        group.grow(4)
        for _ in range(6):
            stack.enter_context(socket.create_connection(first.getsockname()))
        assert [group.waiting(slot) for slot in range(4)] == [6, 0, 0, 0]
        accepted = list(group.accept(0))
        assert [peer[0] for _, peer in accepted] == ["127.0.0.1"] * 6
        for descriptor, _ in accepted:
            socket.close(descriptor)
        assert group.waiting(0) == 0


@pytest.mark.parametrize(("host", "client"), [("127.0.0.1", "127.0.0.1"), ("::", "127.0.0.1"), ("::", "::1")])
def test_before_there_is_a_program(host: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while a group has no program yet is the first one's all the same, if a second later."""
    attach = reuseport.attach
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    with group_at(host) as (first, group), contextlib.ExitStack() as stack:

        def attach_late(*args: Any) -> None:
            for _ in range(7):
                sock = stack.enter_context(socket.socket(family))
                sock.setblocking(False)
                sock.connect_ex((client, first.getsockname()[1]))
            attach(*args)

        monkeypatch.setattr(reuseport, "attach", attach_late)
        group.grow(2)
        deadline = time.monotonic() + 10
        while group.waiting(0) < 7 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [group.waiting(slot) for slot in range(2)] == [7, 0]


def test_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there can't be a program there is no second socket, which would get half of the clients."""

    def refuse(*_: Any) -> None:
        raise PlatformError("no")

    monkeypatch.setattr(reuseport, "attach", refuse)
    with group_at("127.0.0.1") as (first, group), contextlib.ExitStack() as stack:
        with pytest.raises(PlatformError):
            group.grow(2)
        for _ in range(6):
            stack.enter_context(socket.create_connection(first.getsockname()))
        assert len(group.members) == 1
        assert group.waiting(0) == 6


def test_close() -> None:
    """A worker closes all but its own."""
    with group_at("127.0.0.1") as (_, group):
        group.grow(3)
        group.close(keep=1)
        assert [member.fileno() >= 0 for member in group.members] == [False, True, False]


def test_no_room_for_siblings() -> None:
    """Where a sibling can't listen the error is the kernel's, and nothing is left open."""
    with group_at("127.0.0.1") as (first, group):
        first.close()
        group.members[0].close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            group.grow(2)
        assert len(group.members) == 1
