"""No descriptors left: the listener backs off, says so once, and recovers; nothing ends, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from signal import SIGHUP, SIGTERM, SIGTTIN, Signals

import pytest

from harness import Server, addresses, alive, connect, descriptors, get, wait_until
from pending import client_of, receive, send, stopped, take_turn

OUT = "Can't accept connections: Too many open files"
BACK = "Descriptors are available again"
# More than a slot's channel holds and the listener has descriptors for, in the tests below.
CROWD = 450
# More descriptors on their way than the limit below: in a socket pair that nobody reads (unix(7), ETOOMANYREFS).
HOARDER = """
import socket, sys
ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
for _ in range(2):
    socket.send_fds(ends[0], [b"x"], [0] * 200)
print("full", flush=True)
sys.stdin.read()
"""
# Root may have any number on their way. This user may not, has none on their way that aren't of the test itself, and
# can read what root can.
OTHER_USER = (
    "setpriv",
    f"--reuid={100_000 + os.getpid()}",
    "--clear-groups",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
)
UNPRIVILEGED = () if os.getuid() else OTHER_USER


def limited(limit: int) -> tuple[str, ...]:
    """What starts a server with so many descriptors for each of its processes."""
    return ("prlimit", f"--nofile={limit}")


@contextlib.contextmanager
def hoarder() -> Iterator[None]:
    """A process of the server's user that has more descriptors on their way than the server may have."""
    with subprocess.Popen(
        [*UNPRIVILEGED, sys.executable, "-c", HOARDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "full\n"
        yield


def test_listener_backs_off_and_recovers() -> None:
    """Out of descriptors the listener leaves connections in the backlog, and says so once however long it takes."""
    with Server(workers=2, prefix=limited(64)) as server:
        listener, workers = server.listener_pid, dict(server.worker_pids)
        before = descriptors(listener)
        hung = client_of(0, 2)
        mark = server.mark()
        with stopped(workers[0]):
            # The slot's channel and queue take a few, the next ones get 503 and hold a descriptor till they are read.
            silent = [connect(server.port, hung) for _ in range(CROWD)]
            server.wait_for(OUT, after=mark)
            waiting = [send(server.port, "/", client_of(1, 2)) for _ in range(20)]
            # Those that were refused are dropped after a while: then others are accepted, and it is full again.
            refused, _, _ = select.select(silent, [], [], 20)
            assert refused[0].recv(4096).startswith(b"HTTP/1.1 503 ")
            for connection in silent:
                connection.close()
            server.wait_for(BACK, after=mark)
        # Where root has no special rights either, the other slot's queue may have been full as well.
        assert {receive(it).status for it in waiting} <= {200, 503}
        assert len(server.find(OUT, after=mark)) == len(server.find(BACK, after=mark)) == 1
        # It has a crowd to get through that isn't there any more.
        wait_until(lambda: get(server.port, "/", hung).status == 200, 20, "the worker that hung serves again")
        assert get(server.port, "/", hung).json()["pid"] == workers[0]
        assert get(server.port, "/", client_of(1, 2)).json()["pid"] == workers[1]
        wait_until(lambda: descriptors(listener) <= before, what="the listener has closed everything")
        assert server.listener_pid == listener
        assert not server.find("Traceback|The listener failed|was lost")


def test_workers_with_few_descriptors() -> None:
    """A worker takes only as many connections as it has descriptors for; the others wait, and none is lost."""
    with Server(workers=2, prefix=limited(100)) as server:
        server.wait_for(r"worker_connections=1000, but the limit on open files \(100\) leaves room for", count=2)
        slow = [send(server.port, "/slow?seconds=0.2", address) for address in addresses(40)]
        assert {receive(it).status for it in slow} <= {200, 503}
        assert {get(server.port, "/", address).status for address in addresses(40)} == {200}
        assert all(map(alive, server.worker_pids.values()))
        assert not server.find("Traceback|The listener failed|was lost")


def test_term_while_out_of_descriptors() -> None:
    """TERM while the listener backs off: it ends in order."""
    with Server(workers=2, prefix=limited(64), args=["--graceful-timeout", "3"]) as server:
        with stopped(server.worker_pids[0]):
            silent = [connect(server.port, client_of(0, 2)) for _ in range(CROWD)]
            server.wait_for(OUT)
            server.signal(SIGTERM)
            assert server.wait() == 0
        server.assert_nothing_left()
        assert not server.find("Traceback|The listener failed")
        for connection in silent:
            connection.close()


def test_too_many_descriptors_on_their_way() -> None:
    """ETOOMANYREFS, which only users without privileges meet: connections wait in the listener, and none is lost."""
    with Server(workers=2, prefix=(*limited(200), *UNPRIVILEGED)) as server:
        listener = server.listener_pid
        with hoarder():
            before = descriptors(listener)
            waiting = [send(server.port, "/", address) for address in addresses(20)]
            wait_until(lambda: descriptors(listener) == before + 20, what="the listener holds all connections")
        assert {receive(it).status for it in waiting} == {200}
        assert server.listener_pid == listener
        wait_until(lambda: descriptors(listener) == before, what="the listener has closed everything")


def test_last_connections_of_a_listener_that_cannot_send() -> None:
    """TERM while descriptors can't be sent: the listener waits until they can, and nothing is lost."""
    with Server(workers=2, prefix=(*limited(200), *UNPRIVILEGED)) as server:
        listener = server.listener_pid
        with hoarder():
            before = descriptors(listener)
            waiting = [send(server.port, "/", address) for address in addresses(20)]
            wait_until(lambda: descriptors(listener) == before + 20, what="the listener holds all connections")
            server.signal(SIGTERM)
            server.wait_for("Handling signal: term")
        assert {receive(it).status for it in waiting} == {200}
        assert server.wait() == 0


def test_stopped_worker_of_a_user_without_privileges() -> None:
    """A worker that hangs makes its channel the place where descriptors pile up: once it goes on, all are served."""
    with Server(workers=2, prefix=(*limited(100), *UNPRIVILEGED)) as server:
        listener = server.listener_pid
        before = descriptors(listener)
        with stopped(server.worker_pids[0]):
            waiting = [send(server.port, "/", client_of(0, 2)) for _ in range(105)]
            wait_until(lambda: descriptors(listener) > before, what="the listener can't send")
            others = [send(server.port, "/", client_of(1, 2)) for _ in range(5)]
        assert {receive(it).status for it in others} == {200}
        assert {receive(it).status for it in waiting} == {200}
        assert server.listener_pid == listener
        wait_until(lambda: descriptors(listener) <= before, what="the listener has closed everything")


@pytest.mark.parametrize(
    ("number", "limit", "complaint"),
    [
        (SIGHUP, 48, "Reload failed.*Too many open files"),
        (SIGHUP, 73, "No worker can be started for slot .: Too many open files"),
        (SIGTTIN, 48, "workers=.*: Too many open files"),
    ],
)
def test_arbiter_without_descriptors(number: Signals, limit: int, complaint: str) -> None:
    """More channels or workers than it has descriptors for: it says so, and goes on with those it has."""
    with Server(workers=10, prefix=limited(limit), env={"STICKY_SESSION_BUS": "0"}) as server:
        before = set(server.worker_pids.values())
        while not server.find(complaint):
            server.signal(number)
            take_turn(server, server.pid)
        assert get(server.port).status == 200
        assert all(map(alive, before))
