"""What is measured, and on which servers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import routers
import servers
from sticky_session import Ring

# How many addresses the clients have. A prime, so that no router that takes turns gives each address the same worker.
CLIENTS = 2039

# The servers' names in the tables.
OURS = "ours"
KERNEL = "ours, kernel router"
PLAIN = "plain"
ALONE = "plain, one worker"
SIMPLE = "simple-websocket"
NGINX = "nginx"
NGINX_KEEPALIVE = "nginx, kept-alive upstreams"
HAPROXY = "HAProxy"
NODE_STICKY = "Node sticky-session"
NODE_SOCKETIO = "Node @socket.io/sticky"

Start = Callable[[contextlib.ExitStack, int, str], servers.Server]

STARTS: dict[str, Start] = {
    OURS: servers.ours,
    KERNEL: servers.ours_kernel,
    PLAIN: servers.plain,
    ALONE: servers.plain_alone,
    SIMPLE: servers.simple_websocket,
    NGINX: routers.nginx,
    NGINX_KEEPALIVE: routers.nginx_keepalive,
    HAPROXY: routers.haproxy,
    NODE_STICKY: routers.node_sticky_session,
    NODE_SOCKETIO: routers.node_socketio_sticky,
}

ROUTERS = (NGINX, NGINX_KEEPALIVE, HAPROXY, NODE_STICKY, NODE_SOCKETIO)


@dataclass(frozen=True)
class Workload:
    """Load of one kind.

    :ivar mode: of the load generator
    :ivar connections: how many clients send at a time
    :ivar servers: on which it is put
    :ivar grown: those of them whose growth is measured
    :ivar options: more of the load generator's
    :ivar app: the application, as gunicorn names it
    :ivar unit: what is counted
    """

    name: str
    mode: str
    connections: int
    servers: tuple[str, ...]
    grown: tuple[str, ...]
    options: dict[str, int] = field(default_factory=dict)
    app: str = servers.APP
    unit: str = "requests"


NEW = Workload(
    "new connection per request",
    "new",
    32,
    (OURS, KERNEL, PLAIN, *ROUTERS),
    (OURS, KERNEL, PLAIN, NGINX_KEEPALIVE),
)
KEPT_ALIVE = Workload("kept-alive requests", "keepalive", 64, (OURS, PLAIN), (OURS, PLAIN))
# A handshake, three events with their acknowledgements, and a close: ten requests on ten connections.
POLLING = Workload(
    "polling sessions",
    "polling",
    32,
    (OURS, KERNEL, ALONE, *ROUTERS),
    (OURS, KERNEL, NGINX_KEEPALIVE),
    app=servers.SESSIONS,
    unit="sessions",
)
ECHO = Workload(
    "WebSocket echo, 32 B", "websocket", 64, (OURS, PLAIN, SIMPLE), (OURS, PLAIN), {"bytes": 32}, unit="messages"
)
ECHO_4K = Workload(
    "WebSocket echo, 4 KiB", "websocket", 64, (OURS, PLAIN, SIMPLE), (OURS, PLAIN), {"bytes": 4096}, unit="messages"
)

WORKLOADS = (NEW, KEPT_ALIVE, POLLING, ECHO, ECHO_4K)


@dataclass(frozen=True)
class Paced:
    """Requests that come at times fixed in advance, at a share of what the slowest of the servers can answer.

    :ivar connections: the most at a time; a request that finds none free waits, and the wait is measured too
    :ivar servers: those whose latencies are compared
    """

    workload: Workload
    connections: int
    servers: tuple[str, ...]
    share: float = 0.7


PACED = (Paced(NEW, 1024, (OURS, KERNEL, PLAIN)), Paced(KEPT_ALIVE, 64, (OURS, PLAIN)))

# How many clients more sends than two workers answer in a run, and more connections than a proxy has that needs two for
# each: where it ends for these.
MOST_CLIENTS = {POLLING.name: 1000, NGINX_KEEPALIVE: 1000}


def crowds(workload: Workload, server: str, clients: tuple[int, ...]) -> list[int]:
    """The numbers of clients that are put on a server."""
    most = min(MOST_CLIENTS.get(workload.name, max(clients)), MOST_CLIENTS.get(server, max(clients)))
    return [number for number in clients if number <= most]


@dataclass(frozen=True)
class Proxied:
    """Load of proxies, whose requests say who their clients are.

    Each connection's client has the connection's own address, unless it moves: so it makes no difference to where
    requests go whether a server reads the header or not.

    :ivar mode: of the load generator
    :ivar sources: how many addresses
    """

    name: str
    mode: str
    connections: int
    sources: int

    def options(self, workers: int) -> dict[str, int | str]:
        """Options of the load generator."""
        clients = neighbours(self.sources, workers) if self.mode == "moving" else addresses(self.sources)
        return {"connections": self.connections, "sources": self.sources, "clients": ",".join(clients)}


STAYING = Proxied("kept-alive requests that stay", "keepalive", 64, 64)
MOVING = Proxied("kept-alive requests that all move", "moving", 64, 64)
PEEKED = Proxied("new connection per request", "new", 32, CLIENTS)


@dataclass(frozen=True)
class Many:
    """So many moves that whatever one of them left behind would be seen."""

    workers: int = 4
    connections: int = 16
    seconds: int = 120


MANY_MOVES = Many()


def addresses(count: int) -> list[str]:
    """The load generator's sources."""
    return [str(IPv4Address("127.1.0.1") + number) for number in range(count)]


def neighbours(count: int, workers: int) -> list[str]:
    """About ``count`` clients, no two neighbours of which belong to the same of ``workers`` workers."""
    ring = Ring(workers)
    slots: list[list[str]] = [[] for _ in range(workers)]
    for address in addresses(8 * count + 1000):
        slots[ring.slot(socket.inet_aton(address))].append(address)
    return [slot[turn] for turn in range(max(1, count // workers)) for slot in slots]


@dataclass(frozen=True)
class Idle:
    """Connections of one kind that are open and idle.

    :ivar mode: of the load generator
    :ivar warm_up: its mode for what a fresh server serves before its memory is measured
    """

    name: str
    mode: str
    warm_up: str
    servers: tuple[str, ...]
    app: str = servers.APP


IDLE_CONNECTIONS = Idle("idle connections", "idle", "new", (OURS, PLAIN))
IDLE_WEBSOCKETS = Idle("idle WebSockets", "idle-websocket", "websocket", (OURS, PLAIN, *ROUTERS))
IDLE_CLIENTS = Idle("idle Socket.IO clients on WebSockets", "idle-session", "new", (OURS, PLAIN), servers.SESSIONS)
IDLE = (IDLE_CONNECTIONS, IDLE_WEBSOCKETS, IDLE_CLIENTS)
