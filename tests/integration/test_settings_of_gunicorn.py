"""All of gunicorn's settings keep their meaning under ``gunicorn -k sticky_session.Worker``."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import websocket

from harness import (
    ADDRESS,
    APPS,
    COMMANDS,
    HOST,
    Client,
    Daemon,
    Process,
    Server,
    addresses,
    alive,
    connect,
    get,
    wait_until,
)

SUDO = () if os.geteuid() == 0 else ("sudo", "-n", "-E")


def env_of(port: int, path: str = "/env", headers: dict[str, str] | None = None) -> Any:
    """The app's environ."""
    return get(port, path, headers=headers).json()


class PathClient(Client):
    """A client over a connection that is made already."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(80)
        self._made = sock

    def connect(self) -> None:
        self.sock = self._made


@contextlib.contextmanager
def client_of(family: int, place: Any) -> Iterator[Client]:
    """A client of any kind of socket."""
    sock = socket.socket(family)
    sock.settimeout(20)
    sock.connect(place)
    with PathClient(sock) as client:
        yield client


def is_silent(sock: socket.socket) -> bool:
    """Whether nothing has arrived, not even the connection's end."""
    return not select.select([sock], [], [], 0)[0]


def write_app(place: Path, text: str) -> Path:
    """An ``app.py`` to run in this directory."""
    (place / "app.py").write_text(text)
    return place


# --- where to listen ----------------------------------------------------------------------------------------


def test_binds(tmp_path: Path) -> None:
    """Several binds of all kinds at once: each answers, and the app learns the port of its own."""
    path = tmp_path / "socket"
    binds = ("127.0.0.1:0", "127.0.0.1:0", "[::1]:0", f"unix:{path}")
    with Server(workers=2, bind=binds, args=("--umask", "0117")) as server:
        first, second, third = server.ports
        for family, place in [
            (socket.AF_INET, ("127.0.0.1", first)),
            (socket.AF_INET, ("127.0.0.1", second)),
            (socket.AF_INET6, ("::1", third)),
        ]:
            with client_of(family, place) as client:
                env = client.get("/env").json()
                peer = client.source
            assert (env["SERVER_NAME"], env["SERVER_PORT"]) == (place[0], str(place[1]))
            assert (env["REMOTE_ADDR"], int(env["REMOTE_PORT"])) == peer
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with client_of(socket.AF_UNIX, os.fspath(path)) as client:
            env = client.get("/env", {"Host": "chat.example:8080"}).json()
            assert (env["SERVER_NAME"], env["SERVER_PORT"]) == ("chat.example", "8080")
            assert env["REMOTE_ADDR"] == ""
    assert not path.exists()


# Runs its arguments with listening sockets from descriptor 3 on, as systemd does; argv[1] is what to say about them.
ACTIVATE = """
import os, socket, sys
listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
for descriptor, sock in enumerate(listening, 3):
    os.dup2(sock.fileno(), descriptor + 100)
for descriptor in (3, 4):
    os.dup2(descriptor + 100, descriptor)
    os.close(descriptor + 100)
if sys.argv[1] == "systemd":
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_descriptor() -> None:
    """fd://: an inherited socket is listened on."""
    with Server(workers=2, bind=("fd://3",), prefix=(sys.executable, "-c", ACTIVATE, "fd")) as server:
        (port,) = server.ports
        assert env_of(port)["SERVER_PORT"] == str(port)


def test_systemd() -> None:
    """Sockets that systemd passes are used instead of --bind."""
    with Server(workers=2, prefix=(sys.executable, "-c", ACTIVATE, "systemd")) as server:
        assert len(server.ports) == 2
        for port in server.ports:
            env = env_of(port)
            assert env["SERVER_PORT"] == str(port)
            assert "LISTEN_FDS" not in env


