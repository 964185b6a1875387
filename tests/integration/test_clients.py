"""Real clients: what browsers, Node, Python and curl run, each as itself."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import requests.adapters
import socketio

from harness import Client, Server, addresses, connect, get
from node_clients import EVENTS, KEEP, Result, assert_answered, assert_at_home, node

ANSWER_SECONDS = 20


@pytest.fixture(scope="module", params=["gunicorn", "serve"])
def sio(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A Socket.IO app, started in either way."""
    with Server("sio:app", workers=4, door=request.param) as server:
        yield server


@pytest.fixture(scope="module")
def eio() -> Iterator[Server]:
    """A bare Engine.IO app."""
    with Server("eio:app", workers=4) as server:
        yield server


@pytest.fixture(scope="module")
def flask_sio() -> Iterator[Server]:
    """A Flask-SocketIO app."""
    with Server("flask_sio:app", workers=4) as server:
        yield server


@pytest.fixture(scope="module")
def whoami() -> Iterator[Server]:
    """A WSGI app that answers HTTP requests."""
    with Server(workers=2) as server:
        yield server


def assert_served(results: list[Result], server: Server, mode: str) -> None:
    """Every client had all its answers without an error, from one worker, over the right transport."""
    assert_answered(results, mode)
    assert_at_home(results, server)


@pytest.mark.parametrize("mode", ["polling", "upgrade", "websocket"])
def test_socket_io_client(sio: Server, mode: str) -> None:
    """socket.io-client, 50 addresses, 4 workers: all events are answered, each address by one worker."""
    results = node(sio.port, "socket.io", mode, addresses(50))
    assert len(results) == 50
    assert_served(results, sio, mode)
    for result in results:
        assert result["connections"] == result["requests"], "each request was to be a new connection"


def test_socket_io_client_with_keep_alive() -> None:
    """Long-polling over kept-alive connections works too, with fewer connections than requests."""
    with Server("sio:app", workers=4, args=KEEP) as server:
        results = node(server.port, "socket.io", "polling", addresses(50), keepAlive=True)
        assert_served(results, server, "polling")
        for result in results:
            assert result["connections"] < result["requests"] / 2


@pytest.mark.parametrize("mode", ["polling", "upgrade", "websocket"])
def test_engine_io_client(eio: Server, mode: str) -> None:
    """engine.io-client and a bare Engine.IO app: all messages are answered, each address by one worker."""
    assert_served(node(eio.port, "engine.io", mode, addresses(30)), eio, mode)


@pytest.mark.parametrize("mode", ["polling", "upgrade", "websocket"])
def test_flask_socketio_app(flask_sio: Server, mode: str) -> None:
    """A Flask-SocketIO app as its documentation has it; its routes reach the same worker as its events."""
    results = node(flask_sio.port, "socket.io", mode, addresses(30))
    assert_served(results, flask_sio, mode)
    for result in results:
        assert [get(flask_sio.port, "/", result["address"]).json()["pid"]] == result["pids"]


class SourceAddress(requests.adapters.HTTPAdapter):
    """Makes the connections of a ``requests`` session come from an address."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, source_address=(self._address, 0), **options)


def python_client(port: int, address: str, transports: list[str]) -> tuple[list[int], str]:
    """One python-socketio client's whole life: the pids that answered, and its transport at the end."""
    pids = []
    with requests.Session() as session:
        session.mount("http://", SourceAddress(address))
        options: dict[str, Any] = {}
        if "websocket" in transports:
            options["socket"] = connect(port, address)
        client = socketio.Client(
            http_session=session,
            websocket_extra_options=options,
            request_timeout=ANSWER_SECONDS,
            reconnection=False,
        )
        gone = threading.Event()
        client.on("disconnect", lambda *_: gone.set())
        client.connect(f"http://127.0.0.1:{port}", transports=transports, wait_timeout=ANSWER_SECONDS)
        try:
            for event in range(EVENTS):
                data, pid = client.call("echo", f"event {event}", timeout=ANSWER_SECONDS)
                assert data == f"event {event}"
                pids.append(pid)
            who = client.call("whoami", timeout=ANSWER_SECONDS)
            assert who["remote_addr"] == address
            transport = client.transport()
        finally:
            client.disconnect()
        assert gone.wait(ANSWER_SECONDS)
    return pids, transport


