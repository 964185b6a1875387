"""The benchmarks' load generator: what it counts, and from when it measures."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness import Server, free_port
from measure import Load, MeasureError

STALL_SECONDS = 0.5

# What a fake server answers a request with: the status and the body, from the method, and how many it has answered.
Answer = Callable[[str, int], "tuple[int, str]"]


@pytest.fixture(scope="module")
def load() -> Load:
    """The load generator."""
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed"
    return Load(compiler)


@contextlib.contextmanager
def fake(answer: Answer) -> Iterator[int]:
    """The port of a server that answers as it is told."""
    answered = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answer(self.command, next(answered))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class FakeServer(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """That the client goes away in the middle is what some tests are about."""

    with FakeServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def session(acknowledgement: str) -> Answer:
    """A server of one session whose first event is acknowledged like this."""
    bodies = ['0{"sid":"abc"}', "ok", '40{"sid":"def"}', "ok", acknowledgement]
    return lambda _, number: (200, bodies[number])


def test_sessions_with_sticky_workers(load: Load) -> None:
    """Sessions are served to their end, each client's by one worker, and none is lost."""
    with Server("sio:app", workers=2) as server:
        report = load.run(server.port, "polling", connections=8, seconds=60, count=200, sources=101)
    assert report["requests"] == 200
    assert (report["errors"], report["lost"], report["unfinished"], report["violations"]) == (0, 0, 0, 0)
    assert report["servers"] == 2


def test_idle_sessions(load: Load) -> None:
    """Idle Socket.IO clients are connected when they say so."""
    with Server("sio:app", workers=2) as server, load.hold(server.port, "idle-session", 20):
        pass
    with fake(lambda *_: (200, '0{"sid":"abc"}')) as port, pytest.raises(MeasureError, match=r"HTTP/1\.1 200 OK"):
        with load.hold(port, "idle-session", 1):
            pass


def test_lost_sessions_are_counted(load: Load) -> None:
    """A session that the server doesn't know is lost; nothing else is."""
    with fake(lambda method, _: (200, '0{"sid":"abc"}') if method == "GET" else (400, "")) as port:
        report = load.run(port, "polling", connections=2, seconds=60, count=10)
    assert (report["requests"], report["errors"], report["lost"]) == (0, 10, 10)
    with fake(lambda *_: (400, "")) as port:
        report = load.run(port, "polling", connections=2, seconds=60, count=10)
    assert (report["requests"], report["errors"], report["lost"]) == (0, 10, 0)


@pytest.mark.parametrize(
    "acknowledgement",
    ['431["hello",7]', '430["hallo",7]', '430["hello"]', '430["hello",7]x', "ok", "", "430" + 500 * "x"],
)
def test_wrong_acknowledgements_are_errors(load: Load, acknowledgement: str) -> None:
    """A session goes on only with the right acknowledgement."""
    with fake(session(acknowledgement)) as port:
        report = load.run(port, "polling", connections=1, seconds=60, count=1)
    assert report["first_error"] == "unexpected answer in a session"
    assert (report["requests"], report["errors"], report["lost"]) == (0, 1, 0)


def test_latency_counts_from_when_a_request_is_due(load: Load) -> None:
    """With a rate, a slow answer delays those that were due meanwhile, which they show; without, they are not sent."""

    def answer(_: str, number: int) -> tuple[int, str]:
        if number == 1:
            # The first one opens the connection.
            time.sleep(STALL_SECONDS)
        return 200, "1"

    with fake(answer) as port:
        paced = load.run(port, "keepalive", connections=1, seconds=1, rate=100)
    assert paced["unfinished"] == 0
    assert 60 < paced["requests"] < 140
    with fake(answer) as port:
        unpaced = load.run(port, "keepalive", connections=1, seconds=1, count=paced["requests"])
    assert paced["p99_ms"] > 500 * STALL_SECONDS > unpaced["p99_ms"]


def test_what_is_left_when_time_is_up_is_unfinished(load: Load) -> None:
    """Requests that were due, but couldn't be sent, are counted."""
    silent = threading.Event()

    def answer(_: str, number: int) -> tuple[int, str]:
        if number > 0:
            silent.wait(60)
        return 200, "1"

    with fake(answer) as port:
        report = load.run(port, "keepalive", connections=1, seconds=1, rate=100)
        silent.set()
    assert report["requests"] == 0
    assert report["unfinished"] > 60


@pytest.mark.parametrize("mode", ["new", "keepalive", "polling", "websocket"])
def test_no_server(load: Load, mode: str) -> None:
    """Where nobody listens, the error says so."""
    port = free_port()
    with pytest.raises(MeasureError, match=f"mode {mode}: load: nobody listens on port {port}"):
        load.run(port, mode, seconds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "websocket", "rate": 5}, "--rate: expected --mode new or keepalive"),
        ({"mode": "moving"}, "--clients is missing"),
        ({"mode": "poll"}, "--mode poll: expected new, "),
        ({"mode": "new", "connections": 100_000}, "--connections 100000: expected a number from 1 to 20000"),
    ],
)
def test_wrong_options(load: Load, options: dict[str, int | str], message: str) -> None:
    """What is asked for in a wrong way is refused with what was expected."""
    with pytest.raises(MeasureError, match=message):
        load.run(80, **options)
