"""Turns measurements into the text of RESULTS.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import charts
import memorytables
import plots
import proxytables
import servers
import tables
from install import PEERS, tool
from results import Results, cost
from workloads import CLIENTS, KERNEL, MOVING, NEW, STAYING


def output(*command: str) -> str:
    """What a command prints, on either stream."""
    result = subprocess.run(  # noqa: S603 - asks the peers for their versions
        [tool(command[0]), *command[1:]], capture_output=True, text=True, check=True
    )
    return result.stdout + result.stderr


def versions() -> str:
    """The machine and the software."""
    processor = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    packages = json.loads((PEERS / "package-lock.json").read_text())["packages"]
    npm = ("sticky-session", "@socket.io/sticky", "@socket.io/cluster-adapter", "socket.io")
    python = ("gunicorn", "gevent", "gevent-websocket", "simple-websocket", "python-socketio")
    return ", ".join(
        [
            f"{os.cpu_count()} cores ({processor[1] if processor else platform.machine()})",
            f"Linux {'.'.join(platform.release().split('.')[:2])}",
            f"Python {platform.python_version()}",
            *(f"{name} {importlib.metadata.version(name)}" for name in python),
            re.findall(r"nginx/[\d.]+", output("nginx", "-v"))[0].replace("/", " "),
            "HAProxy " + re.findall(r"version ([\d.]+)", output("haproxy", "-v"))[0],
            "Node " + output("node", "--version").strip().removeprefix("v"),
            *(f"{name} {packages[f'node_modules/{name}']['version']}" for name in npm),
        ]
    )


def picture(chart: charts.Chart) -> str:
    """A chart: the PNG file, and the same as text."""
    return f"""![{chart.title}]({chart.file}.png)

<details><summary>{chart.title}, as text</summary>

{plots.text(chart)}

</details>"""


def kernel(results: Results) -> str:
    """What the kernel router is, if it was measured."""
    if KERNEL not in results.servers(NEW):
        return ""
    return """

"Ours, kernel router" is the same with `STICKY_SESSION_ROUTER=kernel`: the kernel gives each connection to its worker,
and there is no listener. It differs in nothing but the way of a new connection, so only that is measured."""


def memory_growth(results: Results) -> str:
    """How the memory of an idle connection changes with their number, if it was measured."""
    if not results.memory_by_clients:
        return ""
    return f"""
{picture(charts.memory(results))}

{memorytables.growth(results)}
"""


def render(results: Results) -> str:
    """The whole text."""
    move = results.of_proxies(MOVING, "header", cost) - results.of_proxies(STAYING, "header", cost)
    return f"""# Results

Made by `make bench`. {versions()}.

Every server has {results.workers} workers where nothing else is said. Each run is {results.seconds} s of load from one
load generator on the same machine, whose clients have {CLIENTS:,} addresses; workloads and servers take turns, and the
figures are medians of all runs. Only ratios mean anything elsewhere, and differences under 10 % are ties.
{tables.noise(results)}

"Ours" is `gunicorn -k sticky_session.Worker`; "plain" is `gunicorn -k {servers.PLAIN_WORKER}`,
which is not sticky; "simple-websocket" is `gunicorn -k gevent` with that package's WebSockets in the application, the
other way that python-socketio's documentation names for gevent.{kernel(results)}

## Goals

{tables.of_goals(results)}

## Throughput

{picture(charts.throughput(results))}

{tables.workers(results)}

"Of neighbours" is the middle half of the ratios of runs that followed each other.

## Routing

Each request comes on a new connection. nginx and HAProxy stand in front of {results.workers} plain
gunicorns of one worker each; the two Node routers hand connections on to Node workers, so only the routers'
CPU and memory compare. "Moved" is how many of the requests from clients that had been answered before, in the
same run, were answered by another worker than the time before (@socket.io/sticky routes by session id, which
these requests have none of).

{tables.routers(results)}

## Polling sessions

A session is a Socket.IO client's over long-polling: the handshake, the connection to the namespace, three events
that are each acknowledged, and the close; ten requests, each on a new connection. Behind ours, nginx and HAProxy the
application is python-socketio's; behind the Node routers it is socket.io's, with @socket.io/cluster-adapter behind
@socket.io/sticky. Plain gunicorn has one worker, as with more it loses sessions. "Lost" are sessions that a worker
didn't know (status 400); "moved" are events that another process acknowledged than the client's last.

{tables.sessions(results)}

## CPU by role

{picture(charts.costs(results))}

The load generator is one thread of C: 1 core would be its limit. It shares the machine's {os.cpu_count()} cores with
the servers. Where both columns of cores add up to about {os.cpu_count()}, the machine is the limit, and the faster a
server is, the less of the machine the load generator leaves to it.

{tables.roles(results)}

## Latency

Requests come at times fixed in advance (a Poisson process), at 70 % of the rate that the slowest of these servers
answered in this run, and latencies are from these times on: no request is left out because one before it is late.

{picture(charts.latencies(results))}

{tables.paced(results)}

Where all clients send as fast as they are answered, it is the time in the queue:

{tables.saturated(results)}

## Growth with workers

{picture(charts.by_workers(results))}

{tables.growth(results.by_workers, "workers")}

## Growth with clients

So many clients send as fast as they are answered, each on a connection of its own. Ours says 503 where the queue of
a worker is full, so that the client can come again, and that counts as an error here; plain's backlog leaves clients
to send their SYN again after a second, which shows in its p99. Each session is ten requests: 10,000 of them at a time
are more than these servers answer in a run.

{picture(charts.by_clients(results))}

{tables.growth(results.by_clients, "clients")}

## Behind proxies

Each request says in X-Forwarded-For whose it is. "Not read" is the same server with
`STICKY_SESSION_CLIENT_HEADER=off`, and the same requests; they go to the same workers. A request that moves costs
{move:.0f} µs more than one that stays.

{proxytables.proxied(results)}

{proxytables.many_moves(results)}

## Memory of an idle connection in the workers

Private memory of the worker processes; the kernel's socket buffers are not in it. An idle connection has had one
request answered. A Socket.IO client has connected to its namespace, with WebSocket as its only transport.

{memorytables.of_idle(results)}
{memory_growth(results)}
"""
