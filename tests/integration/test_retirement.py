"""Workers that leave, by max_requests, close() or a signal: no request fails, and the slot is never empty long."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGHUP, SIGTERM

from harness import HOST, Client, Load, Response, Server, addresses, get, wait_until
from midway import children_and_zombies, clients_of


def test_max_requests_under_load() -> None:
    """Workers that are replaced after so many requests lose none, and clients keep their slots."""
    clients = addresses(40)
    with Server("survivor:app", workers=2, args=("--max-requests", "60")) as server:
        with Load(server.port, clients, threads=6) as load:
            server.wait_for("Autorestarting worker", count=12, timeout=30)
        assert load.failures == []
        for address in clients:
            assert len(load.slots(address)) <= 1
        wait_until(lambda: children_and_zombies(server.arbiter_pid) == 3, what="two workers and the listener")


def test_max_requests_of_kept_alive_connections() -> None:
    """The last response says Connection: close, so that the client knows."""
    with Server("survivor:app", workers=2, args=("--max-requests", "5")) as server, Client(server.port) as client:
        answers = [client.get() for _ in range(5)]
        assert [answer.headers["Connection"] for answer in answers] == [None] * 4 + ["close"]
        assert len({answer.json()["pid"] for answer in answers}) == 1


def test_close_under_load() -> None:
    """sticky_session.close(): the request is answered, the slot is refilled at once, nothing fails meanwhile."""
    victim = clients_of(1, 1, workers=2)[0]
    clients = addresses(40)
    with Server("survivor:app", workers=2) as server:
        with Load(server.port, clients) as load:
            for _ in range(5):
                mark = server.mark()
                who = get(server.port, "/close", victim).json()
                assert (who["slot"], who["pid"]) == (1, server.worker_pids[1])
                assert server.wait_for_worker(1, after=mark) != who["pid"]
                server.wait_for(rf"Worker exiting \(pid: {who['pid']}\)", after=mark)
        assert load.failures == []
        for address in clients:
            assert len(load.slots(address)) <= 1


def test_idle_connections_of_proxies(tmp_path: Path) -> None:
    """A proxy's idle connection takes one more request: the next worker answers it, or after a reload the old one.

    A proxy that has just sent a POST into a connection that is closed answers 502.
    """
    patient = tmp_path / "patient.py"
    patient.write_text(
        "def post_fork(server, worker):\n"
        "    import sticky_session.connection\n"
        "    sticky_session.connection.LAST_REQUEST_SECONDS = 60\n"
    )
    client = {"X-Forwarded-For": clients_of(0, 1, workers=2)[0]}
    args = ("-c", os.fspath(patient), "--keep-alive", "75")
    with Server("survivor:app", workers=2, args=args) as server, Client(server.port, HOST) as proxy:

        def post() -> Response:
            return proxy.fetch("POST", headers=client)

        first = server.worker_pids[0]
        assert post().json()["pid"] == first
        mark = server.mark()
        os.kill(first, SIGTERM)
        second = server.wait_for_worker(0, after=mark)
        assert post().json()["pid"] == second
        server.wait_for(rf"Worker exiting \(pid: {first}\)", after=mark)
        server.signal(SIGHUP)

        def last() -> Response | None:
            answer = post()
            assert answer.json()["pid"] == second
            return answer if answer.headers["Connection"] == "close" else None

        wait_until(last, 20, "the old worker says that it retires")
