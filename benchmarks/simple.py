"""app.py's application by simple-websocket, for workers that leave WebSockets to the application."""

import os

import simple_websocket


def app(environ, start_response):
    """A WSGI application. A WebSocket is greeted with the process id, then gets back every message."""
    body = str(os.getpid())
    if "HTTP_UPGRADE" not in environ:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body.encode()]
    websocket = simple_websocket.Server(environ)
    try:
        websocket.send(body)
        while True:
            websocket.send(websocket.receive())
    except simple_websocket.ConnectionClosed:
        # gunicorn's workers take it as: there is no response. python-engineio says it in the same way.
        raise StopIteration from None
