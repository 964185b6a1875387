"""What every integration test starts the real thing with: processes, client addresses, waiting for events.

A process is started in a session of its own and its log (stdout and stderr together) is read line by line; who
asks for lines gets all that were written before. A test never sleeps: it waits for a line of the log, for a reply,
or, where there is no event to wait for, with :func:`wait_until`. Typical use::

    with Server("whoami:app", workers=4) as server:
        before = get(server.port, "/", address="127.0.0.7").json()
        mark = server.mark()
        os.kill(server.worker_pids[before["slot"]], signal.SIGKILL)
        server.wait_for_worker(before["slot"], after=mark)
        assert get(server.port, "/", address="127.0.0.7").json()["slot"] == before["slot"]

When the block ends the server gets SIGTERM, must exit with status 0 and must leave no process behind. When
the block fails everything is killed instead, and the log is part of pytest's report (``tests/conftest.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import random
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

APPS = Path(__file__).parent.parent / "apps"
COMMANDS = Path(sys.executable).parent  # of the environment the tests run in
HOST = "127.0.0.1"
ADDRESS = "127.0.0.7"
START_SECONDS = 30.0
STOP_SECONDS = 40.0  # gunicorn's graceful timeout is 30

_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; in Python's socket module only since 3.12
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>

_T = TypeVar("_T")
_S = TypeVar("_S", bound="Process")


# --- waiting ------------------------------------------------------------------------------------------------


def wait_until(predicate: Callable[[], _T], timeout: float = 20.0, what: str = "") -> _T:
    """Ask ``predicate`` again and again until its answer is true, and return that answer.

    :param timeout: seconds until it is an AssertionError
    :param what: the condition in words, for the error
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or predicate}; the last answer was {answer!r}")
        time.sleep(0.02)


# --- processes as the kernel sees them ----------------------------------------------------------------------


class _Stat(NamedTuple):
    pid: int
    state: str
    parent: int
    session: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # "pid (name) state ppid pgrp session ...", and a name may contain anything, proc(5).
    state, parent, _group, session = text.rpartition(")")[2].split()[:4]
    return _Stat(pid, state, int(parent), int(session))


def _processes() -> Iterator[_Stat]:
    """All processes that run; one that only waits to be reaped doesn't."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))) and stat.state not in "ZX":
            yield stat


def alive(pid: int) -> bool:
    """Whether the process exists and isn't a zombie."""
    stat = _stat(pid)
    return stat is not None and stat.state not in "ZX"


def children(pid: int) -> list[int]:
    """The processes whose parent is ``pid``, in the order of their pids."""
    return sorted(stat.pid for stat in _processes() if stat.parent == pid)


def descendants(pid: int) -> list[int]:
    """The children of ``pid``, their children, and so on."""
    return sorted(_descendants(pid, _processes()))


def _descendants(pid: int, processes: Iterable[_Stat]) -> list[int]:
    family: dict[int, list[int]] = {}
    for stat in processes:
        family.setdefault(stat.parent, []).append(stat.pid)
    found: list[int] = []
    queue = [pid]
    while queue:
        offspring = family.get(queue.pop(), [])
        found += offspring
        queue += offspring
    return found


def _family(pid: int, session: int) -> list[int]:
    processes = list(_processes())
    return sorted({stat.pid for stat in processes if stat.session == session}.union(_descendants(pid, processes)))


def command_line(pid: int) -> str:
    """The command line, or the title the process gave itself; empty when it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def descriptors(pid: int) -> int:
    """How many file descriptors the process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss(pid: int) -> int:
    """The process's resident memory in bytes."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, f"process {pid} has no memory: it has exited"
    return int(found[1]) * 1024


def adopt_orphans() -> None:
    """Make processes whose parent dies children of this one: it has no descendants then if it has no children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def childless() -> bool:
    """Whether this process has no child, not even one that waits to be reaped; the kernel knows at once."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def reap_orphans() -> None:
    """Take the exit status of every child of this process that has exited and that no :class:`Process` is."""
    ours = {process.pid for process in STARTED}
    for entry in os.listdir("/proc"):
        stat = _stat(int(entry)) if entry.isdigit() else None
        if stat and stat.state == "Z" and stat.parent == os.getpid() and stat.pid not in ours:
            os.waitpid(stat.pid, os.WNOHANG)


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL each of the processes and wait until it is gone."""
    pids = list(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, SIGKILL)
    wait_until(lambda: not any(map(alive, pids)), what=f"SIGKILL ended {pids}")


