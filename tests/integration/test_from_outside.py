"""Messages from processes that are no workers: to everybody, once and in order, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR2
from typing import Any

import pytest

from harness import APPS, COMMANDS, Script, Server, alive, descriptors, get, make_certificate, wait_until
from members import Member, members
from midway import clients_of
from sticky_session import ClusterError, ClusterManager

WORKERS = 2
MOST_BEHIND = 50
# Of the first and the second worker, however many there are.
CLIENTS = [*clients_of(0, 1, workers=WORKERS), *clients_of(1, 1, workers=WORKERS)]


def server_with(path: Path, *args: str, app: str = "cluster:app", workers: int = WORKERS, **more: Any) -> Server:
    return Server(app, workers=workers, args=("--bus-socket", os.fspath(path), *args), door="serve", **more)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bus") / "bus.sock"


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    with server_with(path) as server:
        yield server


@pytest.fixture(params=["polling", "websocket"])
def pair(server: Server, request: pytest.FixtureRequest) -> Iterator[list[Member]]:
    """Two clients on different workers."""
    with members(server.port, CLIENTS, request.param, ["/", "/other"]) as both:
        assert [member.who()["slot"] for member in both] == [0, 1]
        yield both


def outside(path: Path) -> ClusterManager:
    return ClusterManager(write_only=True, path=path)


def heard(manager: ClusterManager, receivers: list[Member]) -> list[list[tuple[str, tuple[Any, ...]]]]:
    """What each has received by now; what a manager sent before this is among it."""
    manager.emit("fence", None)
    return [receiver.until("fence") for receiver in receivers]


def emit(*arguments: str, path: Path | None = None, status: int = 0, stdin: str = "", **env: str) -> str:
    """Run ``sticky-session emit``.

    :returns: what it prints to standard error
    """
    command = [COMMANDS / "sticky-session", "emit", *arguments]
    if path is not None:
        command += ["--path", path]
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )
    assert done.stdout == ""
    assert done.returncode == status, done.stderr
    return done.stderr


# --- what a manager outside can do


def test_emit(path: Path, pair: list[Member]) -> None:
    """Data of all kinds reach the clients of all workers, once and in order."""
    manager = outside(path)
    manager.emit("a", {"x": [1, None, "ä"]})
    manager.emit("b", ("two", "arguments"))
    manager.emit("c", {"bytes": b"\0\1"})
    manager.emit("d", "x" * 5_000_000)
    for number in range(10):
        manager.emit("n", number)
    expected = [("a", ({"x": [1, None, "ä"]},)), ("b", ("two", "arguments")), ("c", ({"bytes": b"\0\1"},))]
    expected += [("d", ("x" * 5_000_000,)), *[("n", (number,)) for number in range(10)]]
    assert heard(manager, pair) == [expected] * 2


def test_some_clients(path: Path, pair: list[Member]) -> None:
    """Rooms, one client, skipped ones, namespaces."""
    manager = outside(path)
    pair[1].do("enter_room", pair[1].sid(), "room")
    manager.emit("room", 1, to="room")
    manager.emit("room", 2, room=["room", pair[0].sid()])
    manager.emit("one", 3, to=pair[0].sid())
    manager.emit("most", 4, skip_sid=pair[0].sid())
    assert heard(manager, pair) == [
        [("room", (2,)), ("one", (3,))],
        [("room", (1,)), ("room", (2,)), ("most", (4,))],
    ]
    manager.emit("other", 5, namespace="/other")
    assert [member.next("/other") for member in pair] == [("other", (5,))] * 2


def test_other_methods(path: Path, pair: list[Member]) -> None:
    """Clients of any worker enter and leave rooms and are disconnected."""
    manager = outside(path)
    for member in pair:
        manager.enter_room(member.sid(), "/", "room")
    manager.emit("in", 1, to="room")
    manager.leave_room(pair[0].sid(), "/", "room")
    manager.emit("in", 2, to="room")
    manager.close_room("room")
    manager.emit("in", 3, to="room")
    assert heard(manager, pair) == [[("in", (1,))], [("in", (1,)), ("in", (2,))]]
    manager.disconnect(pair[1].sid(), "/")
    assert pair[1].next()[0] == "disconnect"
    assert heard(manager, pair[:1]) == [[]]


def test_callbacks(path: Path) -> None:
    """Nobody outside can be answered, and that is said."""
    with pytest.raises(RuntimeError, match="Callbacks"):
        outside(path).emit("e", 1, to="room", callback=print)


# --- the command


def test_command(path: Path, pair: list[Member]) -> None:
    """It emits what it is told, JSON from its arguments or from standard input, to whom it is told."""
    pair[0].do("enter_room", pair[0].sid(), "room")
    emit("a", '{"x": ["ä", 1.5]}', path=path)
    emit("b", "-", path=path, stdin="[1, 2]")
    emit("c", path=path)
    emit("d", "null", "--room", "room", path=path)
    emit("e", '"text"', STICKY_SESSION_BUS_SOCKET=os.fspath(path))
    emit("fence", path=path)
    everybody = [("a", ({"x": ["ä", 1.5]},)), ("b", ([1, 2],)), ("c", ()), ("e", ("text",))]
    assert [member.until("fence") for member in pair] == [[*everybody[:3], ("d", ()), everybody[3]], everybody]
    emit("f", "1", "--namespace", "/other", path=path)
    assert [member.next("/other") for member in pair] == [("f", (1,))] * 2


@pytest.mark.parametrize(
    ("arguments", "stdin", "complaint"),
    [
        (("e", "{"), "", "'{': expected JSON: Expecting property name"),
        (("e", '{"a":\n1,\n}'), "", r"""'{"a":\n1,\n}': expected JSON"""),
        (("e", "nonsense"), "", "'nonsense': expected JSON"),
        (("e", "NaN"), "", "'NaN': expected JSON: NaN is not in JSON"),
        (("e", "-"), "", "standard input: expected JSON"),
        (("e", "-"), "\udce4", "standard input: expected JSON: 'utf-8' codec can't decode byte 0xe4"),
        (("e", "-"), "[" * 100_000, "standard input: expected JSON"),
        (("e", '"' + "x" * 10_000), "", "xxx: expected JSON"),
        ((), "", "the following arguments are required: EVENT"),
        (("e", "1", "2"), "", "unrecognized arguments: 2"),
        (("e", "1", "--channel", "c" * 300), "", "a name of at most 255"),
        (("e", "-"), '"' + "x" * (64 * 2**20) + '"', "expected at most 67108864"),
        (("e", "[" * 900 + "]" * 900), "", "too many lists or objects within each other"),
        (("e", "[1e999]"), "", "'[1e999]': expected JSON: 1e999 is too large"),
        (("e", "1" + "0" * 100), "", "expected JSON: an integer of 101 characters; expected at most 100"),
        (("e", "-x"), "", "unrecognized arguments: -x"),
        (("\udce4", "1"), "", r"'\udce4': expected UTF-8"),
        (("e", "1", "--path", "/no\nfile"), "", "/no file: No such file or directory; expected the bus socket"),
    ],
)
def test_bad_arguments(path: Path, server: Server, arguments: tuple[str, ...], stdin: str, complaint: str) -> None:
    """One clear line, status 2, and nothing happens to the cluster."""
    mark = server.mark()
    with members(server.port, CLIENTS, "websocket") as pair:
        [line] = emit(*arguments, stdin=stdin, status=2, STICKY_SESSION_BUS_SOCKET=os.fspath(path)).splitlines()
        assert complaint in line
        assert len(line) < 300
        assert heard(outside(path), pair) == [[], []]
    assert server.lines(mark) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--namespace", "other"), "emit: namespace 'other': expected text that begins with /"),
        (("--channel", "other"), "channel 'other': expected one that a Socket.IO server of the app has: socketio"),
    ],
)
def test_nobody_would_hear(path: Path, server: Server, arguments: tuple[str, ...], complaint: str) -> None:
    """What no client can be reached by is refused by the worker, which says so in its log, too."""
    mark = server.mark()
    assert emit("e", *arguments, path=path, status=2) == f"sticky-session emit: {path}: {complaint}\n"
    server.wait_for(f"A message from outside was refused: {complaint}", after=mark)


def test_two_servers(tmp_path: Path) -> None:
    """An app's two servers have channels that the log and the complaint name, and each is reached by its own."""
    path = tmp_path / "bus.sock"
    with server_with(path, app="two_servers:app") as server:
        (said,) = server.find(r"The app's Socket.IO servers .* by the channels (\S+) and (\S+)")
        names = said.groups()
        assert emit("e", path=path, status=2).endswith(f"a Socket.IO server of the app has: {', '.join(names)}\n")
        with members(server.port, CLIENTS, "websocket") as pair:
            for event in ("e", "fence"):
                for name in names:
                    emit(event, json.dumps(name), "--channel", name, path=path)
            first, other = (member.until("fence") for member in pair)
        assert first == other
        assert first in [[("e", (name,))] for name in names]