def test_reuse_port() -> None:
    """--reuse-port: the sockets have SO_REUSEPORT, and a new arbiter after SIGUSR2 goes on with the same."""
    with Server(workers=2, args=("--reuse-port",)) as server:
        with socket.socket() as beside:
            beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            beside.bind(("127.0.0.1", server.port))
        port, old = server.port, server.arbiter_pid
        mark = server.mark()
        server.signal(signal.SIGUSR2)
        server.wait_for_listener(after=mark)
        new = server.arbiter_pid
        assert server.port == port
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert new != old
        pids = {get(port, "/", address).json()["pid"] for address in addresses(40)}
        assert pids == set(server.worker_pids.values())
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not alive(new))


# --- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_server(certificate: tuple[Path, Path]) -> Iterator[Server]:
    cert, key = certificate
    args = ("--certfile", str(cert), "--keyfile", str(key))
    with Server("survivor:app", workers=2, args=args, env={"STICKY_SESSION_HEAD_TIMEOUT": "1"}) as server:
        yield server


@pytest.fixture(scope="module")
def tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate[0])


def test_tls(tls_server: Server, tls: ssl.SSLContext) -> None:
    """HTTP over TLS: the scheme is https, the peer's address the client's, connections are kept, slots sticky."""
    for address in addresses(20):
        with Client(tls_server.port, address, tls=tls) as client:
            replies = [client.get("/").json() for _ in range(3)]
        assert {reply["scheme"] for reply in replies} == {"https"}
        assert {reply["remote_addr"] for reply in replies} == {address}
        assert len({reply["pid"] for reply in replies}) == 1
    with Client(tls_server.port, tls=tls) as client:
        body = os.urandom(300_000)
        assert client.fetch("POST", "/echo", body).body == body
        assert len(client.get("/big?bytes=3000000").body) == 3_000_000


def test_websocket_over_tls(tls_server: Server, tls: ssl.SSLContext) -> None:
    """A WebSocket over TLS."""
    with tls.wrap_socket(connect(tls_server.port), server_hostname="127.0.0.1") as sock:
        client = websocket.create_connection(f"wss://127.0.0.1:{tls_server.port}/", socket=sock, timeout=20)
        client.send("over TLS")
        answer = json.loads(client.recv())
        client.close()
    assert answer["message"] == "over TLS"
    assert answer["remote_addr"] == ADDRESS


def test_not_tls(tls_server: Server, tls: ssl.SSLContext) -> None:
    """Plain HTTP, garbage, and a client that says nothing lose their connections; everybody else is served."""
    port = tls_server.port
    with connect(port) as mute, connect(port) as plain, connect(port) as garbage:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        garbage.sendall(os.urandom(1000))
        assert get(port, tls=tls).status == 200
        for sock in (plain, garbage, mute):
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP/1" not in sock.makefile("rb").read()
    with connect(port) as reset:
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert get(port, tls=tls).status == 200
    assert "Traceback" not in tls_server.log


def test_slow_head_over_tls(tls_server: Server, tls: ssl.SSLContext) -> None:
    """The limit on the time of a request head holds over TLS, too."""
    with tls.wrap_socket(connect(tls_server.port), server_hostname="127.0.0.1") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ssl.SSLError, ConnectionResetError):
            assert b"200" not in sock.makefile("rb").read()


# --- limits of a worker -------------------------------------------------------------------------------------


def test_worker_connections() -> None:
    """--worker-connections: one connection more waits until there is room."""
    with Server(workers=1, args=("--worker-connections", "2")) as server:
        with Client(server.port) as first, Client(server.port) as second:
            assert first.get("/").status == second.get("/").status == 200
            with connect(server.port) as third:
                third.sendall(b"GET / HTTP/1.0\r\n\r\n")
                for _ in range(20):
                    assert first.get("/").status == second.get("/").status == 200
                assert is_silent(third)
                second.close()
                assert third.makefile("rb").read().startswith(b"HTTP/1.1 200 OK\r\n")


def test_keep_alive() -> None:
    """--keep-alive: an idle connection is closed after so many seconds; with 0 after each response."""
    with Server(workers=1, args=("--keep-alive", "2")) as server, Client(server.port) as client:
        assert client.get("/").headers["Connection"] is None
        assert client.get("/").status == 200
        assert client.sock.recv(1) == b""
    with Server(workers=1, args=("--keep-alive", "0")) as server, Client(server.port) as client:
        assert client.get("/").headers["Connection"] == "close"


