"""``sticky_session.listen()``: a script becomes a cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import socketio

from harness import (
    ADDRESS,
    Client,
    Script,
    address_of_slot,
    addresses,
    alive,
    children,
    connect,
    descriptors,
    free_port,
    get,
    kill_all,
    wait_until,
)
from upstream import holders

# The script of the README after its imports of gevent and the app. Only the port is another: one that is free.
SNIPPET = """\
import sticky_session as sticky
if not sticky.listen(app, {port}):
    print("server started on 3000 port")      # master
else:
    print("worker", sticky.worker_id())       # worker
"""

PATCH = "from gevent import monkey; monkey.patch_all()\n"
WHOAMI = "from whoami import app\n"
IMPORTS = "import sticky_session as sticky\n"

# The shortest script that serves; more arguments of listen() can follow.
LISTEN = PATCH + WHOAMI + IMPORTS + 'sticky.listen(app, ("127.0.0.1", 0), control_socket_disable=True, {more})\n'


# Those that this process, and so the script, may use.
PROCESSORS = len(os.sched_getaffinity(0))

# As where a script runs as a service. Without it, lines that several processes print could be mixed.
BUFFERED = {"PYTHONUNBUFFERED": ""}


def cluster(source: str, workers: int | None = None, env: dict[str, str] | None = None) -> Script:
    """A script whose lines are whole."""
    return Script(source, workers=workers, env={**BUFFERED, **(env or {})})


def listen_script(more: str = "workers=2") -> str:
    return LISTEN.format(more=more)


def who(port: int, address: str = ADDRESS) -> Any:
    return get(port, "/", address).json()


# --- as written ---------------------------------------------------------------------------------------------


def test_as_written(tmp_path: Path) -> None:
    """The README's script, with nothing after it, serves until it is told to stop, and then exits with 0."""
    port = free_port()
    script = Script(
        PATCH + WHOAMI + SNIPPET.format(port=port),
        workers=PROCESSORS,
        env={**BUFFERED, "HOME": str(tmp_path)},
    )
    with script:
        script.wait_for("server started on 3000 port")
        for slot in script.worker_pids:
            script.wait_for(rf"worker {slot}\b")
        assert script.ports == [port]
        assert {who(port, address)["pid"] for address in addresses(60)} == set(script.worker_pids.values())
        assert who(port)["worker_id"] == who(port)["slot"]
    assert len(script.find("server started on 3000 port")) == 1
    assert len(script.find(r"worker \d")) == PROCESSORS
    assert "Traceback" not in script.log


def test_not_patched(tmp_path: Path) -> None:
    """Without monkey-patching it works as well, and one line says what to add."""
    port = free_port()
    script = Script(
        WHOAMI.replace("whoami", "plain") + SNIPPET.format(port=port),
        workers=PROCESSORS,
        cwd=tmp_path,
        env={**BUFFERED, "HOME": str(tmp_path)},
    )
    (tmp_path / "plain.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'plain']\n"
    )
    with script:
        assert get(port).body == b"plain"
    assert len(script.find(r"from gevent import monkey; monkey\.patch_all\(\)")) == 1
    assert len(script.find("server started on 3000 port")) == 1


# --- a cluster that tests share -----------------------------------------------------------------------------

SHARED = """\
import socket, subprocess, threading, concurrent.futures, os, signal, sys, atexit
from gevent import monkey; monkey.patch_all()
import gevent
import sticky_session as sticky
import whoami

pool = concurrent.futures.ThreadPoolExecutor(2)


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/pool":
        body = str(pool.submit(sum, range(10)).result())
    elif path == "/thread":
        said = []
        thread = threading.Thread(target=said.append, args=("said",))
        thread.start()
        thread.join()
        body = said[0]
    elif path == "/subprocess":
        body = subprocess.run(["echo", "from a child"], capture_output=True, text=True).stdout.strip()
    elif path == "/close":
        sticky.close()
        gevent.sleep(0)
        body = "closing"
    elif path == "/close-slowly":
        sticky.close()
        while not os.path.exists(environ["QUERY_STRING"]):
            gevent.sleep(0.02)
        body = "the last one"
    elif path == "/again":
        try:
            sticky.listen(app, 0)
        except sticky.ListenError as error:
            body = str(error)
    elif path == "/env":
        body = os.environ["GREETING"]
    else:
        return whoami.app(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]


is_worker = sticky.listen(
    app,
    ("127.0.0.1", 0),
    workers=2,
    env={"GREETING": "hello"},
    control_socket_disable=True,
    sticky_ipv4_prefix=24,
    accesslog="-",
)
print("listen() returned", is_worker, "and this is worker", sticky.worker_id(), flush=True)
if not is_worker:
    try:
        sticky.listen(app, 0)
    except sticky.ListenError as error:
        print("master:", error, flush=True)
    try:
        sticky.close()
    except sticky.ListenError as error:
        print("master:", error, flush=True)
"""
if (3, 12, 0) <= sys.version_info[:3] < (3, 12, 3):
    # What listen() says there: the app starts subprocesses.
    SHARED += "sticky.wait()\n"


