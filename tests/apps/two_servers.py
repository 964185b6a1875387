"""cluster.py's Socket.IO server, and another one beside it, which is a world of its own."""

import cluster
import socketio

second = socketio.Server(async_mode="gevent")


@second.event
def greet(sid, name):
    """Answer a client."""
    return f"hello {name}"


app = socketio.WSGIApp(second, cluster.app, socketio_path="second")
