"""Connections of real proxies: whose the PROXY protocol says they are, what a failure breaks, how idle ones end."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGKILL

import pytest

from behind_proxies import FEW, SEND_AGAIN, WORKERS, behind, by_connection, changed, crowd, half, served
from harness import HOST, Load, Server, addresses, children, make_certificate, wait_until
from node_clients import KEEP, NodeClients, assert_answered, assert_at_home, home
from proxies import NEWER, Apache, Caddy, Haproxy, Nginx, Proxy, version
from sticky_session.proxyconfig import PROXY_PROTOCOL

# --- the PROXY protocol


@pytest.mark.parametrize(
    ("proxy", "secure"),
    [(Nginx, False), (Haproxy, False), (Haproxy, True), (Caddy, False)],
    ids=["nginx", "haproxy", "haproxy-tls", "caddy"],
)
def test_proxy_protocol(proxy: type[Proxy], secure: bool, tmp_path: Path) -> None:
    """The PROXY header says who the client is, to the app as well; TLS passes through HAProxy and ends in us."""
    if proxy is Caddy and version(proxy) < NEWER[Caddy][1]:
        pytest.skip("this Caddy has no proxy_protocol")
    tls = {}
    args = list(KEEP)
    if secure:
        cert, key = map(os.fspath, make_certificate(tmp_path))
        args += ["--certfile", cert, "--keyfile", key]
        tls = {"ca": cert}
    via = f"--via={PROXY_PROTOCOL}"
    with behind(proxy, via, args=args) as server, proxy(f"--server={HOST}:{server.port}", via) as front:
        mark = server.mark()
        for mode in ("polling", "upgrade", "websocket"):
            crowd(front, mode, server, count=40, **tls)
        requests = served(server, mark)
        assert {request.peer for request in requests} == set(addresses(40))
        assert all(len({request.pid for request in one}) == 1 for one in by_connection(requests))


# --- failures


@pytest.fixture(scope="module")
def chat() -> Iterator[Server]:
    """One of us for several tests; whom they kill is replaced."""
    with behind(Nginx) as server:
        yield server


@pytest.fixture
def nginx(chat: Server) -> Iterator[Nginx]:
    """nginx with few connections; it sends lost requests again, as the configuration says that it can."""
    with Nginx(f"--server={HOST}:{chat.port}", edit=changed(FEW, SEND_AGAIN)) as proxy:
        yield proxy


@pytest.mark.parametrize("mode", ["polling", "websocket"])
def test_reload_of_the_proxy(nginx: Nginx, chat: Server, mode: str) -> None:
    """nginx reloads: nobody reconnects."""
    with NodeClients(nginx.port, addresses(40), mode=mode) as clients:
        clients.ask(2)
        clients.go_on()
        before = set(children(nginx.pid))
        nginx.signal(SIGHUP)
        # With WebSockets the old process of nginx stays until they close.
        wait_until(lambda: len(set(children(nginx.pid)) - before) == 1, what="nginx has begun anew")
        if mode == "polling":
            wait_until(lambda: not before & set(children(nginx.pid)), what="the old process of nginx has gone")
        clients.rest()
        results = clients.ask(2)
    assert_answered(results, mode, events=None)
    assert_at_home(results, chat)


@pytest.mark.parametrize("mode", ["polling", "upgrade"])
def test_killed_workers(nginx: Nginx, chat: Server, mode: str) -> None:
    """Each worker is killed in turn, under load: only its own clients reconnect, to the one that has come after it."""
    everybody = addresses(40)
    with NodeClients(nginx.port, everybody, mode=mode, keepAlive=half(everybody), reconnection=True) as clients:
        before = {result["address"]: result for result in clients.ask(2)}
        for slot in range(WORKERS):
            victim = chat.worker_pids[slot]
            mark = chat.mark()
            clients.go_on()
            if mode == "polling":
                chat.wait_for("^served", count=100, after=mark)
            os.kill(victim, SIGKILL)
            chat.wait_for_worker(slot, after=mark)
            clients.rest()
            after = {result["address"]: result for result in clients.ask(2)}
            for address, result in after.items():
                assert {result["pids"][-1]} == home(address, chat)
                if before[address]["pids"][-1] == victim:
                    assert result["reconnects"] > before[address]["reconnects"]
                else:
                    for fact in ("pids", "reconnects", "errors"):
                        assert result[fact] == before[address][fact], address
            before = after


def test_reload_of_ours(nginx: Nginx, chat: Server) -> None:
    """SIGHUP under load: sessions begin again with the new workers, and no request goes unanswered."""
    everybody = addresses(40)
    with NodeClients(nginx.port, everybody, keepAlive=half(everybody), reconnection=True) as clients:
        clients.ask(2)
        clients.go_on()
        mark = chat.mark()
        old = set(chat.worker_pids.values())
        chat.signal(SIGHUP)
        for pid in old:
            chat.wait_for(rf"Worker exiting \(pid: {pid}\)", after=mark)
        clients.rest()
        for result in clients.ask(2):
            assert {result["pids"][-1]} == home(result["address"], chat)
            assert result["reconnects"] > 0
            assert set(result["statuses"]) <= {"200", "400"}, "400: unknown session"
    assert not old & set(chat.worker_pids.values())


def test_posts_while_we_reload() -> None:
    """SIGHUP: no POST fails, though nginx can't send one again that was lost in a connection we have closed."""
    with behind(Nginx, app="whoami:app") as server, Nginx(f"--server={HOST}:{server.port}") as front:
        with Load(front.port, addresses(40), threads=8, body=b"something") as load:
            for _ in range(3):
                load.wait_for(50)
                mark = server.mark()
                old = set(server.worker_pids.values())
                server.signal(SIGHUP)
                for pid in old:
                    server.wait_for(rf"Worker exiting \(pid: {pid}\)", after=mark)
        assert load.failures == []