@pytest.fixture(scope="module")
def shared() -> Iterator[Script]:
    with cluster(SHARED, workers=2) as script:
        yield script


def test_returns(shared: Script) -> None:
    """listen() is False in the master and True in every worker, which knows its number."""
    shared.wait_for("listen\\(\\) returned False and this is worker None")
    assert {found[1] for found in shared.find(r"returned True and this is worker (\d)")} == {"0", "1"}


@pytest.mark.parametrize(("path", "answer"), [("/pool", b"45"), ("/thread", b"said"), ("/subprocess", b"from a child")])
def test_threads_and_processes(shared: Script, path: str, answer: bytes) -> None:
    """Thread pools, threads and subprocesses work in requests, though the script has come to its end."""
    for address in addresses(4):
        assert get(shared.port, path, address).body == answer


def test_environment(shared: Script) -> None:
    """env= reaches the app's environment variables."""
    assert get(shared.port, "/env").body == b"hello"


def test_settings(shared: Script) -> None:
    """gunicorn's settings and ours are taken by name: an access log, and /24 networks as one client."""
    assert len({who(shared.port, f"127.9.9.{host}")["pid"] for host in range(1, 11)}) == 1
    shared.wait_for(r'127\.9\.9\.10 - - .* "GET / HTTP/1\.1" 200')


def test_called_again(shared: Script) -> None:
    """A second call raises ListenError, in the master and in a worker; so does close() in the master."""
    shared.wait_for(r"master: listen\(\) was called twice; call it once")
    shared.wait_for(r"master: close\(\) was called outside a worker")
    assert get(shared.port, "/again").body.startswith(b"listen() was called in a worker; call it once")


def test_respawned_worker(shared: Script) -> None:
    """A worker that replaces a killed one comes out of listen() as well, in the same slot."""
    before = who(shared.port)
    mark = shared.mark()
    os.kill(before["pid"], signal.SIGKILL)
    pid = shared.wait_for_worker(before["slot"], after=mark)
    shared.wait_for(rf"returned True and this is worker {before['slot']}", after=mark)
    after = who(shared.port)
    assert (after["slot"], after["pid"]) == (before["slot"], pid)


