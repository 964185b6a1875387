"""Starts the routers of other projects, as servers.py starts ours: proxies before plain gunicorns, and Node's."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from string import Template

from install import PEERS, tool
from measure import process_tree
from servers import APP, PLAIN_WORKER, Server, launch, launch_gunicorn, wait_for_port


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def proxy(
    stack: ExitStack,
    name: str,
    command: Sequence[str],
    template: str,
    upstream: str,
    workers: int,
    app: str,
    **values: str,
) -> Server:
    """Start a proxy in front of ``workers`` gunicorns with one plain worker each.

    :param template: file with the proxy's configuration
    :param upstream: line of the configuration for each gunicorn, with ``{slot}`` and ``{port}``
    """
    backends = [launch_gunicorn(stack, f"{name}, backend {slot}", PLAIN_WORKER, 1, app) for slot in range(workers)]
    for backend in backends:
        wait_for_port(backend)
        backend.wait_for_workers(1)
    port = free_port()
    lines = [upstream.format(slot=slot, port=backend.port) for slot, backend in enumerate(backends)]
    text = Template((PEERS / template).read_text()).substitute(port=port, upstreams="\n".join(lines), **values)
    server = launch(stack, name, command, port, {template.removesuffix(".in"): text})
    server.backends = backends
    server.wait_for_workers(workers)
    server.routers = process_tree(server.process.pid)
    return server


def _nginx(stack: ExitStack, name: str, workers: int, app: str, connection: str, keepalive: str) -> Server:
    return proxy(
        stack,
        name,
        [tool("nginx"), "-p", ".", "-c", "nginx.conf", "-e", "stderr"],
        "nginx.conf.in",
        "        server 127.0.0.1:{port};",
        workers,
        app,
        user=getpass.getuser(),
        connection=connection,
        keepalive=keepalive,
    )


def nginx(stack: ExitStack, workers: int, app: str = APP) -> Server:
    """Start nginx with ``hash $remote_addr consistent``; each request is a new connection to a worker."""
    return _nginx(stack, "nginx", workers, app, "close", "")


def nginx_keepalive(stack: ExitStack, workers: int, app: str = APP) -> Server:
    """Start nginx that keeps its connections to the workers alive."""
    return _nginx(stack, "nginx, kept-alive upstreams", workers, app, "", "keepalive 64;")


def haproxy(stack: ExitStack, workers: int, app: str = APP) -> Server:
    """Start HAProxy with ``balance source``."""
    return proxy(
        stack,
        "HAProxy",
        [tool("haproxy"), "-db", "-f", "haproxy.cfg"],
        "haproxy.cfg.in",
        "    server worker{slot} 127.0.0.1:{port}",
        workers,
        app,
    )


def node(stack: ExitStack, name: str, script: str, workers: int, app: str) -> Server:
    """Start a Node server; its first process is the router."""
    port = free_port()
    # The applications have the same names there.
    command = [tool("node"), str(PEERS / script), str(port), str(workers), app.partition(":")[0]]
    server = launch(stack, name, command, port)
    server.routers = [server.process.pid]
    server.wait(lambda: server.log.count("worker ready") >= workers, f"not all of {workers} workers are ready")
    # One that counts sessions gives plain requests to one worker only.
    server.wait_for_workers(1)
    return server


def node_sticky_session(stack: ExitStack, workers: int, app: str = APP) -> Server:
    """Start npm's sticky-session."""
    return node(stack, "Node sticky-session", "sticky_session.js", workers, app)


def node_socketio_sticky(stack: ExitStack, workers: int, app: str = APP) -> Server:
    """Start npm's @socket.io/sticky, with @socket.io/cluster-adapter."""
    return node(stack, "Node @socket.io/sticky", "socketio_sticky.js", workers, app)
