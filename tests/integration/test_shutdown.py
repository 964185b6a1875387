"""SIGTERM: the listener stops first, what was accepted is served. SIGINT and SIGQUIT: at once."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM
from socket import SO_LINGER, SOL_SOCKET

import pytest

from harness import (
    ADDRESS,
    ROUTERS,
    Client,
    Load,
    Server,
    addresses,
    alive,
    connect,
    get,
    wait_until,
)
from pending import Gate, client_of, is_refused, receive, send, stopped, unix_send
from wire import Wire

# What a shutdown may take beside the time that it waits for something on purpose: a busy machine is slow. What it waits
# for by mistake would take longer: the default graceful timeout is 30.
SLACK_SECONDS = 15.0


def assert_ends(server: Server, within: float) -> None:
    """The server ends in order, in so many seconds and some slack."""
    began = time.monotonic()
    assert server.wait() == 0
    assert time.monotonic() - began < within + SLACK_SECONDS
    server.assert_nothing_left()


BODY = b"body"


def send_all_but_the_body(wire: Wire) -> None:
    """Have ``homes:app`` be at a request until the test sends the body."""
    wire.send("POST /digest HTTP/1.1", "Host: test", f"Content-Length: {len(BODY)}")


def is_told_to_end(pid: int) -> bool:
    """Whether SIGTERM waits for a process that is stopped; the listener has handed over everything before. proc(5)."""
    pending = re.search(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert pending
    return bool(int(pending[1], 16) >> SIGTERM - 1 & 1)


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_backlog_and_channels_are_served(door: str) -> None:
    """TERM: connections that wait in the kernel's backlog or in a channel get their answers."""
    with Server(workers=2, door=door) as server:
        busy = client_of(0, 2)
        with stopped(server.worker_pids[0]):
            in_channel = [send(server.port, "/", busy) for _ in range(8)]
            # The listener takes connections in order, so these have arrived in the channel now.
            get(server.port, "/", client_of(1, 2))
            with stopped(server.listener_pid):
                in_backlog = [send(server.port, "/", address) for address in addresses(60)]
                server.signal(SIGTERM)
                server.wait_for("Handling signal: term")
        assert {receive(it).json()["slot"] for it in in_channel} == {0}
        assert {receive(it).json()["slot"] for it in in_backlog} == {0, 1}
        assert_ends(server, 0)
        assert is_refused(server.port)


def test_all_processes_are_told() -> None:
    """TERM for all at once, as systemd sends it by default: nothing about it is an error."""
    with Server(workers=2) as server:
        listener = server.listener_pid
        with stopped(server.pid):
            for pid in (listener, *server.worker_pids.values(), server.pid):
                os.kill(pid, SIGTERM)
            wait_until(lambda: not os.path.exists(f"/proc/{listener}/fd/0"), what="the listener has ended")
        assert_ends(server, 0)
        assert server.find(rf"The listener \(pid:{listener}\) ended with status 0")
        assert not server.find(r"\[(WARNING|ERROR|CRITICAL)\]")


@pytest.mark.parametrize("router", ROUTERS)
def test_full_worker(router: str) -> None:
    """TERM: what waits in the channel of a worker that is full is served when there is room, and then it ends."""
    with Server(workers=1, args=("--worker-connections", "1"), router=router) as server:
        slow = send(server.port, "/slow?seconds=1")
        waiting = [send(server.port) for _ in range(3)]
        server.signal(SIGTERM)
        assert [receive(it).status for it in (slow, *waiting)] == [200] * 4
        assert_ends(server, 0)


def test_last_in_the_channel_is_gone() -> None:
    """TERM: a worker ends when its channel is empty, also if the last client in it has closed its connection."""
    with Server(workers=1) as server:
        with stopped(server.worker_pids[0]):
            waiting = send(server.port)
            gone = connect(server.port)
            server.signal(SIGTERM)
            wait_until(lambda: is_told_to_end(server.worker_pids[0]))
            # Closing with a reset.
            gone.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            gone.close()
        assert receive(waiting).status == 200
        assert_ends(server, 0)


def test_silent_client_in_the_channel() -> None:
    """TERM: one that has not sent anything is not waited for any longer than if the worker had it already."""
    with Server(workers=1) as server, contextlib.closing(connect(server.port, ADDRESS)) as silent:
        with stopped(server.worker_pids[0]):
            server.signal(SIGTERM)
            wait_until(lambda: is_told_to_end(server.worker_pids[0]))
        assert_ends(server, 2)
        assert not silent.recv(1)