BUSY = """
import os, signal, time

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/busy":
        while True:
            pass
    if environ["PATH_INFO"] == "/stubborn":
        while True:
            try:
                while True:
                    pass
            except SystemExit:
                pass
    return [str(os.getpid()).encode()]
"""


@pytest.mark.parametrize("path", ["/busy", "/stubborn"])
def test_timeout(tmp_path: Path, path: str) -> None:
    """--timeout: a worker that computes without end is replaced, in its slot; one that ignores SIGABRT is killed."""
    args = ("--timeout", "2", "--graceful-timeout", "1")
    with Server("app:app", workers=1, args=args, cwd=write_app(tmp_path, BUSY)) as server:
        before, mark = get(server.port).body, server.mark()
        with connect(server.port) as victim:
            victim.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            server.wait_for("WORKER TIMEOUT", after=mark)
            # A client that comes in between waits for whoever is next.
            assert get(server.port).status == 200
            assert get(server.port).body == str(server.wait_for_worker(0, after=mark)).encode() != before


def test_graceful_timeout() -> None:
    """--graceful-timeout: what takes longer than that after TERM is cut off, and the server exits with 0."""
    with Server(workers=1, args=("--graceful-timeout", "1")) as server:
        with connect(server.port) as endless:
            endless.sendall(b"GET /slow?seconds=600 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert get(server.port).status == 200
            server.signal(signal.SIGTERM)
            assert server.wait(15) == 0
            assert endless.makefile("rb").read() == b""


def test_max_requests() -> None:
    """--max-requests and --max-requests-jitter: a worker is replaced after so many requests, and none fails."""
    with Server(workers=1, args=("--max-requests", "3", "--max-requests-jitter", "2")) as server:
        served = Counter(get(server.port).json()["pid"] for _ in range(30))
    assert len(served) >= 6
    # The last one may not have come to its end.
    assert set(list(served.values())[:-1]) <= {3, 4, 5}


def test_limit_request() -> None:
    """--limit-request-line, -fields and -field_size: 414 and 431."""
    args = ("--limit-request-line", "200", "--limit-request-fields", "5", "--limit-request-field_size", "100")
    with Server(workers=1, args=args) as server:

        def status(target: str, fields: Sequence[str] = ()) -> int:
            head = "".join(
                f"{line}\r\n" for line in (f"GET {target} HTTP/1.1", "Host: x", "Connection: close", *fields)
            )
            with connect(server.port) as sock:
                sock.sendall(f"{head}\r\n".encode())
                return int(sock.makefile("rb").read().split()[1])

        assert status("/?" + "a" * 100) == 200
        assert status("/?" + "a" * 300) == 414
        assert status("/", ["A: 1", "B: 2", "C: 3"]) == 200
        assert status("/", ["A: 1", "B: 2", "C: 3", "D: 4"]) == 431
        assert status("/", ["A: " + "1" * 80]) == 200
        assert status("/", ["A: " + "1" * 120]) == 431


# --- the app's code -----------------------------------------------------------------------------------------

PRELOADED = """
import os, subprocess, threading
import gevent

IMPORTED_BY = os.getpid()
gevent.sleep(0)

def app(environ, start_response):
    said = [subprocess.run(["echo", "child"], capture_output=True, text=True).stdout.strip()]
    thread = threading.Thread(target=said.append, args=("thread",))
    thread.start()
    thread.join()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{IMPORTED_BY} {os.getpid()} {' '.join(said)}".encode()]
"""


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
def test_preload(tmp_path: Path, patched: bool) -> None:
    """--preload: the arbiter imports the app, monkey-patching or not, and a killed worker or listener is replaced."""
    text = ("from gevent import monkey; monkey.patch_all()\n" if patched else "") + PRELOADED
    with Server("app:app", workers=2, args=("--preload",), cwd=write_app(tmp_path, text)) as server:

        def served_by(address: str = ADDRESS) -> int:
            importer, pid, *said = get(server.port, "/", address).body.decode().split()
            assert int(importer) == server.arbiter_pid
            assert said == ["child", "thread"]
            return int(pid)

        assert {served_by(address) for address in addresses(30)} == set(server.worker_pids.values())
        mark, victim = server.mark(), served_by()
        os.kill(victim, signal.SIGKILL)
        slot = next(slot for slot, pid in server.worker_pids.items() if pid == victim)
        assert served_by() == server.wait_for_worker(slot, after=mark)
        os.kill(server.listener_pid, signal.SIGKILL)
        server.wait_for_listener(after=mark)
        mark = server.mark()
        server.signal(signal.SIGHUP)
        server.wait_for_listener(after=mark)
        assert {served_by(address) for address in addresses(30)} == set(server.worker_pids.values())
    assert "Traceback" not in server.log


def test_preload_with_default_timeout(tmp_path: Path) -> None:
    """What a preloaded app has called socket.setdefaulttimeout() for is its own connections: nothing of ours waits."""
    text = "import socket\nfrom whoami import app\nsocket.setdefaulttimeout(600)\n"
    args = ("--preload", "--pythonpath", str(APPS))
    with Server("app:app", workers=2, args=args, cwd=write_app(tmp_path, text)) as server:
        # The second one is a trusted proxy that has said nothing yet.
        for address in (ADDRESS, HOST):
            with connect(server.port, address):
                for other in addresses(10):
                    assert get(server.port, "/", other).status == 200


def test_reload(tmp_path: Path) -> None:
    """--reload: when a file of the app changes, its new code is served."""
    text = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'{}']\n"
    place = write_app(tmp_path, text.format("first"))
    args = ("--reload", "--reload-engine", "poll")
    with Server("app:app", workers=2, args=args, cwd=place) as server:
        assert get(server.port).body == b"first"
        mark = server.mark()
        write_app(tmp_path, text.format("second"))
        changed = place / "app.py"

        def touched() -> bool:
            # The reloader may not have looked at the file before it was written.
            at = changed.stat().st_mtime + 1
            os.utime(changed, (at, at))
            return len(server.find("Worker ready", after=mark)) >= 2

        wait_until(touched, 20)
        assert get(server.port).body == b"second"