# --- clients ------------------------------------------------------------------------------------------------


def addresses(count: int, start: int = 0) -> list[str]:
    """``count`` different loopback addresses; each is a client of its own to the server.

    :param start: how many addresses of the same sequence to leave out, for clients that mustn't meet others
    """
    return [
        f"127.{1 + number // (254 * 254)}.{1 + number // 254 % 254}.{1 + number % 254}"
        for number in range(start, start + count)
    ]


def free_port() -> int:
    """A port that nobody listens on. It is out of the range that the kernel gives away by itself."""
    low, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    while True:
        port = random.randrange(10_000, low)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def connect(port: int, address: str = ADDRESS, *, host: str = HOST, timeout: float = 20.0) -> socket.socket:
    """A connection to the server that comes from ``address``."""
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        connection.settimeout(timeout)
        # Choose the client's port at connect() and not at bind(), so that ports are taken for this peer only.
        connection.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((address, 0))
        connection.connect((host, port))
    except BaseException:
        connection.close()
        raise
    return connection


def make_certificate(place: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 and its key: their files in ``place``."""
    cert, key = place / "cert.pem", place / "key.pem"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    request += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*request.split(), "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=60)
    return cert, key


class Response(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        assert self.status == 200, f"status {self.status}: {self.body[:500]!r}"
        return json.loads(self.body)


class Client(http.client.HTTPConnection):
    """A client at ``address`` that keeps its connection alive; a context manager.

    The connection is made by the first request and never again: a request after the server closed it fails.

    :param tls: speak TLS with this context
    """

    auto_open = 0

    def __init__(
        self,
        port: int,
        address: str = ADDRESS,
        *,
        host: str = HOST,
        timeout: float = 20.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address = address
        self._tls = tls
        self._opened = False

    def connect(self) -> None:
        self.sock = connect(self.port, self._address, host=self.host, timeout=self.timeout or 20.0)
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)

    def get(self, path: str = "/", headers: Mapping[str, str] | None = None) -> Response:
        return self.fetch("GET", path, headers=headers)

    def fetch(
        self,
        method: str,
        path: str = "/",
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send one request and read the whole response.

        :param body: bytes, or pieces of bytes to be sent chunked
        """
        if not self._opened:
            self.connect()
            self._opened = True
        self.request(method, path, body, headers or {})
        response = self.getresponse()
        return Response(response.status, response.headers, response.read())

    @property
    def source(self) -> tuple[str, int]:
        """The address and port of this end of the connection."""
        return self.sock.getsockname()[:2]  # type: ignore[no-any-return]  # typeshed: a socket address is Any

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def get(
    port: int,
    path: str = "/",
    address: str = ADDRESS,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 20.0,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """One GET over a connection of its own."""
    with Client(port, address, timeout=timeout, tls=tls) as client:
        return client.get(path, {"Connection": "close", **(headers or {})})


def address_of_slot(port: int, slot: int, start: int = 0) -> str:
    """An address whose connections go to ``slot``, found by asking ``whoami:app``."""
    for address in addresses(1000, start):
        if get(port, "/", address).json()["slot"] == slot:
            return address
    raise AssertionError(f"not one of 1000 addresses goes to slot {slot}")


class Load:
    """Clients that ask for / without a pause until the block ends, each request over a new connection.

    Nothing is asserted here: ``failures`` has a line of text for every request without a 200, and ``replies``
    counts the others by address, slot and pid; ``history`` has each address's pids in the order of its requests.

    :param clients: the addresses; each waits for its reply before it sends its next request
    :param threads: how many of them are under way at once
    :param body: what is sent with POST; None for GET, which proxies may send again where a connection was lost
    """

    def __init__(
        self,
        port: int,
        clients: Sequence[str],
        *,
        threads: int = 4,
        timeout: float = 20.0,
        body: bytes | None = None,
    ) -> None:
        self.port = port
        self.failures: list[str] = []
        self.replies: Counter[tuple[str, int, int]] = Counter()
        self.history: dict[str, list[int]] = {}
        self._timeout = timeout
        self._body = body
        self._changed = threading.Condition()
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(clients[number::threads],), name=f"load {number}")
            for number in range(min(threads, len(clients)))
        ]

    def _run(self, clients: Sequence[str]) -> None:
        while True:
            for address in clients:
                if self._end.is_set():
                    return
                self._once(address)

    def _once(self, address: str) -> None:
        began = time.monotonic()
        try:
            with Client(self.port, address, timeout=self._timeout) as client:
                method = "GET" if self._body is None else "POST"
                who = client.fetch(method, "/", self._body, {"Connection": "close"}).json()
        except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
            with self._changed:
                seconds = time.monotonic() - began
                self.failures.append(f"{address} after {seconds:.2f} s: {type(error).__name__}: {error}")
                self._changed.notify_all()
        else:
            with self._changed:
                self.replies[address, who["slot"], who["pid"]] += 1
                self.history.setdefault(address, []).append(who["pid"])
                self._changed.notify_all()

    def wait_for(self, count: int, timeout: float = 30.0) -> None:
        """Wait until ``count`` more requests have ended, well or badly."""

        def ended() -> int:
            return self.replies.total() + len(self.failures)

        with self._changed:
            goal = ended() + count
            assert self._changed.wait_for(lambda: ended() >= goal, timeout), (
                f"{goal - ended()} of {count} requests didn't end within {timeout:g} s"
            )

    def slots(self, address: str) -> set[int]:
        """The slots that ``address`` was served by."""
        return {slot for client, slot, _ in self.replies if client == address}

    def pids(self, address: str) -> set[int]:
        """The workers that ``address`` was served by."""
        return {pid for client, _, pid in self.replies if client == address}

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


