"""The app of whoami.py, with a WebSocket that says who answers and a page that retires its worker."""

import json

import whoami

import sticky_session


def app(environ, start_response):
    """Answer a WebSocket's messages and /close; whoami.py answers everything else."""
    websocket = environ.get("wsgi.websocket")
    if websocket is not None:
        while (message := websocket.receive()) is not None:
            websocket.send(json.dumps({**whoami.whoami(environ), "message": message}))
        return []
    if environ["PATH_INFO"] == "/close":
        sticky_session.close()
        environ["PATH_INFO"] = "/"
    return whoami.app(environ, start_response)
