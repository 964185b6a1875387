"""What is measured, and the goals."""

from __future__ import annotations

from dataclasses import dataclass, field

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
