"""What is left when a process is killed or hangs: the listener, a worker, the arbiter, the master of listen()."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from signal import SIGKILL

import pytest
import websocket

from harness import APPS, Load, Script, Server, addresses, alive, descriptors, get, wait_until
from midway import (
    Pending,
    Sessions,
    ask,
    children_and_zombies,
    clients_of,
    kill_while_clients_wait,
    wait_until_handed_off,
    websocket_to,
)
from pending import stopped
from sticky_session import Ring

# Sessions are silent while a test does something else.
KEEP = ("--keep-alive", "60")

LISTEN = """
from gevent import monkey; monkey.patch_all()
import sticky_session
import survivor
sticky_session.listen(survivor.app, ("127.0.0.1", 0), workers=2, control_socket_disable=True)
"""


def test_killed_listener_under_load() -> None:
    """A new listener starts at once, no client changes its worker, sessions go on, nothing is leaked."""
    kills = 4
    clients = addresses(40)
    with Server("survivor:app", workers=2, args=KEEP) as server:
        with Sessions(server.port, clients[:8]) as sessions, Load(server.port, clients[8:]) as load:
            before = descriptors(server.arbiter_pid)
            for _ in range(kills):
                load.wait_for(100)
                mark = server.mark()
                killed = server.listener_pid
                os.kill(killed, SIGKILL)
                assert server.wait_for_listener(after=mark) != killed
                sessions.assert_unmoved()
            load.wait_for(100)
            assert descriptors(server.arbiter_pid) == before
            assert children_and_zombies(server.arbiter_pid) == 3
        # The one connection that a listener has in its hands dies with it.
        assert len(load.failures) <= kills, load.failures
        assert all(len(load.pids(address)) <= 1 for address in clients[8:])


def test_killed_listener_leaves_the_backlog() -> None:
    """Connections that wait in the kernel when the listener is killed are served, each by its own slot."""
    clients = addresses(200)
    with Server("survivor:app", workers=2) as server, contextlib.ExitStack() as stack:
        with stopped(server.listener_pid):
            waiting = [stack.enter_context(Pending(server.port, address)) for address in clients]
            os.kill(server.listener_pid, SIGKILL)
        for pending in waiting:
            who = pending.answer().json()
            assert who["slot"] == Ring(2).slot(socket.inet_aton(pending.address))
            assert who["pid"] == server.worker_pids[who["slot"]]


def test_killed_listener_leaves_the_channels() -> None:
    """Connections that wait in a busy worker's channel when the listener is killed are served by that worker."""
    busy, other = clients_of(0, 1, workers=2)[0], clients_of(1, 1, workers=2)[0]
    with Server("survivor:app", workers=2) as server, contextlib.ExitStack() as stack:
        with stopped(server.worker_pids[0]):
            waiting = [stack.enter_context(Pending(server.port, busy)) for _ in range(50)]
            wait_until_handed_off(server.port, other)
            mark = server.mark()
            os.kill(server.listener_pid, SIGKILL)
            server.wait_for_listener(after=mark)
        assert {pending.answer().json()["pid"] for pending in waiting} == {server.worker_pids[0]}


def test_stopped_listener() -> None:
    """A listener that hangs is replaced after --timeout; what it didn't accept is served; sessions go on."""
    clients = addresses(60)
    with Server("survivor:app", workers=2, args=(*KEEP, "--timeout", "4")) as server:
        with Sessions(server.port, clients[:8]) as sessions, contextlib.ExitStack() as stack:
            hanging = server.listener_pid
            mark = server.mark()
            with stopped(hanging):
                waiting = [stack.enter_context(Pending(server.port, address)) for address in clients[8:]]
                sessions.assert_unmoved()
                server.wait_for(rf"LISTENER TIMEOUT \(pid:{hanging}\)", after=mark)
                server.wait_for_listener(after=mark)
            assert all(pending.answer().status == 200 for pending in waiting)
            sessions.assert_unmoved()
        assert not server.find("WORKER TIMEOUT")


def test_killed_worker_twenty_times() -> None:
    """Only its own slot notices; the replacement serves what waited there; nothing is leaked, no zombie is left."""
    victim = 1
    own = clients_of(victim, 3, workers=4)
    others = [address for slot in (0, 2, 3) for address in clients_of(slot, 8, workers=4)]
    with Server("survivor:app", workers=4, args=KEEP) as server:

        def census() -> tuple[int, int, int]:
            return (
                descriptors(server.arbiter_pid),
                descriptors(server.listener_pid),
                children_and_zombies(server.arbiter_pid),
            )

        before = census()
        with Sessions(server.port, others[::4]) as sessions:
            with Load(server.port, others, threads=2) as load:
                listener = server.listener_pid
                for _ in range(20):
                    kill_while_clients_wait(server, victim, own, lambda: wait_until_handed_off(server.port, others[0]))
                load.wait_for(50)
            assert load.failures == []
            for address in others:
                assert len(load.pids(address)) <= 1
            sessions.assert_unmoved()
            assert server.listener_pid == listener
            wait_until(lambda: census() == before, what=f"as many as before: {before}")