def test_no_server(tmp_path: Path) -> None:
    """A path where nobody is, or no path."""
    assert "No such file or directory; expected the bus socket" in emit("e", path=tmp_path / "nobody", status=2)
    none = "expected the server's bus socket, --path or STICKY_SESSION_BUS_SOCKET\n"
    assert emit("e", status=2).endswith(none)
    assert emit("e", "--path", "", status=2, STICKY_SESSION_BUS_SOCKET="/run/bus").endswith(none)
    assert emit("e", status=2, STICKY_SESSION_BUS_SOCKET="").endswith(none)
    assert emit("e", status=2, STICKY_SESSION_BUS_SOCKET="OFF").endswith(none)
    (tmp_path / "file").write_text("")
    assert "Connection refused; expected the bus socket" in emit("e", path=tmp_path / "file", status=2)


def test_no_standard_input(tmp_path: Path) -> None:
    """A process that was started without one has nothing to read there."""
    command = f"exec {COMMANDS / 'sticky-session'} emit e - --path {tmp_path} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sticky-session emit: standard input: expected JSON")


def test_garbage(path: Path, server: Server) -> None:
    """What is no message ends its own connection with a line in the log, and disturbs nobody."""
    before = {pid: descriptors(pid) for pid in (server.listener_pid, *server.worker_pids.values())}
    with members(server.port, CLIENTS, "websocket") as pair, contextlib.ExitStack() as stack:
        mark = server.mark()
        for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000), b"\1\0\0\0\0\2{}", b"\1\0\xff\xff\xff\xff"):
            garbage = socket.socket(socket.AF_UNIX)
            with garbage:
                garbage.settimeout(10)
                garbage.connect(os.fspath(path))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    garbage.sendall(data)
                    while garbage.recv(4096):
                        pass
        server.wait_for("A message from outside was refused", count=4, after=mark)
        # And some that never come to an end.
        for _ in range(50):
            slow = stack.enter_context(socket.socket(socket.AF_UNIX))
            slow.connect(os.fspath(path))
            slow.sendall(b"\1\0\0\0\1\0{")
        assert heard(outside(path), pair) == [[], []]
        assert "Traceback" not in server.log

    def all_closed() -> bool:
        return all(descriptors(pid) <= count for pid, count in before.items())

    wait_until(all_closed, what="no descriptor is left")