@pytest.mark.parametrize("sio", ["gunicorn"], indirect=True)
@pytest.mark.parametrize("transports", [["polling"], ["polling", "websocket"], ["websocket"]], ids="+".join)
def test_python_socketio_client(sio: Server, transports: list[str]) -> None:
    """python-socketio's own client: every call is answered, all calls of an address by one worker."""
    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(python_client, sio.port, address, transports) for address in addresses(16)]
        for client in clients:
            pids, transport = client.result()
            assert len(pids) == EVENTS
            assert len(set(pids)) == 1
            assert transport == transports[-1]
    assert "Traceback" not in sio.log


def curl(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run curl at the address 127.0.0.9."""
    finished = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "20", "--interface", "127.0.0.9", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return finished


def test_curl_get(whoami: Server) -> None:
    """curl gets a page, and the app sees curl's own address."""
    who = json.loads(curl(f"http://127.0.0.1:{whoami.port}/").stdout)
    assert who["remote_addr"] == "127.0.0.9"
    assert who["scheme"] == "http"
    assert whoami.worker_pids[who["slot"]] == who["pid"]
    assert who["worker_id"] == who["slot"]


def test_curl_keeps_the_connection_alive(whoami: Server) -> None:
    """Two requests of one curl go over one connection."""
    url = f"http://127.0.0.1:{whoami.port}/"
    printed = curl("--write-out", "\n%{num_connects}\n", url, url).stdout.splitlines()
    first, connects, second, connects_again = printed
    assert (connects, connects_again) == (b"1", b"0")
    assert json.loads(first) == json.loads(second)


def test_curl_head(whoami: Server) -> None:
    """HEAD is answered with the head of the GET, no body, and the connection stays usable."""
    url = f"http://127.0.0.1:{whoami.port}/big?bytes=1000"
    printed = curl("--head", "--write-out", "%{num_connects}", url, "--next", "--silent",
                   "--write-out", "%{num_connects}", url).stdout  # fmt: skip
    head, _, rest = printed.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: 1000" in head.lower()
    assert rest == b"1" + b"x" * 1000 + b"0"


def test_curl_expects_100_continue(whoami: Server) -> None:
    """An upload that waits for ``100 Continue`` before it sends its body gets it."""
    body = bytes(range(256)) * 400
    finished = curl(
        "--verbose", "--expect100-timeout", "60", "--header", "Expect: 100-continue",
        "--data-binary", "@-", f"http://127.0.0.1:{whoami.port}/echo",
        stdin=body,
    )  # fmt: skip
    assert b"< HTTP/1.1 100 Continue" in finished.stderr
    assert finished.stdout == body


def test_curl_chunked_upload(whoami: Server) -> None:
    """An upload without a length arrives whole."""
    body = bytes(range(256)) * 2000
    finished = curl(
        "--header", "Transfer-Encoding: chunked", "--header", "Expect:",
        "--data-binary", "@-", f"http://127.0.0.1:{whoami.port}/echo",
        stdin=body,
    )  # fmt: skip
    assert finished.stdout == body


def test_two_thousand_addresses() -> None:
    """No address of 2,000 ever sees two workers, and the slots' shares are within 15 % of their mean."""
    clients = addresses(2000)
    with Server(workers=4) as server:

        def served_by(address: str) -> tuple[int, int]:
            seen = set()
            for _ in range(2):
                with Client(server.port, address) as client:
                    who = client.get().json()
                    assert (who["remote_addr"], int(who["remote_port"])) == client.source
                seen.add((who["slot"], who["pid"]))
            assert len(seen) == 1, f"{address} saw {seen}"
            return seen.pop()

        with ThreadPoolExecutor(8) as pool:
            served = list(pool.map(served_by, clients))
        assert set(served) == set(server.worker_pids.items())
        shares = Counter(slot for slot, _ in served)
        mean = len(clients) / 4
        assert all(0.85 * mean <= share <= 1.15 * mean for share in shares.values()), shares