def test_close(shared: Script, tmp_path: Path) -> None:
    """close() retires a worker: its slot is refilled at once, it finishes its last request, and exits with 0."""
    slot = who(shared.port)["slot"]
    mark = shared.mark()
    old = shared.worker_pids[slot]
    with Client(shared.port) as idle:
        assert idle.get("/").json()["pid"] == old
        with connect(shared.port) as busy:
            busy.sendall(f"GET /close-slowly?{tmp_path}/go HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            new = shared.wait_for_worker(slot, after=mark)
            assert alive(old)
            assert {who(shared.port)["pid"] for _ in range(5)} == {new}
            # What waits for nothing is closed, so that the client comes back to the replacement.
            assert idle.sock.recv(1) == b""
            (tmp_path / "go").touch()
            answer = busy.makefile("rb").read()
    assert answer.endswith(b"the last one")
    assert b"\r\nConnection: close\r\n" in answer
    shared.wait_for(rf"Worker exiting \(pid: {old}\)", after=mark)
    wait_until(lambda: not alive(old))
    assert not shared.find(rf"Worker \(pid:{old}\) (exited|was sent)", after=mark)


# --- signals ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signalled() -> Iterator[Script]:
    with cluster(listen_script("workers=2, errorlog='-'"), workers=2) as script:
        yield script


def test_hup(signalled: Script) -> None:
    """HUP to the master replaces the workers; the port and the slots stay."""
    before, port, mark = who(signalled.port), signalled.port, signalled.mark()
    old = dict(signalled.worker_pids)
    signalled.signal(signal.SIGHUP)
    signalled.wait_for("Worker ready", count=2, after=mark)
    signalled.wait_for_listener(after=mark)
    wait_until(lambda: not any(map(alive, old.values())))
    after = who(port)
    assert after["slot"] == before["slot"]
    assert after["pid"] == signalled.worker_pids[after["slot"]] != before["pid"]


def test_ttin_ttou(signalled: Script) -> None:
    """TTIN and TTOU to the master add and remove a worker."""
    mark = signalled.mark()
    signalled.signal(signal.SIGTTIN)
    pid = signalled.wait_for_worker(2, after=mark)
    signalled.wait_for_listener(after=mark)
    address = address_of_slot(signalled.port, 2)
    assert who(signalled.port, address)["pid"] == pid
    mark = signalled.mark()
    signalled.signal(signal.SIGTTOU)
    signalled.wait_for_listener(after=mark)
    wait_until(lambda: not alive(pid))
    assert who(signalled.port, address)["slot"] in (0, 1)


def test_usr1(signalled: Script) -> None:
    """USR1 to the master is passed on, and hurts nobody."""
    mark = signalled.mark()
    signalled.signal(signal.SIGUSR1)
    signalled.wait_for("Handling signal: usr1", after=mark)
    pids = signalled.worker_pids
    assert {who(signalled.port, address)["pid"] for address in addresses(30)} == {pids[0], pids[1]}


def test_usr1_reopens_logs(tmp_path: Path) -> None:
    """After USR1 to the master every process writes to the new log file."""
    log = tmp_path / "access.log"
    with cluster(listen_script(f"workers=2, accesslog={str(log)!r}"), workers=2) as script:
        who(script.port)
        wait_until(lambda: log.read_text())
        log.rename(tmp_path / "access.log.1")
        script.signal(signal.SIGUSR1)
        wait_until(log.exists)

        def written() -> bool:
            who(script.port)
            return '"GET / HTTP/1.1" 200' in log.read_text()

        wait_until(written)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda it: it.name)
def test_stop(number: int) -> None:
    """TERM, INT and QUIT to the master stop everything, and the master exits with 0."""
    with cluster(listen_script(), workers=2) as script:
        assert script.stop(number) == 0
    assert "Traceback" not in script.log


def test_term_lets_requests_finish() -> None:
    """TERM to the master: what was accepted is served."""
    with cluster(listen_script(), workers=2) as script:
        with connect(script.port) as client:
            client.sendall(b"GET /slow?seconds=0.5 HTTP/1.1\r\nHost: x\r\n\r\n")
            # The worker of this address takes connections in order: it has the first one when it answers the second.
            who(script.port)
            script.signal(signal.SIGTERM)
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 OK\r\n")
        assert script.wait() == 0


def test_interrupted_by_terminal() -> None:
    """Ctrl-C sends INT to the whole group of processes, and it ends quietly with 0."""
    with cluster(listen_script(), workers=2) as script:
        os.killpg(script.pid, signal.SIGINT)
        assert script.wait() == 0
        script.assert_nothing_left()
    assert "Traceback" not in script.log


def test_master_killed() -> None:
    """SIGKILL of the master ends everything."""
    with cluster(listen_script(), workers=2) as script:
        script.signal(signal.SIGKILL)
        assert script.wait() == -signal.SIGKILL
        script.assert_nothing_left()


def test_arbiter_killed() -> None:
    """SIGKILL of the arbiter ends everything, and the master's exit status says so as a shell would."""
    with cluster(listen_script(), workers=2) as script:
        os.kill(script.arbiter_pid, signal.SIGKILL)
        assert script.wait() == 128 + signal.SIGKILL
        script.assert_nothing_left()


# --- wait() and the script's end ----------------------------------------------------------------------------