# --- how it runs --------------------------------------------------------------------------------------------


def test_pid_file(tmp_path: Path) -> None:
    """--pid: the arbiter's pid is in there as long as it runs."""
    path = tmp_path / "server.pid"
    with Server(workers=1, args=("--pid", str(path))) as server:
        assert int(path.read_text()) == server.arbiter_pid == server.pid
    assert not path.exists()


def test_daemon(tmp_path: Path) -> None:
    """-D: it runs in the background, found by its pid file, and serves."""
    path = tmp_path / "server.pid"
    with Daemon(workers=2, args=("--pid", str(path), "--pythonpath", str(APPS))) as server:
        assert int(path.read_text()) == server.arbiter_pid != server.pid
        assert get(server.port).json()["pid"] in server.worker_pids.values()
    assert not path.exists()


def ids(pid: int) -> tuple[str, str]:
    """The user and group ids of a process: real, effective, saved, of the file system."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return fields["Uid"], fields["Gid"]


def test_user_and_group(tmp_path: Path) -> None:
    """--user and --group: the arbiter stays root, the listener and all workers drop their privileges."""
    user, group = pwd.getpwnam("nobody"), grp.getgrnam("nogroup")
    # Preloaded, with what gevent imports late, because the Python that runs the tests may be readable by root only.
    text = "import pprint\ndef app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"
    args = ("--user", user.pw_name, "--group", group.gr_name, "--preload")
    with Server("app:app", workers=2, args=args, cwd=write_app(tmp_path, text), prefix=SUDO) as server:
        assert get(server.port).status == 200
        assert ids(server.arbiter_pid) == ("0\t0\t0\t0", "0\t0\t0\t0")
        expected = ("\t".join([str(user.pw_uid)] * 4), "\t".join([str(group.gr_gid)] * 4))
        for pid in (server.listener_pid, *server.worker_pids.values()):
            assert ids(pid) == expected
        mark = server.mark()
        subprocess.run([*SUDO, "kill", "-KILL", str(server.listener_pid)], check=True)
        assert ids(server.wait_for_listener(after=mark)) == expected
        assert get(server.port).status == 200


# --- logs and metrics ---------------------------------------------------------------------------------------


def test_access_log(tmp_path: Path) -> None:
    """--access-logfile and --access-logformat, for HTTP and WebSockets, with the real peer; reopened by USR1."""
    path = tmp_path / "access.log"
    form = (
        "%(h)s|%(m)s|%(U)s|%(q)s|%(H)s|%(s)s|%(B)s|%(f)s|%(a)s|%({x-tag}i)s|%({content-type}o)s|%({PATH_INFO}e)s|%(p)s"
    )
    args = ("--access-logfile", str(path), "--access-logformat", form)
    with Server("survivor:app", workers=2, args=args) as server:
        headers = {"X-Tag": "tag", "Referer": "from", "User-Agent": "test"}
        get(server.port, "/env?a=b", headers=headers)
        pid = get(server.port).json()["pid"]
        with connect(server.port) as sock:
            url = f"ws://127.0.0.1:{server.port}/"
            websocket.create_connection(url, header={"X-Tag": "tag"}, socket=sock, timeout=20).close()
        wait_until(lambda: path.read_text().count("\n") == 3)
        first, second, third = (line.split("|") for line in path.read_text().splitlines())
        size = int(first.pop(6))
        assert size > 100
        rest = ["/env", f"<{pid}>"]
        assert first == [
            ADDRESS,
            "GET",
            "/env",
            "a=b",
            "HTTP/1.1",
            "200",
            "from",
            "test",
            "tag",
            "application/json",
            *rest,
        ]
        assert second[:6] == [ADDRESS, "GET", "/", "", "HTTP/1.1", "200"]
        assert third[:6] == [ADDRESS, "GET", "/", "", "HTTP/1.1", "101"]
        assert third[9] == "tag"
        path.rename(tmp_path / "old.log")
        server.signal(signal.SIGUSR1)
        wait_until(path.exists)
        wait_until(lambda: get(server.port).status == 200 and f"{ADDRESS}|GET|/||" in path.read_text())


def test_statsd() -> None:
    """--statsd-host: gunicorn's metrics are sent, without an access log as well."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(20)
        host, port = statsd.getsockname()
        args = ("--statsd-host", f"{host}:{port}", "--statsd-prefix", "chat", "--dogstatsd-tags", "a:b")

        def wait_for(*wanted: bytes) -> None:
            missing = set(wanted)
            while missing:
                said = statsd.recv(1000)
                missing = {metric for metric in missing if not said.startswith(metric)}

        with Server(workers=2, args=args) as server:
            wait_for(b"chat.gunicorn.workers:2|g|#a:b")
            assert get(server.port).status == 200
            wait_for(
                b"chat.gunicorn.requests:1|c|@1.0|#a:b",
                b"chat.gunicorn.request.duration:",
                b"chat.gunicorn.request.status.200:1|c",
            )
            server.signal(signal.SIGTTIN)
            wait_for(b"chat.gunicorn.workers:3|g")


