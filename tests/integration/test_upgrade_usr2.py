"""SIGUSR2: a new arbiter takes over; then either of the two can be told to quit."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGTTOU, SIGUSR2

import pytest

from harness import APPS, Server, addresses, alive, descriptors, get, wait_until
from pending import Gate, History, receive, send, stopped, take_turn, unix_send

CLIENTS = addresses(24)
BAD = "raise RuntimeError('this version is broken')\n"


def upgrade(server: Server) -> int:
    """SIGUSR2; the new arbiter's pid once it accepts."""
    mark = server.mark()
    server.signal(SIGUSR2)
    arbiter = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
    wait_for_listener_of(server, arbiter, mark)
    return arbiter


def wait_for_listener_of(server: Server, arbiter: int, mark: int) -> None:
    """Wait until a listener that is ready after the mark is this arbiter's child, or it accepts without one."""

    def ready() -> bool:
        pids = [int(found[1]) for found in server.find(r"(?:Listener|router) ready \(.*pid:(\d+)\)", after=mark)]
        # Where the kernel routes, the arbiter says so itself.
        return arbiter in pids or any(f"\nPPid:\t{arbiter}\n" in status_of(pid) for pid in pids)

    wait_until(ready, 20, f"arbiter {arbiter} has clients routed")


def status_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/status").read_text()
    return ""


def end(arbiter: int, number: int = SIGTERM) -> None:
    """Tell an arbiter that is no child of this process's program any more to end, and wait for it."""
    os.kill(arbiter, number)
    wait_until(lambda: not alive(arbiter), 30, f"arbiter {arbiter} is gone")


@contextlib.contextmanager
def watched(server: Server, switches: int) -> Iterator[History]:
    """Load that may see one change of arbiters for each switch, and no failure."""
    with History(server, CLIENTS) as load:
        load.wait_for(len(CLIENTS) * 2)
        yield load
        load.wait_for(len(CLIENTS) * 2)
    assert load.failures == []
    sequences = load.arbiters()
    assert set(sequences) == set(CLIENTS)
    assert all(len(sequence) <= 1 + switches for sequence in sequences.values()), sequences


@pytest.mark.parametrize(("door", "router"), [("gunicorn", "listener"), ("serve", "kernel")])
def test_new_arbiter_replaces_the_old_one(door: str, router: str, tmp_path: Path) -> None:
    """USR2, then TERM to the old one: the new one serves alone, with the old one's pid file; no request fails."""
    pid_file = tmp_path / "pid"
    with Server(workers=2, door=door, args=["--pid", str(pid_file)], router=router) as server:
        with watched(server, switches=1) as load:
            new = upgrade(server)
            assert pid_file.read_text() == f"{server.pid}\n"
            assert (tmp_path / "pid.2").read_text() == f"{new}\n"
            load.wait_for(len(CLIENTS) * 2)
            server.signal(SIGTERM)
            assert server.wait() == 0
            server.wait_for(rf"\[{new}\] \[INFO\] Master has been promoted")
            wait_until(lambda: pid_file.exists() and pid_file.read_text() == f"{new}\n", what="the file is renamed")
            assert not (tmp_path / "pid.2").exists()
        assert {sequence[-1] for sequence in load.arbiters().values()} == {new}
        end(new)
        server.assert_nothing_left()
        assert list(tmp_path.iterdir()) == []


def test_old_arbiter_takes_the_service_back(tmp_path: Path) -> None:
    """USR2, then TERM to the new one: the old one accepts again at once; no request fails; it can be done again."""
    pid_file = tmp_path / "pid"
    with Server(workers=2, args=["--pid", str(pid_file)]) as server:
        old, open_before = dict(server.worker_pids), descriptors(server.pid)
        with watched(server, switches=4) as load:
            for _ in range(2):
                new = upgrade(server)
                load.wait_for(len(CLIENTS) * 2)
                mark = server.mark()
                end(new)
                wait_for_listener_of(server, server.pid, mark)
                load.wait_for(len(CLIENTS) * 2)
        assert {sequence[-1] for sequence in load.arbiters().values()} == {server.pid}
        assert {get(server.port, "/", address).json()["pid"] for address in CLIENTS} == set(old.values())
        assert [it.name for it in tmp_path.iterdir()] == ["pid"]
        wait_until(lambda: descriptors(server.pid) == open_before, what="the old arbiter has closed what it opened")


