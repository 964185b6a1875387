"""A WSGI app whose WebSockets do what their path says."""

import contextlib
import os

import engineio
import gevent
import simple_websocket
import whoami

if "ENGINEIO_LIMIT" in os.environ:
    # Never used: that it is there is enough.
    server = engineio.Server(async_mode="gevent", max_http_buffer_size=int(os.environ["ENGINEIO_LIMIT"]))


def echo(websocket):
    while (message := websocket.receive()) is not None:
        websocket.send(message)


def crowd(websocket):
    """Fifty greenlets send at the same time, each its own letter, ten messages from one byte to many."""

    def send(number):
        for size in range(10):
            websocket.send(bytes((number,)) * (1 + size * 10_000))

    gevent.joinall([gevent.spawn(send, number) for number in range(50)], raise_error=True)


def push(websocket):
    """Send until the client is gone."""
    while True:
        websocket.send(b"x" * 100_000)


def close(websocket):
    websocket.close(4001, "enough")
    websocket.receive()


def leave(websocket):
    websocket.send("bye")


def fail(websocket):
    websocket.send("first")
    raise RuntimeError("after the upgrade")


def simple(environ):
    """Echo with simple-websocket, as flask-sock uses it under gevent's server."""
    websocket = simple_websocket.Server(environ)
    with contextlib.suppress(simple_websocket.ConnectionClosed):
        while True:
            websocket.send(websocket.receive())
    return []


PATHS = {"/echo": echo, "/crowd": crowd, "/push": push, "/close": close, "/leave": leave, "/fail": fail}


def app(environ, start_response):
    websocket = environ.get("wsgi.websocket")
    path = environ["PATH_INFO"]
    if path == "/simple-websocket":
        return simple(environ)
    if path == "/read":
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    if websocket is None or path == "/env":
        return whoami.app(environ, start_response)
    if path == "/refuse":
        start_response("403 Forbidden", [("Content-Type", "text/plain"), ("Content-Length", "8")])
        return [b"not you\n"]
    if path == "/fail-first":
        raise RuntimeError("before the upgrade")
    PATHS[path](websocket)
    return []