LOGGER = """
from gunicorn.glogging import Logger

class Custom(Logger):
    def access(self, resp, req, environ, request_time):
        self.error("custom access %s %s %s %s", req.path, resp.status, resp.status_code, resp.sent)
        raise ValueError(req.headers)
"""


def test_logger_class(tmp_path: Path) -> None:
    """--logger-class: its access() is called, also without an access log, and its errors are no clients'."""
    (tmp_path / "custom.py").write_text(LOGGER)
    args = ("--logger-class", "custom.Custom")
    with Server(workers=1, args=args, env={"PYTHONPATH": str(tmp_path)}) as server:
        with Client(server.port) as client:
            for _ in range(2):
                assert client.get("/big?bytes=7").status == 200
        server.wait_for("custom access /big 200 OK 200 7", count=2)
        server.wait_for("ValueError: .*HOST", count=2)


# --- hooks --------------------------------------------------------------------------------------------------

HOOKS = """
import os

def note(name, *words):
    line = " ".join(map(str, (name, os.getpid(), *words))) + "\\n"
    descriptor = os.open(PATH, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)

def on_starting(server): note("on_starting")
def on_reload(server): note("on_reload")
def when_ready(server): note("when_ready", type(server).__name__, len(server.LISTENERS))
def pre_fork(server, worker): note("pre_fork", worker.age)
def post_fork(server, worker): note("post_fork", worker.pid)
def post_worker_init(worker): note("post_worker_init", worker.pid)
def worker_int(worker): note("worker_int", worker.pid)
def worker_abort(worker): note("worker_abort", worker.pid)
def pre_exec(server): note("pre_exec")
def child_exit(server, worker): note("child_exit", worker.pid)
def worker_exit(server, worker): note("worker_exit", worker.pid)
def nworkers_changed(server, new, old): note("nworkers_changed", new, old)
def on_exit(server): note("on_exit")

def pre_request(worker, req):
    note("pre_request", worker.pid, req.method, req.path, req.query, dict(req.headers)["X-TAG"], req.remote_addr[0])
    req.headers.append(("X-ID", req.scheme))
    req.headers.append(("COOKIE", "c=3"))
    req.mark = "mark"
    req.headers.remove(("X-OTHER", "other"))

def post_request(worker, req, environ, resp):
    note("post_request", worker.pid, req.uri, environ["PATH_INFO"], resp.status, dict(req.headers)["X-TAG"],
         environ["HTTP_X_ID"], "HTTP_X_OTHER" in environ, req.should_close(), environ["HTTP_COOKIE"], req.mark)
"""