def test_wait() -> None:
    """wait() serves in a worker; in the master it returns when the cluster has ended, and signals act on it again."""
    source = (
        PATCH
        + WHOAMI
        + IMPORTS
        + """
import os, signal
if sticky.listen(app, ("127.0.0.1", 0), workers=2, control_socket_disable=True):
    sticky.wait()
    print("a worker came out of wait()", flush=True)
else:
    sticky.wait()
    print("all workers have stopped", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("SIGTERM had no effect", flush=True)
"""
    )
    with cluster(source, workers=2) as script:
        assert who(script.port)["slot"] in (0, 1)
        assert script.stop() == -signal.SIGTERM
    assert script.find("all workers have stopped")
    assert not script.find("a worker came out|had no effect")


def test_wait_before_listen() -> None:
    """wait() before listen() raises ListenError."""
    with cluster(IMPORTS + "sticky.wait()\n") as script:
        assert script.wait() == 1
    assert script.find(r"ListenError: wait\(\) was called before listen\(\)")


def test_greenlets_of_the_master() -> None:
    """The master's greenlets and threads go on after its script's last line."""
    source = (
        PATCH
        + WHOAMI
        + IMPORTS
        + """
import gevent, threading
if not sticky.listen(app, ("127.0.0.1", 0), workers=1, control_socket_disable=True):
    gevent.spawn_later(0.05, print, "a greenlet spoke", flush=True)
    threading.Timer(0.05, print, ("a thread spoke",), {"flush": True}).start()
"""
    )
    with cluster(source, workers=1) as script:
        script.wait_for("a greenlet spoke")
        script.wait_for("a thread spoke")


def test_sys_exit() -> None:
    """sys.exit() is an end of the script like any other; the master keeps the status for later."""
    source = listen_script() + "import sys\nsys.exit(7)\n"
    with cluster(source, workers=2) as script:
        assert who(script.port)["slot"] in (0, 1)
        assert script.stop() == 7
        assert "Traceback" not in script.log


def test_exit_functions() -> None:
    """What the script registered with atexit runs once in every worker and in the master."""
    source = listen_script() + "import atexit\natexit.register(print, 'exit function', sticky.worker_id())\n"
    with cluster(source, workers=2) as script:
        pass
    assert sorted(found[1] for found in script.find(r"exit function (\w+)")) == ["0", "1", "None"]


def test_script_fails_in_workers() -> None:
    """An exception after listen() in the workers is one traceback, exit status not 0, and nothing is left."""
    source = listen_script("workers=3") + "if sticky.worker_id() is not None:\n    raise ValueError('out of order')\n"
    with cluster(source) as script:
        assert script.wait() == 3
        script.assert_nothing_left()
    assert script.log.count("Traceback") == 1
    assert len(script.find("ValueError: out of order")) == 1


def test_script_fails_in_the_master() -> None:
    """An exception after listen() in the master ends the cluster, with a status that says so."""
    source = listen_script("workers=2") + "if sticky.worker_id() is None:\n    raise ValueError('out of order')\n"
    with cluster(source) as script:
        assert script.wait() == 1
        script.assert_nothing_left()
    assert len(script.find("ValueError: out of order")) == 1


def test_script_fails_in_a_replacement(tmp_path: Path) -> None:
    """When only a replacement's script fails, the others go on serving, and it is tried again."""
    source = listen_script("workers=2") + (
        f"import os\nif sticky.worker_id() == 1 and os.path.exists({str(tmp_path / 'broken')!r}):\n"
        "    raise ValueError('out of order')\n"
    )
    with cluster(source, workers=2) as script:
        (tmp_path / "broken").touch()
        mark = script.mark()
        healthy = address_of_slot(script.port, 0)
        os.kill(script.worker_pids[1], signal.SIGKILL)
        script.wait_for("ValueError: out of order", after=mark)
        assert who(script.port, healthy)["pid"] == script.worker_pids[0]
        (tmp_path / "broken").unlink()
        script.wait_for_worker(1, after=mark)


def test_term_while_the_script_runs(tmp_path: Path) -> None:
    """A worker whose script hasn't come to its end has nothing to finish: TERM ends it at once."""
    os.mkfifo(tmp_path / "never")
    source = listen_script("workers=2") + (
        f"if sticky.worker_id() == 1:\n    print('busy booting', flush=True)\n    open({str(tmp_path / 'never')!r})\n"
    )
    with cluster(source) as script:
        script.wait_for("busy booting")
        script.wait_for(r"Worker ready \(slot:0")
        script.signal(signal.SIGTERM)
        assert script.wait(10) == 0


