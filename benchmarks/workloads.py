"""What is measured, and the goals."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from sticky_session import Ring

# How many addresses the clients have. A prime, so that no router that takes turns gives each address the same worker.
CLIENTS = 2039


@dataclass(frozen=True)
class Workload:
    """Load of one kind.

    :ivar mode: of the load generator
    :ivar options: of the load generator
    :ivar goal: requests per second of ours divided by those of plain gunicorn, at least
    :ivar routed: the routers of other projects are measured too
    """

    name: str
    mode: str
    options: dict[str, int]
    goal: float
    routed: bool = False


WORKLOADS = (
    Workload("new connection per request", "new", {"connections": 32}, 0.95, routed=True),
    Workload("kept-alive requests", "keepalive", {"connections": 64}, 1.0),
    Workload("WebSocket echo, 32 B", "websocket", {"connections": 64, "bytes": 32}, 1.0),
    Workload("WebSocket echo, 4 KiB", "websocket", {"connections": 64, "bytes": 4096}, 1.0),
)

ROUTED = WORKLOADS[0]

ROUTER_GOAL_US = 20.0


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

# CPU of a request that stays, with the header read and without; the listener's CPU for a connection that it looks into.
STAYING_GOAL = 1.05
PEEKED_GOAL_US = 35.0


@dataclass(frozen=True)
class Many:
    """So many moves that whatever one of them left behind would be seen."""

    workers: int = 4
    connections: int = 16
    count: int = 100_000
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
    :ivar routed: the routers of other projects are measured too
    """

    name: str
    mode: str
    warm_up: str = field(default="new", kw_only=True)
    routed: bool = field(default=False, kw_only=True)


IDLE = (
    Idle("idle connections", "idle"),
    Idle("idle WebSockets", "idle-websocket", warm_up="websocket", routed=True),
)

IDLE_WEBSOCKETS = IDLE[1]