class Hooks:
    """What the hooks have noted."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def notes(self, name: str) -> list[list[str]]:
        """Process id and words, of every call of a hook."""
        lines = [line.split() for line in self._path.read_text().splitlines()]
        return [words for hook, *words in lines if hook == name]

    def wait_for(self, name: str, *words: object) -> None:
        wanted = [str(word) for word in words]
        wait_until(lambda: wanted in self.notes(name), what=f"hook {name} {wanted}; {self._path.read_text()}")


def test_hooks(tmp_path: Path) -> None:
    """Every server hook of a configuration file is called, in the process and with the arguments gunicorn gives it."""
    hooks = Hooks(tmp_path / "notes")
    config = tmp_path / "conf.py"
    config.write_text(f"PATH = {str(tmp_path / 'notes')!r}\n{HOOKS}")
    with Server("survivor:app", workers=2, args=("-c", str(config), "--graceful-timeout", "5")) as server:
        arbiter = server.arbiter_pid
        first, second = server.worker_pids[0], server.worker_pids[1]
        assert hooks.notes("on_starting") == [[str(arbiter)]]
        assert hooks.notes("when_ready") == [[str(arbiter), "StickyArbiter", "1"]]
        assert hooks.notes("nworkers_changed") == [[str(arbiter), "2", "None"]]
        assert [note[0] for note in hooks.notes("pre_fork")] == [str(arbiter)] * 2
        for pid in (first, second):
            hooks.wait_for("post_fork", pid, pid)
            hooks.wait_for("post_worker_init", pid, pid)

        tag = {"X-Tag": "tag", "X-Other": "other", "Cookie": "a=1;b=2"}
        get(server.port, "/env?a=b", headers=tag)
        pid = get(server.port, headers=tag).json()["pid"]
        hooks.wait_for("pre_request", pid, pid, "GET", "/env", "a=b", "tag", ADDRESS)
        hooks.wait_for(
            "post_request",
            pid,
            pid,
            "/env?a=b",
            "/env",
            "200",
            "OK",
            "tag",
            "http",
            False,
            True,
            "a=1;b=2;",
            "c=3",
            "mark",
        )
        with connect(server.port) as sock:
            url = f"ws://127.0.0.1:{server.port}/"
            websocket.create_connection(url, header=tag, socket=sock, timeout=20).close()
        hooks.wait_for(
            "post_request",
            pid,
            pid,
            "/",
            "/",
            "101",
            "Switching",
            "Protocols",
            "tag",
            "http",
            False,
            False,
            "a=1;b=2;",
            "c=3",
            "mark",
        )

        mark = server.mark()
        os.kill(first, signal.SIGINT)
        hooks.wait_for("worker_int", first, first)
        hooks.wait_for("worker_exit", first, first)
        hooks.wait_for("child_exit", arbiter, first)
        server.wait_for_worker(0, after=mark)

        os.kill(second, signal.SIGABRT)
        hooks.wait_for("worker_abort", second, second)
        hooks.wait_for("child_exit", arbiter, second)
        server.wait_for_worker(1, after=mark)

        mark = server.mark()
        server.signal(signal.SIGTTIN)
        hooks.wait_for("nworkers_changed", arbiter, 3, 2)
        server.wait_for_worker(2, after=mark)

        mark = server.mark()
        server.signal(signal.SIGHUP)
        hooks.wait_for("on_reload", arbiter)
        server.wait_for_listener(after=mark)

        mark = server.mark()
        server.signal(signal.SIGUSR2)
        upgraded = int(server.wait_for(r"Listening at: \S+ \((\d+)\)", after=mark)[1])
        hooks.wait_for("pre_exec", upgraded)
        server.wait_for_listener(after=mark)
        os.kill(upgraded, signal.SIGTERM)
        hooks.wait_for("on_exit", upgraded)
        wait_until(lambda: not alive(upgraded))
    hooks.wait_for("on_exit", arbiter)
    assert len(hooks.notes("when_ready")) == 2
    assert "Traceback" not in server.log


# --- the environment ----------------------------------------------------------------------------------------


def test_environment(tmp_path: Path) -> None:
    """WEB_CONCURRENCY, GUNICORN_CMD_ARGS, --env, --chdir and SCRIPT_NAME."""
    write_app(
        tmp_path,
        "import os\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    words = os.getcwd(), os.environ['GREETING'], environ['SCRIPT_NAME'], environ['PATH_INFO']\n"
        "    return [' '.join(words).encode()]\n",
    )
    env = {
        "WEB_CONCURRENCY": "3",
        "GUNICORN_CMD_ARGS": f"--env GREETING=hello --chdir {tmp_path}",
        "SCRIPT_NAME": "/chat",
    }
    with Server("app:app", workers=None, env=env, ready=False) as server:
        server.wait_for("Worker ready", count=3)
        server.wait_for("Listener ready")
        assert get(server.port, "/chat/room").body.decode() == f"{tmp_path} hello /chat /room"
        assert get(server.port, "/other").status == 400
        assert len(server.worker_pids) == 3


def test_control_socket(tmp_path: Path) -> None:
    """The control socket answers gunicornc: it shows workers, adds one, kills one, and stops the server."""
    control = tmp_path / "control"
    gunicorn = [COMMANDS / "gunicorn", "-k", "sticky_session.Worker", "-w", "2", "-b", "127.0.0.1:0"]
    with Process([*gunicorn, "--control-socket", control, "whoami:app"]) as server:
        server.wait_for("Worker ready", count=2)
        server.wait_for("Listener ready")
        wait_until(control.exists)

        def command(text: str) -> Any:
            asked = [COMMANDS / "gunicornc", "-s", control, "-j", "-c", text]
            finished = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
            return json.loads(finished.stdout)

        assert {worker["pid"] for worker in command("show workers")["workers"]} == set(server.worker_pids.values())
        mark = server.mark()
        command("worker add 1")
        server.wait_for_worker(2, after=mark)
        killed, mark = server.worker_pids[2], server.mark()
        command(f"worker kill {killed}")
        server.wait_for_worker(2, after=mark)
        wait_until(lambda: not alive(killed))
        assert get(server.port).status == 200
        command("shutdown")
        assert server.wait() == 0
    assert not control.exists()
