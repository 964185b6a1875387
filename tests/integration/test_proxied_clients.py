"""Real clients behind real proxies, each with the configuration and with the flags that ``proxy-config`` prints."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from signal import SIGHUP, SIGKILL
from typing import NamedTuple

import pytest

from harness import HOST, Load, Server, addresses, children, get, make_certificate, wait_until
from midway import ask, clients_of, websocket_to
from node_clients import EVENTS, KEEP, NodeClients, assert_answered, assert_at_home, home, node
from proxies import NEWER, PROXIES, Apache, Caddy, Haproxy, Nginx, Proxy, open_folder, told, version
from sticky_session import proxyconfig
from sticky_session.proxyconfig import HEADER, PROXY_PROTOCOL

WORKERS = 4
MODES = pytest.mark.parametrize("mode", ["polling", "upgrade", "websocket"])
ALL = pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)

# Our peer, or who the PROXY protocol says it is; its port; the header; the worker; what was asked and answered.
ACCESS_LOG = "served %(h)s %({remote_port}e)s %({x-forwarded-for}i)s %(p)s %(m)s %(s)s"


class Served(NamedTuple):
    """A request, as a worker has logged it."""

    peer: str
    port: str
    header: str
    pid: int
    method: str
    status: int


SERVED = re.compile(r"served (\S+) (\S+) (\S+) <(\d+)> (\S+) (\d+)")


def served(server: Server, after: int, before: int | None = None) -> list[Served]:
    """The requests that have been answered; those of one connection, but not of different ones, are in order.

    :param after: look only at the lines after this mark of the log
    :param before: and before this one
    """
    lines = server.lines()[after:before]
    found = filter(None, map(SERVED.fullmatch, lines))
    return [Served(one[1], one[2], one[3], int(one[4]), one[5], int(one[6])) for one in found]


def by_connection(requests: Sequence[Served]) -> list[list[Served]]:
    """The requests of each connection to us."""
    found = defaultdict(list)
    for request in requests:
        found[request.peer, request.port].append(request)
    return list(found.values())


def behind(
    proxy: type[Proxy],
    *flags: str,
    app: str = "sio:app",
    workers: int = WORKERS,
    bind: Sequence[str] = (f"{HOST}:0",),
    args: Sequence[str] = (),
) -> Server:
    """One of us, started as the configuration says that the proxy prints, given these flags."""
    log = ("--access-logfile", "-", "--access-logformat", ACCESS_LOG)
    return Server(app, workers=workers, door="serve", bind=bind, args=[*told(proxy, *flags), *log, *args])


def changed(*changes: tuple[str, str]) -> Callable[[str], str]:
    """What edits a configuration as a user might; what is to be changed has to be in it."""

    def edit(printed: str) -> str:
        for before, after in changes:
            assert before in printed
            printed = printed.replace(before, after)
        return printed

    return edit


# So few that they certainly change clients.
FEW = ("keepalive 32;", "keepalive 8;")
SEND_AGAIN = ("# proxy_next_upstream", "proxy_next_upstream")


def half(clients: Sequence[str]) -> list[bool]:
    """Every other client keeps its connections to the proxy alive; the others make a new one for each request."""
    return [number % 2 == 0 for number, _ in enumerate(clients)]


def unlike(count: int) -> list[str]:
    """Addresses of as many networks: nginx's ``ip_hash`` takes a /24 for one client."""
    return [f"127.{number}.3.{number}" for number in range(1, count + 1)]


# --- one machine


@pytest.fixture(scope="module")
def unix() -> Iterator[str]:
    """Where a Unix socket can be."""
    with open_folder("socket-") as folder:
        yield f"unix:{folder}/s"


@pytest.fixture(scope="module")
def chat(unix: str) -> Iterator[Server]:
    """One of us for all proxies, since all say that it is started in the same way; on a Unix socket, too."""
    assert len({tuple(told(proxy)) for proxy in PROXIES}) == 1
    with behind(Nginx, bind=(f"{HOST}:0", unix)) as server:
        yield server


@pytest.fixture(scope="module", params=PROXIES, ids=lambda proxy: proxy.name)
def front(request: pytest.FixtureRequest, chat: Server) -> Iterator[Proxy]:
    """Each proxy, before it."""
    edit = changed(FEW) if request.param is Nginx else str
    with request.param(f"--server={HOST}:{chat.port}", edit=edit) as proxy:
        yield proxy