def test_channel_that_is_read_in_one_turn() -> None:
    """TERM: the same where there were as many as the worker takes at once."""
    with Server(workers=1) as server:
        with stopped(server.worker_pids[0]):
            waiting = [send(server.port) for _ in range(64)]
            server.signal(SIGTERM)
            wait_until(lambda: is_told_to_end(server.worker_pids[0]))
        assert [receive(it).status for it in waiting] == [200] * 64
        assert_ends(server, 0)


@pytest.mark.parametrize("router", ROUTERS)
def test_load_ends_cleanly(router: str) -> None:
    """TERM under load: whoever was connected is answered, the others are refused.

    Who connects in the very moment between the last accept and the close is reset: the kernel has no way out of that.
    """
    with Server(workers=2, router=router) as server, Load(server.port, addresses(40)) as load:
        load.wait_for(200)
        assert server.stop() == 0
        load.wait_for(40)
    assert load.replies.total() >= 200
    # One for each of the clients that connect at once.
    assert len([failure for failure in load.failures if "ConnectionRefusedError" not in failure]) <= 4


def test_listener_stops_first_and_slow_requests_finish() -> None:
    """TERM: nobody can connect any more while the requests under way finish."""
    with Server("homes:app", workers=2) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Wire(server.port, address)) for address in addresses(20)]
        for wire in slow:
            send_all_but_the_body(wire)
        for address in addresses(20):
            get(server.port, "/", address)
        server.signal(SIGTERM)
        wait_until(lambda: is_refused(server.port), what="the port is closed")
        assert all(map(alive, server.worker_pids.values()))
        for wire in slow:
            wire.sock.sendall(BODY)
        assert {wire.answer().json()["slot"] for wire in slow} == {0, 1}
        assert_ends(server, 0)


def test_connection_without_a_request_yet() -> None:
    """TERM: a client that had connected, and whose request comes a moment later, is served; idle ones are closed."""
    with Server(workers=1) as server:
        early = connect(server.port, ADDRESS)
        with Client(server.port, ADDRESS) as idle:
            # The worker takes connections in order, so it has the first one now.
            assert idle.get("/").status == 200
            server.signal(SIGTERM)
            assert idle.sock.recv(1) == b""
            early.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = b"".join(iter(lambda: early.recv(4096), b""))
            early.close()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert_ends(server, 0)


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_sockets_and_files_are_removed(door: str, tmp_path: Path) -> None:
    """TERM: exit status 0, and neither Unix sockets nor the pid file are left, also with several binds."""
    pid_file, path = tmp_path / "pid", tmp_path / "socket"
    binds = ["127.0.0.1:0", f"unix:{path}", "127.0.0.1:0"]
    with Server(workers=2, door=door, bind=binds, args=["--pid", str(pid_file)]) as server:
        assert pid_file.read_text() == f"{server.pid}\n"
        assert [get(port).status for port in server.ports] == [200, 200]
        assert receive(unix_send(path)).status == 200
        with stopped(server.listener_pid):
            waiting = unix_send(path)
            server.signal(SIGTERM)
            server.wait_for("Handling signal: term")
        assert receive(waiting).status == 200
        assert_ends(server, 0)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [SIGINT, SIGQUIT])
def test_quick_shutdown(number: int) -> None:
    """INT and QUIT don't wait for requests under way, and the exit status is 0 all the same."""
    with Server(workers=2) as server:
        slow = send(server.port, "/slow?seconds=60")
        get(server.port)
        server.signal(number)
        assert_ends(server, 0)
        slow.close()


def test_second_signal_during_shutdown() -> None:
    """A second TERM changes nothing, INT makes a graceful shutdown a quick one."""
    with Server(workers=1) as server:
        slow, slower = send(server.port, "/slow?seconds=1"), send(server.port, "/slow?seconds=60")
        get(server.port)
        server.signal(SIGTERM)
        server.wait_for("Handling signal: term")
        server.signal(SIGTERM)
        assert receive(slow).status == 200
        assert server.running()
        server.signal(SIGINT)
        assert_ends(server, 2)
        slower.close()


def test_graceful_timeout_is_for_everything() -> None:
    """TERM: a worker that hangs with connections waiting for it delays the end by graceful_timeout, not more."""
    with Server(workers=2, args=["--graceful-timeout", "4"]) as server:
        hung = client_of(0, 2)
        with stopped(server.worker_pids[0]):
            # More than a channel holds: the listener waits for room.
            waiting = [send(server.port, "/", hung) for _ in range(400)]
            server.signal(SIGTERM)
            began = time.monotonic()
            assert server.wait() == 0
            # Not once for the listener and once for the worker.
            assert time.monotonic() - began < 2 * 4
            for client in waiting:
                client.close()