# --- servers ------------------------------------------------------------------------------------------------


class Process:
    """A program that runs in a session of its own, and its log; a context manager.

    :param command: the program and its arguments
    :param env: environment variables beside those of the tests, less every setting of a server
    :param cwd: the directory it runs in
    :param prefix: a program that starts the command, for limits and such: ``("prlimit", "--nofile=64")``
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = APPS,
        prefix: Sequence[str] = (),
    ) -> None:
        self.command = [*prefix, *(os.fspath(part) for part in command)]
        self._env = _environment(env or {})
        self._cwd = cwd
        self._lines: list[str] = []
        self._line = b""  # what has come of the next one
        self._changed = threading.Condition()
        self._ended = True
        self._popen: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    # life

    def start(self: _S) -> _S:
        """Start the program, or start it again after its end; returns once it is ready for the test."""
        read_end, write_end = os.pipe()
        try:
            self._popen = subprocess.Popen(
                self._complete(self.command, write_end),
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            os.close(write_end)
            raise
        self._log_is_passed(write_end)
        os.set_blocking(read_end, False)
        self._log_end = read_end
        self._ended = False
        if self not in STARTED:
            STARTED.append(self)
        self._reader = threading.Thread(target=self._read, name=f"log of {self.pid}", daemon=True)
        self._reader.start()
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def _complete(self, command: list[str], log: int) -> list[str]:
        """The command with what is known only when it starts: the descriptor of its log in this process."""
        del log
        return command

    def _log_is_passed(self, log: int) -> None:
        # Ours is closed, so that the log ends when the last process of the program has closed it.
        os.close(log)

    def _wait_ready(self) -> None:
        """Return once the test can begin; subclasses wait for their lines."""

    def _read(self) -> None:
        arrival = select.poll()
        arrival.register(self._log_end, select.POLLIN)
        try:
            while not self.closed:
                arrival.poll()
        finally:
            os.close(self._log_end)

    def _take_in(self) -> None:
        """Read what has been written to the log; who asks for lines does so first, for the thread may be late."""
        while not self._ended:
            try:
                piece = os.read(self._log_end, 65536)
            except BlockingIOError:
                return
            *lines, self._line = (self._line + piece).split(b"\n")
            if not piece:
                self._ended = True
                if self._line:
                    lines, self._line = [self._line], b""
            self._lines.extend(line.decode(errors="replace") for line in lines)
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        """The pid of the program as it was started."""
        assert self._popen, "not started"
        return self._popen.pid

    def running(self) -> bool:
        """Whether the program as it was started hasn't exited yet."""
        return self._popen is not None and self._popen.poll() is None

    def family(self) -> list[int]:
        """Every process of the program that still runs, whoever its parent is now."""
        return _family(self.pid, self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the program as it was started."""
        assert self._popen
        self._popen.send_signal(number)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Wait until the program as it was started exits; its exit status (negative: of which signal)."""
        assert self._popen
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.pid} didn't exit within {timeout:g} s") from None

    def stop(self, number: int = SIGTERM, timeout: float = STOP_SECONDS) -> int:
        """Ask the program to stop, wait, and return its exit status; none of its processes may be left."""
        self.signal(number)
        status = self.wait(timeout)
        self.assert_nothing_left()
        self._close()
        return status

    def assert_nothing_left(self, timeout: float = 20.0) -> None:
        """No process of the program runs, at the latest after ``timeout`` seconds."""

        def gone() -> bool:
            return not self.family()

        try:
            wait_until(gone, timeout)
        except AssertionError:
            left = ", ".join(f"{pid} ({command_line(pid)})" for pid in self.family())
            raise AssertionError(f"{timeout:g} s after the end of {self.pid} there still is {left}") from None

    def kill(self) -> None:
        """SIGKILL whatever still runs, without a judgement on it."""
        kill_all(self.family())
        if self._popen:
            self._popen.wait()
        self._close()

    def _close(self) -> None:
        if self._reader:
            self._reader.join(STOP_SECONDS)
            assert not self._reader.is_alive(), "a process outside the server's session holds its log open"

    def __enter__(self: _S) -> _S:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
            return
        try:
            if self.running():
                status = self.stop()
                assert status == 0, f"exit status {status} after SIGTERM"
            else:
                self.assert_nothing_left()
        finally:
            self.kill()

    @property
    def closed(self) -> bool:
        """Whether its log has come to its end, so that nothing of it can run any more."""
        with self._changed:
            self._take_in()
            return self._ended

    # log

    @property
    def log(self) -> str:
        """All of the log so far."""
        with self._changed:
            self._take_in()
            return "\n".join(self._lines)

    def lines(self, after: int = 0) -> list[str]:
        """The lines of the log, or those after a :meth:`mark`."""
        with self._changed:
            self._take_in()
            return self._lines[after:]

    def mark(self) -> int:
        """A place in the log: everything after it is still to come."""
        with self._changed:
            self._take_in()
            return len(self._lines)

    def find(self, regex: str, after: int = 0) -> list[re.Match[str]]:
        """The matches in the log so far, at most one for a line."""
        return [found for line in self.lines(after) if (found := re.search(regex, line))]

    def wait_for(self, regex: str, timeout: float = 20.0, count: int = 1, after: int = 0) -> re.Match[str]:
        """Wait for a line of the log, and return the match.

        :param count: wait until there are so many such lines, and return the match of the last of these
        :param after: look only at the lines after this :meth:`mark`
        """
        pattern = re.compile(regex)
        matches: list[re.Match[str]] = []
        position = after

        def enough() -> bool:
            nonlocal position
            matches.extend(found for line in self._lines[position:] if (found := pattern.search(line)))
            position = max(position, len(self._lines))
            return len(matches) >= count or self._ended

        with self._changed:
            in_time = self._changed.wait_for(enough, timeout)
        if len(matches) < count:
            reason = "all its processes have closed it" if in_time else f"{timeout:g} s are over"
            raise AssertionError(f"{len(matches)} of {count} lines in the log match {regex!r}, and {reason}")
        return matches[count - 1]

    def _wait_for_cluster(self, workers: int) -> None:
        self.wait_for(_LISTENING, START_SECONDS)
        self.wait_for(_ROUTER_READY, START_SECONDS)
        self.wait_for(_WORKER_READY, START_SECONDS, count=workers)

    def _last(self, regex: str) -> re.Match[str]:
        found = self.find(regex)
        assert found, f"no line of the log matches {regex!r}"
        return found[-1]

    # what the log of a server says

    @property
    def ports(self) -> list[int]:
        """The TCP ports it listens at, in the order of its binds."""
        return [int(port) for port in re.findall(r":(\d+)(?=,|$)", self._last(_LISTENING)[1])]

    @property
    def port(self) -> int:
        """The first TCP port it listens at."""
        return self.ports[0]

    @property
    def arbiter_pid(self) -> int:
        """The arbiter that said last where it listens: after SIGUSR2 the new one."""
        return int(self._last(_LISTENING)[2])

    @property
    def listener_pid(self) -> int:
        """The listener that became ready last."""
        return int(self._last(_LISTENER_READY)[1])

    @property
    def worker_pids(self) -> dict[int, int]:
        """Slot -> the worker that became ready last in it (also of a slot that has been retired since)."""
        return {int(found[1]): int(found[2]) for found in self.find(_WORKER_READY)}

    def wait_for_listener(self, after: int, timeout: float = 20.0) -> int:
        """Wait until a listener becomes ready, and return its pid."""
        return int(self.wait_for(_LISTENER_READY, timeout, after=after)[1])

    def wait_for_ring(self, after: int, timeout: float = 20.0) -> int:
        """Wait until connections are routed anew; the process that says so is the listener, or the kernel's arbiter."""
        return int(self.wait_for(_ROUTER_READY, timeout, after=after)[1])

    def wait_for_worker(self, slot: int, after: int, timeout: float = 20.0) -> int:
        """Wait until a worker becomes ready in ``slot``, and return its pid."""
        return int(self.wait_for(rf"Worker ready \(slot:{slot}, pid:(\d+)\)", timeout, after=after)[1])