def test_new_version_that_cannot_be_loaded(tmp_path: Path) -> None:
    """USR2 with an app that fails to import: the old arbiter goes on, and the next, repaired version can take over."""
    shutil.copy(APPS / "whoami.py", tmp_path / "version.py")
    good = (tmp_path / "version.py").read_text()
    args = ["--pid", "the.pid"]
    with Server("version:app", workers=2, args=args, cwd=tmp_path) as server:
        with watched(server, switches=1) as load:
            (tmp_path / "version.py").write_text(BAD)
            mark = server.mark()
            server.signal(SIGUSR2)
            server.wait_for("Reason: ", after=mark)
            failed = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
            wait_until(lambda: not alive(failed), what="the new arbiter is gone")
            assert len(server.find("Traceback", after=mark)) == len(server.find("^RuntimeError", after=mark)) == 1
            assert not (tmp_path / "the.pid.2").exists()
            load.wait_for(len(CLIENTS) * 2)
            assert not server.find("Listener ready", after=mark), "nobody needs another listener"

            (tmp_path / "version.py").write_text(good)
            new = upgrade(server)
            load.wait_for(len(CLIENTS) * 2)
            server.signal(SIGTERM)
            assert server.wait() == 0
        end(new)


def test_new_arbiter_that_cannot_be_started(tmp_path: Path) -> None:
    """USR2 when the directory it was started in is gone: one error in the log, and all workers go on."""
    place = tmp_path / "release"
    place.mkdir()
    with Server(workers=2, args=["--pythonpath", str(APPS)], cwd=place) as server:
        place.rmdir()
        mark = server.mark()
        server.signal(SIGUSR2)
        server.wait_for("The new arbiter can't be started", after=mark)
        server.wait_for("FileNotFoundError", after=mark)
        take_turn(server, server.pid)
        replies = {get(server.port, "/", address).json()["pid"] for address in CLIENTS}
        assert replies == set(server.worker_pids.values())
        assert not server.find("Worker exiting", after=mark)


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_several_binds_and_a_unix_socket(door: str, tmp_path: Path) -> None:
    """USR2 with several binds: all of them are served throughout, and the Unix socket goes with the last arbiter."""
    path = tmp_path / "socket"
    with Server(workers=2, door=door, bind=["127.0.0.1:0", f"unix:{path}", "127.0.0.1:0"]) as server:
        ports = server.ports
        before = [send(port, "/slow?seconds=1") for port in ports]
        new = upgrade(server)
        assert server.ports == ports
        assert [get(port).status for port in ports] == [200, 200]
        assert receive(unix_send(path)).status == 200
        server.signal(SIGTERM)
        assert [receive(it).status for it in before] == [200, 200]
        assert server.wait() == 0
        assert path.is_socket()
        assert [get(port).status for port in ports] == [200, 200]
        assert receive(unix_send(path)).status == 200
        end(new)
        server.assert_nothing_left()
        assert not path.exists()


def test_old_arbiter_ends_while_the_new_one_boots(tmp_path: Path) -> None:
    """TERM to the old arbiter before the new one is ready: who connects meanwhile is served by the new."""
    gate = Gate(tmp_path)
    with Server("gated:app", workers=2, env=gate.env) as server:
        gate.close()
        mark = server.mark()
        server.signal(SIGUSR2)
        new = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
        server.wait_for("Booting worker", after=mark, count=2)
        server.signal(SIGTERM)
        assert server.wait() == 0
        waiting = [send(server.port, "/", address) for address in CLIENTS]
        gate.open()
        pids = {receive(it).json()["pid"] for it in waiting}
        server.wait_for("Worker ready", after=mark, count=2)
        assert pids == set(server.worker_pids.values())
        end(new)


def test_both_arbiters_end_at_once(tmp_path: Path) -> None:
    """TERM to both, as from systemd: whoever is the last removes the files."""
    files = tmp_path / "files"
    files.mkdir()
    args = ("--bus-socket", str(files / "bus"), "--pid", str(files / "pid"))
    with Server(workers=1, door="serve", bind=[f"unix:{files / 'app'}"], args=args, ready=False) as server:
        server.wait_for("Worker ready")
        mark = server.mark()
        server.signal(SIGUSR2)
        new = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
        server.wait_for("Booting worker", after=mark)
        with stopped(server.pid, new):
            server.signal(SIGTERM)
            os.kill(new, SIGTERM)
        assert server.wait() == 0
        server.assert_nothing_left()
        assert list(files.iterdir()) == []


