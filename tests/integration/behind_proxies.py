"""Servers behind real proxies, crowds of Node's clients before them, and what the workers have logged of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness import HOST, Server, addresses
from node_clients import NodeClients, assert_answered, assert_at_home
from proxies import Proxy, told

WORKERS = 4

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