def crowd(front: Proxy, mode: str, server: Server, *, count: int = 100, **plan: object) -> int:
    """Have many clients connect and ask, half of them over kept connections: all is answered by their own workers.

    :returns: a mark in the server's log; a client that leaves after it may still ask for what a closed session has
    """
    clients = addresses(count)
    with NodeClients(front.port, clients, mode=mode, keepAlive=half(clients), **plan) as asking:
        results = asking.ask()
        end = server.mark()
    assert_answered(results, mode)
    assert_at_home(results, server)
    if mode == "polling":
        for number, result in enumerate(results):
            assert (result["connections"] < result["requests"] / 2) == (number % 2 == 0)
            assert (result["connections"] == result["requests"]) == (number % 2 == 1)
    return end


@MODES
def test_clients(front: Proxy, chat: Server, mode: str) -> None:
    """100 clients, 20 events each: no request fails, nobody reconnects, each is served by its slot's worker.

    Long-polling's connections to us really are shared: each carries requests of many clients, for many workers.
    """
    mark = chat.mark()
    requests = served(chat, mark, crowd(front, mode, chat))
    assert {request.header for request in requests} == set(addresses(100))
    assert {request.status for request in requests} <= {200, 101}
    connections = by_connection(requests)
    shared = [one for one in connections if len({request.header for request in one}) > 1]
    moves = sum(before.pid != after.pid for one in connections for before, after in pairwise(one))
    if mode == "polling":
        assert len(requests) >= 100 * EVENTS
        assert len(connections) < 0.8 * len(requests)
        assert len(shared) >= 50
        assert moves >= 200


@ALL
def test_unix_socket(proxy: type[Proxy], chat: Server, unix: str) -> None:
    """The same over a Unix socket, where all peers look alike: the header alone tells clients apart."""
    told_now = told(proxy, f"--server={unix}")
    assert set(told_now) < set(told(proxy)), "a server on a Unix socket needs no flags that the other hasn't"
    with proxy(f"--server={unix}", edit=changed(FEW) if proxy is Nginx else str) as front:
        crowd(front, "polling", chat, count=40)


def test_websocket_of_another_client_on_a_kept_connection() -> None:
    """nginx sends the handshake over a connection that has carried another worker's client; it goes to its own."""
    with behind(Nginx, app="survivor:app", workers=2) as server:
        with Nginx(f"--server={HOST}:{server.port}", edit=changed(("keepalive 32;", "keepalive 1;"))) as front:
            mark = server.mark()
            clients = [clients_of(slot, 1, workers=2)[0] for slot in (0, 1, 0)]
            for address in clients:
                assert get(front.port, "/", address).json()["pid"] in home(address, server)
            last = clients_of(1, 2, workers=2)[1]
            with websocket_to(front.port, last) as opened:
                assert ask(opened)["pid"] in home(last, server)
            server.wait_for("^served", count=4, after=mark)
            (requests,) = by_connection(served(server, mark))
            assert [request.header for request in requests] == [*clients, last]
            assert [request.status for request in requests] == [200, 200, 200, 101]


# --- several machines

STICKY = [
    pytest.param(proxy, stickiness, id=f"{proxy.name}-{stickiness}")
    for proxy in PROXIES
    for stickiness in proxyconfig.PROXIES[proxy.name].stickiness[HEADER]
]


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Server, Server]]:
    """Two of us."""
    with behind(Nginx, workers=2) as first, behind(Nginx, workers=2) as second:
        yield first, second


@pytest.mark.parametrize(("proxy", "stickiness"), STICKY)
def test_machines(proxy: type[Proxy], stickiness: str, machines: tuple[Server, Server]) -> None:
    """Two machines: each client stays on one of them, and on its own worker there, also when it upgrades."""
    if (proxy, stickiness) == (Nginx, "cookie") and version(proxy) < NEWER[Nginx][1]:
        pytest.skip("this nginx has no sticky")
    clients = unlike(60)
    flags = [f"--server={HOST}:{machine.port}" for machine in machines]
    with proxy(*flags, f"--stickiness={stickiness}") as front:
        results = node(front.port, "socket.io", "upgrade", clients, keepAlive=half(clients), withCredentials=True)
    assert_answered(results, "upgrade")
    assert_at_home(results, *machines)


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
            assert load.failures == []
            assert ESTABLISHED in ours()
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