# --- addresses ----------------------------------------------------------------------------------------------


def test_unix_socket(tmp_path: Path) -> None:
    """unix:PATH listens there, over a socket nobody listens on any more, with umask, and removes it at the end."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    source = (
        PATCH
        + WHOAMI
        + IMPORTS
        + (f"sticky.listen(app, 'unix:{path}', workers=1, umask=0o117, control_socket_disable=True)\n")
    )
    with cluster(source, workers=1):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(os.fspath(path))
            client.sendall(b"GET /big?bytes=3 HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"\r\n\r\nxxx")
        other = cluster(source)
        with other:
            assert other.wait() == 1
        assert other.find("OSError: .*Address already in use")
        assert path.exists()
    assert not path.exists()


def test_path_that_is_no_socket(tmp_path: Path) -> None:
    """unix:PATH of a file is an OSError, and the file stays."""
    path = tmp_path / "precious"
    path.write_text("data")
    source = PATCH + WHOAMI + IMPORTS + f"sticky.listen(app, 'unix:{path}')\n"
    with cluster(source) as script:
        assert script.wait() == 1
    assert script.find(r"OSError: .*Address already in use")
    assert path.read_text() == "data"


@pytest.mark.parametrize("address", ['"127.0.0.1:0"', '"[::1]:0"', '("::1", 0)', "0"])
def test_addresses(address: str) -> None:
    """A port, host:port, [IPv6]:port and (host, port) are addresses."""
    source = PATCH + WHOAMI + IMPORTS + f"sticky.listen(app, {address}, workers=1, control_socket_disable=True)\n"
    with cluster(source, workers=1) as script:
        (port,) = script.ports
        family, host = (socket.AF_INET6, "::1") if "::" in address else (socket.AF_INET, "127.0.0.1")
        with socket.socket(family) as client:
            client.settimeout(20)
            client.connect((host, port))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert json.loads(client.makefile("rb").read().partition(b"\r\n\r\n")[2])["remote_addr"] == host


def test_master_can_connect_at_once() -> None:
    """When listen() returns in the master, the port is open."""
    port = free_port()
    source = (
        PATCH
        + WHOAMI
        + IMPORTS
        + f"""
import urllib.request
if not sticky.listen(app, {port}, workers=1, control_socket_disable=True):
    print("master got", urllib.request.urlopen("http://127.0.0.1:{port}/").status, flush=True)
"""
    )
    with cluster(source, workers=1) as script:
        script.wait_for("master got 200")


def test_port_in_use() -> None:
    """A port in use is an OSError in the master that names it; the script may catch it and take another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        source = (
            PATCH
            + WHOAMI
            + IMPORTS
            + f"""
try:
    sticky.listen(app, "127.0.0.1:{port}", workers=1, control_socket_disable=True)
except OSError as error:
    print("caught", error.errno, error, flush=True)
sticky.listen(app, ("127.0.0.1", 0), workers=1, control_socket_disable=True)
"""
        )
        with cluster(source, workers=1) as script:
            found = script.wait_for(r"caught (\d+) (.*)")
            assert found[1] == "98"
            assert str(port) in found[2]
            assert who(script.port)["slot"] == 0
        with cluster(listen_script().replace('("127.0.0.1", 0)', f'("127.0.0.1", {port})')) as script:
            assert script.wait() == 1
            script.assert_nothing_left()
        assert script.find(r"^OSError: \[Errno 98\] Address already in use.*choose another")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("app, 0, nonsense=1", "TypeError: listen(): there is no setting 'nonsense'"),
        ("app, 0, keepalive='long'", "TypeError: listen(): keepalive='long'"),
        ("app, 0, bind='0.0.0.0:80'", "TypeError: listen(): 'bind' can't be set here; the address is"),
        ("app, 0, worker_class='gevent'", "TypeError: listen(): 'worker_class' can't be set here; the workers are"),
        ("'whoami:app', 0", "TypeError: listen(): 'whoami:app' is no WSGI app"),
        ("socketio.ASGIApp(None), 0", "is an ASGI app; expected one of WSGI"),
        ("app, 'fd://3'", "OptionError: listen(): 'fd://3': expected a port"),
        ("app, 70000", "OptionError: listen(): port 70000"),
        ("app, 'localhost:http'", "OptionError: listen(): 'localhost:http': expected a port"),
        ("app, None", "OptionError: listen(): None: expected a port"),
        ("app, 0, workers=0", "OptionError: workers=0"),
        ("app, 0, workers=3, sticky_partitions=2", "OptionError: workers=3"),
        ("app, 0, sticky_ipv4_prefix=33", "OptionError: --ipv4-prefix=33: expected a whole number from 0 to 32"),
    ],
)
def test_wrong_calls(call: str, message: str) -> None:
    """A call that can't work raises an error that says why, and starts nothing."""
    source = (
        PATCH
        + WHOAMI
        + IMPORTS
        + f"""
import multiprocessing, os, socketio, traceback
try:
    sticky.listen({call})
except Exception:
    traceback.print_exc()
"""
    )
    with cluster(source) as script:
        assert script.wait() == 0
        script.assert_nothing_left()
    assert message in script.log