# For tests of promises that hold whoever routes.
ROUTERS = ("listener", "kernel")

STARTED: list[Process] = []  # conftest.py takes the closed ones out before each test

_LISTENING = r"Listening at: (\S+) \((\d+)\)"
_LISTENER_READY = r"Listener ready \(pid:(\d+)\)"
_ROUTER_READY = r"(?:Listener|Kernel router) ready \((?:slots:\d+, )?pid:(\d+)\)"
_WORKER_READY = r"Worker ready \(slot:(\d+), pid:(\d+)\)"


# On a busy machine a worker may take longer to boot than the default, and others would stand in for it. Where that is
# what a test is about, it says so.
_PATIENCE = {"STICKY_SESSION_FAILOVER": "60"}


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    ours = ("STICKY_SESSION_", "GUNICORN_", "LISTEN_")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ours) and name not in ("WEB_CONCURRENCY", "PYTHONWARNINGS", "NOTIFY_SOCKET")
    }
    # Bytecode could be taken for that of another source file, written in the same second.
    return {**inherited, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **extra}


class Server(Process):
    """A front door with an app, ready once the listener and all workers are.

    :param app: as gunicorn takes it; the modules in ``tests/apps`` can be named
    :param workers: how many; None leaves it to the server
    :param args: more arguments, of gunicorn or (``door="serve"``) ours
    :param env: more environment variables
    :param door: ``"gunicorn"`` for ``gunicorn -k sticky_session.Worker``, or ``"serve"`` for
        ``sticky-session serve``
    :param bind: where to listen
    :param ready: False for a server that is expected not to start, or whose start is the test
    :param prefix: see :class:`Process`
    :param router: who chooses a connection's worker
    """

    def __init__(
        self,
        app: str = "whoami:app",
        *,
        workers: int | None = 4,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        door: str = "gunicorn",
        bind: Sequence[str] = ("127.0.0.1:0",),
        cwd: str | os.PathLike[str] = APPS,
        ready: bool = True,
        prefix: Sequence[str] = (),
        router: str = "listener",
    ) -> None:
        doors: dict[str, list[str | os.PathLike[str]]] = {
            "gunicorn": [COMMANDS / "gunicorn", "-k", "sticky_session.Worker"],
            "serve": [COMMANDS / "sticky-session", "serve"],
        }
        command = [*doors[door], "--no-control-socket"]
        if workers is not None:
            command += ["--workers", str(workers)]
        for place in bind:
            command += ["--bind", place]
        if router != "listener":
            env = {"STICKY_SESSION_ROUTER": router, **(env or {})}
        super().__init__([*command, *args, app], env={**_PATIENCE, **(env or {})}, cwd=cwd, prefix=prefix)
        self._workers = workers or int(self._env.get("WEB_CONCURRENCY", len(os.sched_getaffinity(0))))
        self._ready = ready

    def _wait_ready(self) -> None:
        if self._ready:
            self._wait_for_cluster(self._workers)


