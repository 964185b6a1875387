"""Sessions over proxies' kept-alive connections: WebSockets, and Engine.IO's polling."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from harness import Server
from upstream import Upstream, home, request, strangers
from websocket_wire import HANDSHAKE, TEXT, WebSocketWire, frame
from wire import Answer

KEEP = ("--keep-alive", "60")


class UpstreamWebSocket(Upstream, WebSocketWire):
    """A proxy's connection that becomes a client's WebSocket after some requests of others."""

    def __init__(self, port: int) -> None:
        Upstream.__init__(self, port)

    def upgrade(self, client: str, path: str, *behind: bytes) -> Answer:
        """The answer to an upgrade, together with which these frames are sent."""
        lines = [f"GET {path} HTTP/1.1", f"X-Forwarded-For: {client}", *HANDSHAKE]
        self.send(*lines, body=b"".join(behind))
        return self.answer()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Four workers that speak WebSocket."""
    with Server("echo_websocket:app", workers=4, args=KEEP) as server:
        yield server


def test_websocket(server: Server) -> None:
    """A connection that has moved, and moves again for it, becomes a WebSocket."""
    for client in strangers(8):
        with UpstreamWebSocket(server.port) as upstream:
            for other in strangers(5):
                assert upstream.ask(other).json()["slot"] == home(other)
            early = [frame(TEXT, b"early"), frame(TEXT, b"x" * 3000)]
            assert upstream.upgrade(client, "/echo", *early).status == 101
            assert [upstream.frame().payload for _ in early] == [b"early", b"x" * 3000]
            for size in (0, 1, 125, 70_000):
                upstream.write(frame(TEXT, b"x" * size))
                assert upstream.frame().payload == b"x" * size


def test_websocket_refused(server: Server) -> None:
    """An upgrade that the app refuses is answered by the client's worker."""
    for client in strangers(5):
        with UpstreamWebSocket(server.port) as upstream:
            upstream.ask(strangers(4)[-1])
            assert upstream.upgrade(client, "/refuse").status == 403


def test_simple_websocket(server: Server) -> None:
    """simple-websocket, which takes the socket from behind our back, finds the right one."""
    for client in strangers(5):
        with UpstreamWebSocket(server.port) as upstream:
            upstream.ask(strangers(4)[-1])
            assert upstream.upgrade(client, "/simple-websocket").status == 101
            for text in (b"one", b"x" * 10_000):
                upstream.write(frame(TEXT, text))
                assert upstream.frame().payload == text


def test_polling_sessions() -> None:
    """60 Engine.IO sessions by polling over 4 connections that take them in any order: each stays with its worker."""
    path = "/engine.io/?EIO=4&transport=polling"
    clients = [f"198.51.100.{number}" for number in range(1, 61)]
    pids: dict[str, set[int]] = {client: set() for client in clients}
    statuses: Counter[int] = Counter()
    sessions: dict[str, str] = {}
    lock = threading.Lock()
    with Server("eio:app", workers=4, args=KEEP) as server:

        def turn(upstream: Upstream, client: str, number: int) -> None:
            """A session's beginning, or one message and its echo."""
            if client not in sessions:
                answer = upstream.ask(client, path)
                statuses[answer.status] += 1
                sessions[client] = json.loads(answer.body[1:])["sid"]
                return
            own = f"{path}&sid={sessions[client]}"
            upstream.sock.sendall(request(client, own, b"4message %d" % number))
            answer = upstream.answer()
            statuses[answer.status] += 1
            assert answer.body == b"OK"
            answer = upstream.ask(client, own)
            statuses[answer.status] += 1
            # Packets are parted by the record separator.
            echoes = [json.loads(packet[1:]) for packet in answer.body.split(b"\x1e") if packet[:1] == b"4"]
            assert [data for data, _ in echoes] == [f"message {number}"]
            pids[client].update(pid for _, pid in echoes)

        def run(seed: int) -> None:
            mine = clients[seed::4]
            for number in range(12):
                random.Random(seed * 100 + number).shuffle(mine)
                for client in mine:
                    # Any of the connections, whichever is free, as in a proxy's pool.
                    with lock:
                        upstream = free.pop(random.Random(number).randrange(len(free)))
                    turn(upstream, client, number)
                    with lock:
                        free.append(upstream)

        free = [Upstream(server.port) for _ in range(5)]
        failures: list[BaseException] = []

        def guarded(seed: int) -> None:
            try:
                run(seed)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for upstream in free:
            upstream.close()
        assert failures == []
        assert set(statuses) == {200}
        assert pids == {client: {server.worker_pids[home(client)]} for client in clients}
        assert {home(client) for client in clients} == {0, 1, 2, 3}
