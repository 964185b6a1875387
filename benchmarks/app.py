"""The application that is measured: it answers its process id, and echoes WebSocket messages."""

import os


def app(environ, start_response):
    """A WSGI application. A WebSocket is greeted with the process id, then gets back every message."""
    websocket = environ.get("wsgi.websocket")
    body = str(os.getpid())
    if websocket is None:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body.encode()]
    websocket.send(body)
    while (message := websocket.receive()) is not None:
        websocket.send(message)
    return []