def test_socket_that_only_one_arbiter_has(tmp_path: Path) -> None:
    """The old arbiter opens another while it rests: the file goes with it, and the others stay the new one's."""
    shared, other, config = tmp_path / "shared", tmp_path / "other", tmp_path / "conf.py"
    config.write_text(f"bind = ['unix:{shared}']")
    with Server(workers=1, bind=(), args=("-c", str(config)), ready=False) as server:
        server.wait_for("Worker ready")
        new = upgrade(server)
        config.write_text(f"bind = ['unix:{shared}', 'unix:{other}']")
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for("Worker ready", after=mark)
        assert other.exists()
        server.signal(SIGTERM)
        assert server.wait() == 0
        assert not other.exists()
        assert receive(unix_send(shared)).status == 200
        end(new)
        server.assert_nothing_left()
    assert not shared.exists()


def test_new_listener_waits_for_the_old_one() -> None:
    """The new arbiter accepts only when the old one's listener has ceased to, however long that takes."""
    with Server(workers=1) as server:
        with stopped(server.listener_pid):
            mark = server.mark()
            server.signal(SIGUSR2)
            new = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
            server.wait_for("Worker ready", after=mark)
            take_turn(server, new)
            take_turn(server, server.pid)
            take_turn(server, new)
            waiting = [send(server.port, "/", address) for address in CLIENTS]
            assert not server.find("Listener ready", after=mark)
        wait_for_listener_of(server, new, mark)
        arbiter_of = {server.worker_pids[0]: new}
        late = {arbiter_of.get(get(server.port, "/", address).json()["pid"]) for address in CLIENTS}
        assert late == {new}
        assert [receive(it).status for it in waiting] == [200] * len(CLIENTS)
        server.signal(SIGTERM)
        assert server.wait() == 0
        end(new)


def test_old_listener_waits_for_the_new_one() -> None:
    """When the new arbiter ends, the old one accepts only when the new one's listener has ceased to."""
    with Server(workers=1) as server:
        new = upgrade(server)
        with stopped(server.listener_pid):
            mark = server.mark()
            os.kill(new, SIGTERM)
            server.wait_for(rf"\[{new}\] \[INFO\] Handling signal: term", after=mark)
            take_turn(server, server.pid)
            assert not server.find("Listener ready", after=mark)
        wait_for_listener_of(server, server.pid, mark)
        wait_until(lambda: not alive(new), what="the new arbiter is gone")


def test_signals_while_two_arbiters_live() -> None:
    """A second USR2 is ignored by both; the old arbiter can be resized while it rests; INT to it ends only it."""
    with Server(workers=2) as server:
        new = upgrade(server)
        server.signal(SIGUSR2)
        server.wait_for(rf"\[{server.pid}\] \[WARNING\] USR2 signal ignored. Child exists")
        os.kill(new, SIGUSR2)
        server.wait_for(rf"\[{new}\] \[WARNING\] USR2 signal ignored. Parent exists")
        mark = server.mark()
        server.signal(SIGTTOU)
        take_turn(server, server.pid)
        server.wait_for("Worker exiting", after=mark)
        assert not server.find("Listener ready", after=mark)
        server.signal(SIGINT)
        assert server.wait() == 0
        assert {get(server.port, "/", address).status for address in CLIENTS} == {200}
        end(new)


def test_reload_of_the_new_arbiter(tmp_path: Path) -> None:
    """HUP to the new arbiter while the old one lives: it reloads, and each keeps its pid file."""
    pid_file = tmp_path / "pid"
    with Server(workers=2, args=["--pid", str(pid_file)]) as server:
        new = upgrade(server)
        mark = server.mark()
        os.kill(new, SIGHUP)
        for slot in range(2):
            server.wait_for_worker(slot, after=mark)
        assert pid_file.read_text() == f"{server.pid}\n"
        assert (tmp_path / "pid.2").read_text() == f"{new}\n"
        server.signal(SIGTERM)
        assert server.wait() == 0
        wait_until(lambda: pid_file.exists() and pid_file.read_text() == f"{new}\n", what="the file is renamed")
        end(new)
        assert list(tmp_path.iterdir()) == []
