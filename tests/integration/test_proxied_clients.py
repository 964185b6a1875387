"""Real clients behind real proxies, each with the configuration and with the flags that ``proxy-config`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from behind_proxies import FEW, behind, by_connection, changed, crowd, half, served
from harness import HOST, Server, addresses, get
from midway import ask, clients_of, websocket_to
from node_clients import EVENTS, assert_answered, assert_at_home, home, node
from proxies import NEWER, PROXIES, Nginx, Proxy, open_folder, told, version
from sticky_session import proxyconfig
from sticky_session.proxyconfig import HEADER

MODES = pytest.mark.parametrize("mode", ["polling", "upgrade", "websocket"])
ALL = pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)


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