# --- the file


def mode_of(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


def test_only_when_asked_for(tmp_path: Path) -> None:
    """Without the option there is no file, and the file of one goes with its server."""
    with server_with(tmp_path / "bus", app="whoami:app"):
        assert mode_of(tmp_path / "bus") == "srw-------"
    assert list(tmp_path.iterdir()) == []
    with Server(workers=1, cwd=APPS, env={"TMPDIR": os.fspath(tmp_path)}):
        assert list(tmp_path.rglob("*.sock")) == []


def test_file_goes_where_gunicorns_stay(tmp_path: Path) -> None:
    """gunicorn leaves what it shares with other servers, but nobody shares the bus socket."""
    with server_with(tmp_path / "bus", "--reuse-port", app="whoami:app"):
        assert (tmp_path / "bus").is_socket()
    assert list(tmp_path.iterdir()) == []


def test_mode(tmp_path: Path) -> None:
    """Who may use it is the user's to say; the umask is none of it."""
    with server_with(tmp_path / "bus", "--bus-socket-mode", "666", "--umask", "0077", app="whoami:app"):
        assert mode_of(tmp_path / "bus") == "srw-rw-rw-"


def test_stale_file(tmp_path: Path) -> None:
    """What a killed server has left is replaced; what somebody listens on, and other files, never."""
    path = tmp_path / "bus"
    with server_with(path, app="whoami:app") as server:
        server.kill()
    assert path.is_socket()
    with server_with(path) as server:
        with server_with(path, app="whoami:app", ready=False) as second:
            assert second.wait() == 1
            assert f"bus_socket={path}: Address already in use" in second.log
            second.assert_nothing_left()
        outside(path).emit("e", 1)
        assert server.running
    path.write_text("mine")
    for place, why in ((path, "Address already in use"), (tmp_path / "no" / "bus", "No such file or directory")):
        with server_with(place, app="whoami:app", ready=False) as second:
            assert second.wait() == 1
            assert f"bus_socket={place}: {why}; expected a path where a socket can be made" in second.log
    assert path.read_text() == "mine"


def test_folder_is_locked(tmp_path: Path) -> None:
    """Who locks the folder, as everybody may with /tmp, keeps no server from starting."""
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with server_with(tmp_path / "bus", app="whoami:app"):
            assert (tmp_path / "bus").is_socket()
    finally:
        os.close(folder)


def test_file_of_another_server(tmp_path: Path) -> None:
    """A server whose file somebody has removed leaves alone the one that another has made there."""
    path = tmp_path / "bus"
    with server_with(path, app="whoami:app") as first:
        path.unlink()
        with server_with(path):
            first.stop()
            outside(path).emit("e", 1)
    assert not path.exists()


def test_without_a_bus(tmp_path: Path) -> None:
    """There must be a bus to send to."""
    with server_with(tmp_path / "bus", "--no-bus", ready=False) as server:
        assert server.wait() == 1
        assert "with bus=0: there is no bus to send to" in server.log
    assert list(tmp_path.iterdir()) == []


# --- every kind of server


def test_gunicorn(tmp_path: Path) -> None:
    """gunicorn's own command takes it from the environment; TLS and trusted headers are not for this socket."""
    certificate, key = make_certificate(tmp_path)
    path = tmp_path / "bus"
    args = ("--keyfile", os.fspath(key), "--certfile", os.fspath(certificate), "--proxy-protocol", "v1")
    env = {"STICKY_SESSION_BUS_SOCKET": os.fspath(path)}
    with Server("cluster:app", workers=2, args=args, env=env):
        outside(path).emit("e", 1)
    unix = tmp_path / "requests"
    with Server("cluster:app", workers=2, bind=[f"unix:{unix}", "127.0.0.1:0"], env=env) as server:
        with members(server.port, CLIENTS, "websocket") as pair:
            manager = outside(path)
            manager.emit("e", 1)
            assert heard(manager, pair) == [[("e", (1,))]] * 2
        assert "unix:" + os.fspath(path) not in server.log
    assert not path.exists()


SCRIPT = """
from gevent import monkey; monkey.patch_all()
import socketio
import sticky_session
sio = socketio.Server(async_mode="gevent")
app = socketio.WSGIApp(sio)
if not sticky_session.listen(app, "127.0.0.1:0", workers=2, sticky_bus_socket={path!r}):
    print("master")
"""


def test_listen(tmp_path: Path) -> None:
    """``listen()`` takes it as a setting."""
    path = tmp_path / "bus"
    with Script(SCRIPT.format(path=os.fspath(path)), workers=2) as server:
        with members(server.port, CLIENTS, "polling") as pair:
            manager = outside(path)
            manager.emit("e", 1)
            assert heard(manager, pair) == [[("e", (1,))]] * 2
        server.stop()
    assert not path.exists()


# --- while workers come and go


class Stream:
    """Emits numbers, one after the other, in a thread; a context manager.

    :param listener: a client that is not to be more than some numbers behind, so that no worker queues them
    """

    def __init__(self, path: Path, listener: Member | None = None) -> None:
        self._manager = outside(path)
        self._listener = listener
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self.errors: list[ClusterError] = []

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._manager.emit("n", self.sent)
            except ClusterError as error:
                self.errors.append(error)
            self.sent += 1
            if self._listener is not None:
                wait_until(self._is_heard, what="the client keeps up")

    def _is_heard(self) -> bool:
        assert self._listener is not None
        return self._listener.events.qsize() + len(self.errors) >= self.sent - MOST_BEHIND

    def wait_for_more(self, count: int = 50) -> None:
        goal = self.sent + count
        wait_until(lambda: self.sent >= goal, what="more is sent")

    def __enter__(self) -> Stream:
        self._thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        # By the same connection: what comes by another one may come earlier.
        with contextlib.suppress(ClusterError):
            self._manager.emit("end", None)


def numbers(member: Member) -> list[int]:
    return [args[0] for event, args in member.until("end") if event == "n"]


def test_workers_leave(tmp_path: Path) -> None:
    """Workers are added and taken away while somebody emits: a client that stays hears all, once and in order."""
    path = tmp_path / "bus"
    with server_with(path) as server, members(server.port, CLIENTS[:1], "websocket") as [member]:
        with Stream(path) as stream:
            for _ in range(3):
                for number in (SIGTTIN, SIGTTOU):
                    mark = server.mark()
                    server.signal(number)
                    server.wait_for_listener(after=mark)
                    stream.wait_for_more()
                mark = server.mark()
                os.kill(server.worker_pids[1], SIGTERM)
                server.wait_for_worker(1, after=mark)
                stream.wait_for_more()
        assert stream.errors == []
        found = numbers(member)
        assert found == list(range(stream.sent))


def test_worker_killed(tmp_path: Path) -> None:
    """A killed worker takes at most one message with it, which its sender is told of, and what it had queued."""
    path = tmp_path / "bus"
    with server_with(path) as server, members(server.port, CLIENTS[:1], "websocket") as [member]:
        with Stream(path, member) as stream:
            for _ in range(5):
                mark = server.mark()
                os.kill(server.worker_pids[1], SIGKILL)
                server.wait_for_worker(1, after=mark)
                stream.wait_for_more()
        found = numbers(member)
        assert len(stream.errors) <= 5
        assert sorted(set(found)) == found
        assert stream.sent - len(found) <= len(stream.errors)


def reload(server: Server) -> None:
    """HUP, until the new listener is there."""
    mark = server.mark()
    server.signal(SIGHUP)
    server.wait_for_listener(after=mark)


def test_reload(tmp_path: Path) -> None:
    """HUP: senders notice nothing; another path is another socket, and one that can't be used changes nothing."""
    path, other, config = tmp_path / "bus", tmp_path / "other", tmp_path / "conf.py"
    config.write_text(f"sticky_bus_socket = {os.fspath(path)!r}\n")
    with Server("cluster:app", workers=2, args=("-c", os.fspath(config)), door="serve") as server:
        with Stream(path) as stream:
            reload(server)
            stream.wait_for_more()
        assert stream.errors == []

        config.write_text(f"sticky_bus_socket = {os.fspath(other)!r}\n")
        reload(server)
        wait_until(lambda: not path.exists(), what="the former path is gone")
        with members(server.port, CLIENTS, "websocket") as pair:
            manager = outside(other)
            manager.emit("e", 1)
            assert heard(manager, pair) == [[("e", (1,))]] * 2

            config.write_text(f"sticky_bus_socket = {os.fspath(tmp_path / 'no' / 'bus')!r}\n")
            mark = server.mark()
            server.signal(SIGHUP)
            server.wait_for("Reload failed, the old configuration stays in force. bus_socket=.*: No such", after=mark)
            assert heard(manager, pair) == [[]] * 2

        config.write_text("")
        reload(server)
        wait_until(lambda: not other.exists(), what="the socket is gone")
    assert [found.name for found in tmp_path.iterdir()] == ["conf.py"]


def test_reload_without_the_file(tmp_path: Path) -> None:
    """HUP: a file that somebody has removed is made again, if the reload succeeds."""
    path, config = tmp_path / "bus", tmp_path / "conf.py"
    config.write_text("")
    with server_with(path, "-c", os.fspath(config)) as server:
        path.unlink()
        config.write_text("pidfile = '/no/such/place'")
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for("Reload failed", after=mark)
        wait_until(lambda: not path.exists(), what="no file of the reload that failed")
        config.write_text("")
        reload(server)
        with members(server.port, CLIENTS, "websocket") as pair:
            manager = outside(path)
            manager.emit("e", 1)
            assert heard(manager, pair) == [[("e", (1,))]] * 2
        server.stop()
    assert not path.exists()


def test_reload_with_raw_env(tmp_path: Path) -> None:
    """HUP: the path may stand in gunicorn's ``raw_env``, and change there."""
    path, other, config = tmp_path / "bus", tmp_path / "other", tmp_path / "conf.py"

    def configure(place: Path) -> None:
        config.write_text(f"raw_env = ['STICKY_SESSION_BUS_SOCKET={place}']\n")

    configure(path)
    with Server("cluster:app", workers=2, args=("-c", os.fspath(config))) as server:
        with Stream(path) as stream:
            reload(server)
            stream.wait_for_more()
        assert stream.errors == []
        configure(other)
        reload(server)
        wait_until(lambda: not path.exists(), what="the former path is gone")
        with members(server.port, CLIENTS, "websocket") as pair:
            manager = outside(other)
            manager.emit("e", 1)
            assert heard(manager, pair) == [[("e", (1,))]] * 2
    assert [found.name for found in tmp_path.iterdir()] == ["conf.py"]


def test_reload_of_the_mode(tmp_path: Path) -> None:
    """HUP: another mode is the file's from then on, and the former one's if the reload fails."""
    path, config = tmp_path / "bus", tmp_path / "conf.py"

    def configure(mode: str, more: str = "") -> None:
        config.write_text(f"sticky_bus_socket = {os.fspath(path)!r}\nsticky_bus_socket_mode = {mode!r}\n{more}")

    configure("666")
    with Server("whoami:app", workers=1, args=("-c", os.fspath(config)), door="serve") as server:
        assert mode_of(path) == "srw-rw-rw-"
        configure("600")
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for_listener(after=mark)
        assert mode_of(path) == "srw-------"
        hook = "def post_fork(arbiter, worker): raise ValueError"
        for broken, why in (("pidfile = '/no/such/place'", "Reload failed"), (hook, "The others go on serving")):
            configure("666", broken)
            mark = server.mark()
            server.signal(SIGHUP)
            server.wait_for(why, after=mark)
            wait_until(lambda: mode_of(path) == "srw-------", what="the former mode is back")


def test_reload_with_a_bind_in_its_place(tmp_path: Path) -> None:
    """HUP: requests can't come to the bus socket's path, and nothing changes."""
    path, config = tmp_path / "bus", tmp_path / "conf.py"
    bus = f"sticky_bus_socket = {os.fspath(path)!r}\n"
    config.write_text(f"{bus}bind = '127.0.0.1:0'\n")
    with Server("cluster:app", workers=2, args=("-c", os.fspath(config)), door="serve", bind=()) as server:
        for text in (bus, ""):
            config.write_text(f"{text}bind = 'unix:{path}'\n")
            mark = server.mark()
            server.signal(SIGHUP)
            server.wait_for(f"Reload failed, .* bind=unix:{path}: the bus socket is there", after=mark)
        with members(server.port, CLIENTS, "websocket") as pair:
            manager = outside(path)
            manager.emit("e", 1)
            assert heard(manager, pair) == [[("e", (1,))]] * 2


def test_upgrade(tmp_path: Path) -> None:
    """USR2: the new arbiter has the same socket, and the file goes with the last one."""
    path = tmp_path / "bus"
    with server_with(path) as server:
        with Stream(path) as stream:
            mark, old = server.mark(), server.arbiter_pid
            server.signal(SIGUSR2)
            new = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
            server.wait_for_listener(after=mark)
            stream.wait_for_more()
            os.kill(old, SIGTERM)
            assert server.wait() == 0
            stream.wait_for_more()
        assert stream.errors == []
        with members(server.port, CLIENTS, "websocket") as pair:
            manager = outside(path)
            manager.emit("e", 1)
            # The last numbers may still be on their way to the clients that there are now.
            found = [[one for one in each if one[0] not in ("n", "end")] for each in heard(manager, pair)]
            assert found == [[("e", (1,))]] * 2
        assert "_STICKY_SESSION" not in get(server.port, "/").body.decode()
        os.kill(new, SIGTERM)
        wait_until(lambda: not alive(new), 30, "the new arbiter is gone")
    assert not path.exists()


def test_upgrade_without_it(tmp_path: Path) -> None:
    """USR2: an arbiter that was passed the socket, and is not to have one, can be replaced itself."""
    path, config = tmp_path / "bus", tmp_path / "conf.py"
    config.write_text(f"sticky_bus_socket = {os.fspath(path)!r}\n")
    with Server("cluster:app", workers=1, args=("-c", os.fspath(config)), door="serve") as server:
        config.write_text("")
        arbiter = server.arbiter_pid
        for _ in range(2):
            mark, old = server.mark(), arbiter
            os.kill(old, SIGUSR2)
            arbiter = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
            server.wait_for_listener(after=mark)
            os.kill(old, SIGTERM)
            wait_until(lambda old=old: not alive(old), 30, "the old arbiter is gone")  # type: ignore[misc]
            server.wait_for("Master has been promoted", after=mark)
        os.kill(arbiter, SIGTERM)
        wait_until(lambda: not alive(arbiter), 30, "the new arbiter is gone")


def test_messages_are_json(path: Path, server: Server) -> None:
    """Any program may write them: six bytes, a channel, and what python-socketio writes."""
    with members(server.port, CLIENTS, "websocket") as pair, socket.socket(socket.AF_UNIX) as sock:
        emitted = {"method": "emit", "event": "e", "data": [1], "namespace": "/", "room": None, "skip_sid": None}
        payload = json.dumps(emitted).encode()
        sock.settimeout(10)
        sock.connect(os.fspath(path))
        sock.sendall(b"\1\x08" + len(payload).to_bytes(4, "big") + b"socketio" + payload)
        assert sock.recv(3) == b"\0\0\0"
        assert [member.next() for member in pair] == [("e", (1,))] * 2