@pytest.mark.parametrize("door", ["--preload", "listen()"])
def test_patched_arbiter(door: str, tmp_path: Path) -> None:
    """Where gevent's os.close is in the arbiter too, every connection and every dead listener's pipe is closed."""
    (tmp_path / "patched.py").write_text("from gevent import monkey; monkey.patch_all()\nfrom survivor import app\n")
    path = {"PYTHONPATH": os.fspath(APPS)}
    server = (
        Script(LISTEN, workers=2)
        if door == "listen()"
        else Server("patched:app", workers=2, args=("--preload",), env=path, cwd=tmp_path)
    )
    with server, Load(server.port, addresses(20)) as load:

        def replace_listener() -> int:
            mark = server.mark()
            os.kill(server.listener_pid, SIGKILL)
            return descriptors(server.wait_for_listener(after=mark))

        most = replace_listener() + 1
        before = descriptors(server.arbiter_pid)
        load.wait_for(200)
        assert descriptors(server.listener_pid) <= most, "one connection may be in its hands"
        assert replace_listener() <= most
        wait_until(lambda: descriptors(server.arbiter_pid) == before, what=f"the arbiter has {before} again")


HOOKS = """
{patch}
import subprocess

def when_ready(server):
    subprocess.run(["true"], check=True)

def pre_fork(server, worker):
    when_ready(server)

def child_exit(server, worker):
    when_ready(server)
"""


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"], ids=["plain", "patched"])
def test_killed_children_of_an_arbiter_whose_hooks_run_programs(patch: str, tmp_path: Path) -> None:
    """They are replaced at once, long before --timeout, though gevent takes SIGCHLD and exit statuses for itself."""
    (tmp_path / "hooks.py").write_text(HOOKS.format(patch=patch))
    args = ("-c", os.fspath(tmp_path / "hooks.py"), "--timeout", "600", "--graceful-timeout", "600")
    with Server(workers=2, args=args) as server:
        for _ in range(3):
            mark = server.mark()
            os.kill(server.worker_pids[0], SIGKILL)
            os.kill(server.worker_pids[1], SIGKILL)
            for slot in range(2):
                server.wait_for_worker(slot, after=mark)
            mark = server.mark()
            os.kill(server.listener_pid, SIGKILL)
            server.wait_for_listener(after=mark)
            assert get(server.port).status == 200
        assert server.stop() == 0


@pytest.mark.parametrize("victim", ["arbiter", "arbiter of listen()", "master of listen()"])
def test_killed_arbiter(victim: str) -> None:
    """Listener, workers and the master exit when the arbiter is killed, and all of it when the master is."""
    server = Server("survivor:app", workers=2) if victim == "arbiter" else Script(LISTEN, workers=2)
    with server, Load(server.port, addresses(20)) as load, websocket_to(server.port, "127.0.0.7") as session:
        load.wait_for(50)
        ask(session)
        pid = server.pid if victim.startswith("master") else server.arbiter_pid
        os.kill(pid, SIGKILL)
        with contextlib.suppress(OSError, websocket.WebSocketException):
            # Answers a closing handshake, if there is one.
            while session.recv():
                pass
        server.wait(10)
        server.assert_nothing_left()
        assert not alive(pid)


HOLDER = """
import os, signal
def when_ready(server):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    server.log.info("Holder (pid:%s)", pid)
"""


def test_killed_arbiter_whose_hook_has_forked(tmp_path: Path) -> None:
    """The listener exits with the arbiter although a process of a hook's holds copies of all descriptors."""
    (tmp_path / "hooks.py").write_text(HOLDER)
    with Server("survivor:app", workers=1, args=("-c", os.fspath(tmp_path / "hooks.py"))) as server:
        listener = server.listener_pid
        holder = int(server.wait_for(r"Holder \(pid:(\d+)\)").group(1))
        os.kill(server.arbiter_pid, SIGKILL)
        wait_until(lambda: not alive(listener), what="the listener has exited")
        os.kill(holder, SIGKILL)
        server.wait(10)
        server.assert_nothing_left()