class Daemon(Server):
    """A :class:`Server` started with ``-D``; what is signalled and waited for is the arbiter left behind.

    That one has an exit status for us because :func:`adopt_orphans` makes it a child of the tests.
    """

    def _complete(self, command: list[str], log: int) -> list[str]:
        *front, app = command
        # A daemon closes its stdout and stderr; by this path it opens the same pipe again.
        return [*front, "--daemon", "--error-logfile", f"/proc/{os.getpid()}/fd/{log}", app]

    def _log_is_passed(self, log: int) -> None:
        self._log: int | None = log

    def _wait_ready(self) -> None:
        super()._wait_ready()
        self._daemon = self.arbiter_pid
        self._status: int | None = None
        stat = _stat(self._daemon)
        assert stat, "the daemon exited at once"
        self._session = stat.session

    def running(self) -> bool:
        return alive(self._daemon)

    def family(self) -> list[int]:
        return _family(self._daemon, self._session) if hasattr(self, "_session") else super().family()

    def signal(self, number: int) -> None:
        os.kill(self._daemon, number)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        if self._status is None:

            def reaped() -> int:
                pid, status = os.waitpid(self._daemon, os.WNOHANG)
                self._status = os.waitstatus_to_exitcode(status)
                return pid

            wait_until(reaped, timeout, f"the daemon {self._daemon} exited")
        assert self._status is not None
        return self._status

    def _close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None
        super()._close()


class Script(Process):
    """A Python script, for example one that calls ``sticky_session.listen``.

    :param source: the script's text, or the path of its file
    :param workers: how many workers it starts, to wait for; None: it is no server, or its start is the test
    :param options: of the Python interpreter
    :param args: of the script
    """

    def __init__(
        self,
        source: str | Path,
        *args: str,
        workers: int | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = APPS,
        prefix: Sequence[str] = (),
    ) -> None:
        program = [os.fspath(source)] if isinstance(source, Path) else ["-c", source]
        command = [sys.executable, *options, *program, *args]
        super().__init__(command, env={**_PATIENCE, **(env or {})}, cwd=cwd, prefix=prefix)
        self._workers = workers

    def _wait_ready(self) -> None:
        if self._workers is not None:
            self._wait_for_cluster(self._workers)