def test_quick_shutdown_while_the_listener_waits_for_room() -> None:
    """INT after TERM: the listener does not wait any longer for a worker that hangs."""
    with Server(workers=2) as server:
        hung = client_of(0, 2)
        with stopped(server.worker_pids[0]):
            waiting = [send(server.port, "/", hung) for _ in range(400)]
            server.signal(SIGTERM)
            server.wait_for("Handling signal: term")
            server.signal(SIGINT)
            assert_ends(server, 2)
            for client in waiting:
                client.close()


def test_term_to_everybody_at_once() -> None:
    """TERM to all processes, as service managers send it: who was connected is served even if workers end first."""
    with Server(workers=2) as server:
        workers = list(server.worker_pids.values())
        with stopped(server.listener_pid):
            in_backlog = [send(server.port, "/", address) for address in addresses(20)]
            os.killpg(server.pid, SIGTERM)
            wait_until(lambda: not any(map(alive, workers)), what="the workers are gone")
        replies = [receive(it).json() for it in in_backlog]
        assert {reply["slot"] for reply in replies} == {0, 1}
        assert not {reply["pid"] for reply in replies} & set(workers)
        assert_ends(server, 0)


def test_connections_of_a_worker_that_was_just_killed() -> None:
    """TERM right after a worker's death: what waited in its channel is served all the same."""
    with Server(workers=2) as server:
        client = client_of(1, 2)
        with stopped(server.worker_pids[1], server.pid):
            waiting = [send(server.port, "/", client) for _ in range(8)]
            get(server.port, "/", client_of(0, 2))
            os.kill(server.worker_pids[1], SIGKILL)
            server.signal(SIGTERM)
        assert {receive(it).json()["slot"] for it in waiting} == {1}
        assert_ends(server, 0)


def test_backlog_of_a_listener_that_was_just_killed() -> None:
    """TERM right after the listener's death: what waited in the kernel for it is served all the same."""
    with Server(workers=2) as server:
        with stopped(server.listener_pid, server.pid):
            waiting = [send(server.port, "/", address) for address in addresses(20)]
            os.kill(server.listener_pid, SIGKILL)
            wait_until(lambda: not alive(server.listener_pid), what="the listener is dead")
            server.signal(SIGTERM)
        assert {receive(it).json()["slot"] for it in waiting} == {0, 1}
        assert_ends(server, 0)


def test_term_while_booting(tmp_path: Path) -> None:
    """TERM while the app is being imported: what waits is served when it is done, and the exit status is 0."""
    gate = Gate(tmp_path)
    gate.close()
    with Server("gated:app", workers=2, env=gate.env, ready=False) as server:
        server.wait_for("Listener ready")
        waiting = [send(server.port, "/", address) for address in addresses(10)]
        server.signal(SIGTERM)
        server.wait_for("Handling signal: term")
        wait_until(lambda: is_refused(server.port), what="the port is closed")
        gate.open()
        assert {receive(it).json()["slot"] for it in waiting} == {0, 1}
        assert_ends(server, 0)


def test_term_while_an_import_hangs(tmp_path: Path) -> None:
    """TERM while the app's import hangs: the end comes after graceful_timeout, with status 0."""
    gate = Gate(tmp_path)
    gate.close()
    with Server("gated:app", workers=2, env=gate.env, args=["--graceful-timeout", "1"], ready=False) as server:
        server.wait_for("Listener ready")
        server.signal(SIGTERM)
        assert_ends(server, 1)


def test_term_while_new_code_boots(tmp_path: Path) -> None:
    """TERM while HUP's new workers boot: requests under way finish, exit status 0."""
    gate = Gate(tmp_path)
    with Server("gated:app", workers=2, env=gate.env, args=["--graceful-timeout", "3"]) as server:
        slow = send(server.port, "/slow?seconds=1")
        get(server.port)
        gate.close()
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for("Booting worker", after=mark, count=2)
        server.signal(SIGTERM)
        assert receive(slow).status == 200
        assert_ends(server, 3)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_end_while_old_workers_finish(number: int) -> None:
    """While HUP's old workers finish: TERM lets them, INT doesn't, neither waits for the reload's end."""
    with Server("homes:app", workers=2) as server, Wire(server.port) as slow:
        send_all_but_the_body(slow)
        get(server.port)
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for_listener(after=mark)
        server.signal(number)
        server.wait_for(f"Handling signal: {number.name.removeprefix('SIG').lower()}", after=mark)
        if number == SIGTERM:
            slow.sock.sendall(BODY)
            assert slow.answer().status == 200
        assert_ends(server, 0)
