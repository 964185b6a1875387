"""Starts what is measured: ours and plain gunicorn; the routers of other projects are in routers.py.

Each server runs in a temporary folder of its own and listens on 127.0.0.1 on a free port. Functions that
start one take a stack, which stops the server and removes its folder when it is left; how many workers
it should have; and the application, as gunicorn names it: app.py's or that of sessions.py.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from measure import process_tree

HERE = Path(__file__).resolve().parent

APP = "app:app"
SESSIONS = "sessions:app"

PLAIN_WORKER = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
STICKY_WORKER = "sticky_session.Worker"

READY_SECONDS = 30.0
STOP_SECONDS = 10.0


class ServerError(Exception):
    """A server did not start, or stopped by itself."""


@dataclass
class Server:
    """A running server.

    :ivar name: as it is called in the tables
    :ivar process: its first process
    :ivar port: where clients connect
    :ivar routers: the processes that decide where a connection goes
    :ivar backends: servers behind it
    """

    name: str
    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    routers: list[int] = field(default_factory=list)
    backends: list[Server] = field(default_factory=list)

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def processes(self) -> list[int]:
        """All its processes, those of its backends included."""
        return process_tree(self.process.pid) + [pid for backend in self.backends for pid in backend.processes]

    @property
    def workers(self) -> list[int]:
        """Its processes, and those of its backends, that are neither routers nor the first one."""
        own = [pid for pid in process_tree(self.process.pid) if pid not in (self.process.pid, *self.routers)]
        return own + [pid for backend in self.backends for pid in backend.workers]

    def check(self) -> None:
        """Raise :class:`ServerError` if it is no longer running."""
        if self.process.poll() is not None:
            raise ServerError(f"{self.name} exited with status {self.process.returncode}:\n{self.log}")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until ``condition()`` is true."""
        until = time.monotonic() + READY_SECONDS
        while not condition():
            self.check()
            if time.monotonic() > until:
                raise ServerError(f"{self.name}: {what} after {READY_SECONDS:g} s:\n{self.log}")
            time.sleep(0.05)

    def wait_for_workers(self, count: int) -> None:
        """Wait until ``count`` different processes have answered a request."""
        seen: set[bytes] = set()
        clients = iter(range(1, 1_000_000))

        def ask() -> bool:
            number = next(clients)
            source = f"127.250.{number >> 8 & 255}.{number & 255}"
            with suppress(OSError):
                seen.add(get(self.port, source))
            return len(seen) >= count

        self.wait(ask, f"not all of {count} workers have answered")

    def stop(self) -> None:
        """Stop it, politely first."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # It is the leader of a process group that holds its children.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def get(port: int, source: str) -> bytes:
    """The body of the answer to one GET request from ``source``.

    :raises OSError: there is no good answer
    """
    with socket.create_connection(("127.0.0.1", port), 5, (source, 0)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or not body:
        raise ConnectionError(f"unexpected answer: {head[:80]!r}")
    return body


def launch(
    stack: ExitStack,
    name: str,
    command: Sequence[str],
    port: int = 0,
    files: dict[str, str] | None = None,
    variables: dict[str, str] | None = None,
) -> Server:
    """Start a command in a temporary folder that holds ``files``, with more environment ``variables``."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
    for file, text in (files or {}).items():
        (folder / file).write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - the commands are those below
            command,
            cwd=folder,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = Server(name, process, folder, port)
    stack.callback(server.stop)
    return server


def launch_gunicorn(
    stack: ExitStack,
    name: str,
    worker_class: str,
    workers: int,
    app: str,
    *arguments: str,
    variables: dict[str, str] | None = None,
) -> Server:
    """Start gunicorn, and don't wait for it."""
    return launch(
        stack,
        name,
        [
            *(sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind", "127.0.0.1:0"),
            *("--worker-class", worker_class, "--workers", str(workers)),
            # Room for the idle connections, which also must stay open.
            *("--worker-connections", "16384", "--keep-alive", "600"),
            *("--pythonpath", str(HERE), *arguments, app),
        ],
        variables=variables,
    )


def wait_for_port(server: Server) -> None:
    """Wait until gunicorn says where it listens."""
    server.wait(lambda: re.search(r"Listening at: \S+:\d+ ", server.log), "not listening")
    server.port = int(re.findall(r"Listening at: \S+:(\d+) ", server.log)[0])


def plain(stack: ExitStack, workers: int, app: str = APP) -> Server:
    """Start plain gunicorn: the workers share one listening socket, nothing is sticky."""
    server = launch_gunicorn(stack, "plain gunicorn", PLAIN_WORKER, workers, app)
    wait_for_port(server)
    server.wait_for_workers(workers)
    return server


def plain_alone(stack: ExitStack, _workers: int, app: str = APP) -> Server:
    """Start plain gunicorn with the one worker that Socket.IO allows it."""
    return plain(stack, 1, app)


def simple_websocket(stack: ExitStack, workers: int, _app: str = APP) -> Server:
    """Start plain gunicorn with simple-websocket.

    `-k gevent` is how python-socketio's and Flask-SocketIO's documentation runs it beside gevent. The other way
    that they name, `--threads 100`, has a thread for each connection, and room for no more.
    """
    server = launch_gunicorn(stack, "simple-websocket", "gevent", workers, "simple:app")
    wait_for_port(server)
    server.wait_for_workers(workers)
    return server


def ours(stack: ExitStack, workers: int, app: str = APP, *arguments: str) -> Server:
    """Start gunicorn with our workers, and our listener."""
    server = launch_gunicorn(stack, "ours", STICKY_WORKER, workers, app, *arguments)
    wait_for_port(server)
    server.wait(lambda: listeners(server), "no listener")
    server.routers = listeners(server)
    server.wait_for_workers(workers)
    return server


def ours_kernel(stack: ExitStack, workers: int, app: str = APP) -> Server:
    """Start gunicorn with our workers, which the kernel gives the connections to: no process routes them."""
    server = launch_gunicorn(
        stack, "ours, kernel", STICKY_WORKER, workers, app, variables={"STICKY_SESSION_ROUTER": "kernel"}
    )
    wait_for_port(server)
    server.wait_for_workers(workers)
    # None, if it is as it says.
    server.routers = listeners(server)
    return server


def listeners(server: Server) -> list[int]:
    """Our listener's process, if there is one."""
    return [int(pid) for pid in re.findall(r"Listener ready \(pid:(\d+)\)", server.log)[-1:]]


def ours_behind_proxies(stack: ExitStack, workers: int) -> Server:
    """The same as :func:`ours`, with all peers as trusted proxies: it reads who their clients are."""
    return ours(stack, workers, APP, "--forwarded-allow-ips", "127.0.0.0/8")


def ours_without_header(stack: ExitStack, workers: int) -> Server:
    """The same, but it doesn't read who the clients are."""
    config = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))) / "config.py"
    # Under the plain gunicorn command there is no flag for it.
    config.write_text(f"import os\nos.environ[{'STICKY_SESSION_CLIENT_HEADER'!r}] = 'off'\n")
    return ours(stack, workers, APP, "--forwarded-allow-ips", "127.0.0.0/8", "--config", str(config))


@functools.cache
def kernel_routes() -> bool:
    """Whether ours can have the kernel route."""
    command = [sys.executable, "-m", "sticky_session", "serve", "--help"]
    # It is our own command.
    return "--router" in subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