def test_end_under_load() -> None:
    """SIGTERM: the requests that fail are those that nginx finds no place to connect to for.

    Each of the eight clients may be reset in the very moment between the last accept and the close: the kernel has no
    way out of that.
    """
    with behind(Nginx, app="whoami:app") as server, Nginx(f"--server={HOST}:{server.port}") as front:
        with Load(front.port, addresses(40), threads=8, body=b"something") as load:
            load.wait_for(100)
            assert load.failures == []
            assert server.stop() == 0
            load.wait_for(20)
        # nginx answers before its log is read here.
        wait_until(lambda: len(front.find(r"\[error\] .*")) >= len(load.failures) > 0, what="nginx has said why")
        errors = front.find(r"\[error\] .*")
        others = [error[0] for error in errors if "connect() failed (111: Connection refused)" not in error[0]]
        assert len(others) <= 8, others


# --- idle connections

# /proc/net/tcp: this end and the other one, address and port in hexadecimal; the state.
TCP_LINE = re.compile(r"^\s*\d+: (\w+:(\w+)) (\w+:\w+) (\w+) ")
ESTABLISHED, TIME_WAIT, LISTENING = 1, 6, 10


def states(port: int) -> dict[tuple[str, str], int]:
    """The server's ends of the connections that there are to its port, and were a short time ago: their states."""
    found = filter(None, map(TCP_LINE.match, Path("/proc/net/tcp").read_text().splitlines()))
    return {
        (one[1], one[3]): int(one[4], 16) for one in found if int(one[2], 16) == port and int(one[4], 16) != LISTENING
    }


# What makes each of them close idle connections sooner. HAProxy's own is 5 s, and it takes several of these for all.
IDLE = {
    Nginx: ("keepalive_timeout 60s;", "keepalive_timeout 1s;"),
    Haproxy: ("http-reuse safe", "http-reuse safe\n    default-server pool-purge-delay 500ms"),
    Caddy: ("keepalive 60s", "keepalive 1s"),
}


@pytest.mark.parametrize("proxy", IDLE, ids=lambda proxy: proxy.name)
def test_idle_connections(proxy: type[Proxy]) -> None:
    """The proxy closes what is idle before we do, so no POST can be lost in a connection that we are closing.

    Who closes a connection first is the one who has to remember it for a minute (TIME_WAIT).
    """
    with behind(proxy, app="whoami:app", workers=1) as server:
        # A client that has gone may have had the same port.
        others = states(server.port).keys()

        def ours() -> list[int]:
            return [state for ends, state in states(server.port).items() if ends not in others]

        with proxy(f"--server={HOST}:{server.port}", edit=changed(IDLE[proxy])) as front:
            with Load(front.port, addresses(8), threads=8, body=b"something") as load:
                load.wait_for(100)
                assert ESTABLISHED in ours()
            assert load.failures == []
            wait_until(lambda: set(ours()) <= {TIME_WAIT}, 30, "what was idle is closed")
            assert ours() == []


def test_idle_connections_of_apache() -> None:
    """Apache leaves connections open that it won't use any more: a POST after ``ttl`` comes over a new one."""
    with behind(Apache, app="whoami:app", workers=1) as server:
        with Apache(f"--server={HOST}:{server.port}", edit=changed(("ttl=60 ", "ttl=1 "))) as front:

            def ports() -> set[str]:
                mark = server.mark()
                with Load(front.port, addresses(8), threads=8, body=b"something") as load:
                    load.wait_for(100)
                assert load.failures == []
                return {request.port for request in served(server, mark)}

            before = ports()
            ended = time.monotonic()
            wait_until(lambda: time.monotonic() - ended > 2, what="what is idle has passed its time")
            assert not before & ports()
