"""The Socket.IO application that is measured: it acknowledges an event with its argument and the process id."""

import os

import socketio

server = socketio.Server(async_mode="gevent")


@server.event
def echo(sid, text):  # noqa: ARG001 - Socket.IO fixes the arguments of what it calls
    """Acknowledge ``text``."""
    return text, os.getpid()


def nothing(environ, start_response):  # noqa: ARG001 - WSGI fixes them too
    """Answer what is no Socket.IO request, which shows that the worker is up."""
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


app = socketio.WSGIApp(server, nothing)