def test_wrong_environment() -> None:
    """A wrong variable of ours is an OptionError, too, that names it."""
    with cluster(listen_script(), env={"STICKY_SESSION_SEED": "salt"}) as script:
        assert script.wait() == 1
    assert script.find("OptionError: STICKY_SESSION_SEED=salt: expected a whole number")


def test_call_in_a_thread() -> None:
    """listen() outside the main thread raises ListenError."""
    source = (
        WHOAMI
        + IMPORTS
        + """
import threading
def run():
    try:
        sticky.listen(app, 0)
    except sticky.ListenError as error:
        print(error)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    )
    with cluster(source) as script:
        assert script.wait() == 0
        script.assert_nothing_left()
    assert script.find(r"listen\(\) was called in a thread or greenlet; call it in the main thread")


# --- apps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["sio", "flask_sio"])
@pytest.mark.parametrize("transports", [["polling"], ["websocket"]], ids=["polling", "websocket"])
def test_socket_io(module: str, transports: list[str]) -> None:
    """python-socketio and Flask-SocketIO apps answer events, each client's all on one worker."""
    source = (
        PATCH
        + f"from {module} import app\n"
        + IMPORTS
        + ("sticky.listen(app, ('127.0.0.1', 0), workers=2, control_socket_disable=True)\n")
    )
    with cluster(source, workers=2) as script:
        with socketio.SimpleClient(request_timeout=20) as client:
            client.connect(f"http://127.0.0.1:{script.port}", transports=transports, wait_timeout=20)
            answers = [client.call("echo", number) for number in range(5)]
        assert [data for data, _ in answers] == list(range(5))
        assert len({pid for _, pid in answers}) == 1
        assert answers[0][1] in script.worker_pids.values()
    assert "Traceback" not in script.log


def test_processes() -> None:
    """The master has the arbiter, and that has the others; only arbiter and listener hold the port."""
    with cluster(listen_script("workers=2"), workers=2) as script:
        assert children(script.pid) == [script.arbiter_pid]
        family = {script.listener_pid, *script.worker_pids.values()}
        assert set(children(script.arbiter_pid)) == family
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        (inode,) = [int(words[9]) for words in lines if words[1] == f"0100007F:{script.port:04X}" and words[3] == "0A"]
        assert holders(inode, (script.pid, script.arbiter_pid, *script.worker_pids.values())) == [script.arbiter_pid]
        mark = script.mark()
        kill_all([script.listener_pid])
        script.wait_for_listener(after=mark)
        assert who(script.port)["slot"] in (0, 1)


def test_descriptors_of_the_listener() -> None:
    """Under a monkey-patched arbiter, too, the listener closes what it has handed off."""
    with cluster(listen_script("workers=2"), workers=2) as script:
        who(script.port)
        before = descriptors(script.listener_pid)
        for address in addresses(50):
            who(script.port, address)
        # Each may have been answered before the listener closed its copy, the first one, too.
        wait_until(lambda: descriptors(script.listener_pid) <= before, what=f"it has {before} or one less")
