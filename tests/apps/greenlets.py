"""A WSGI app that says how many greenlets serve connections, and how many connections are open."""

import gc
import json

import gevent

from sticky_session.connection import Connection
from sticky_session.crew import _Member


def count(kind):
    return sum(isinstance(each, kind) for each in gc.get_objects())


class Closing(list):
    """A response whose connection is closed as soon as it is out."""

    def __init__(self, body, sock):
        super().__init__([body])
        self.close = sock.close


def app(environ, start_response):
    """Answer /; and /slow a little later; close the socket after the response, with /close at once, with /later not.

    To count takes its time, so /uncounted doesn't.
    """
    path, sock = environ["PATH_INFO"], environ["gunicorn.sock"]
    if path == "/slow":
        gevent.sleep(0.2)
    if path == "/later":
        gevent.spawn_later(0.05, lambda: sock.close())
    environ["wsgi.input"].read()
    kinds = {} if path == "/uncounted" else {"greenlets": _Member, "connections": Connection}
    body = json.dumps({name: count(kind) for name, kind in kinds.items()}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return Closing(body, sock) if path == "/close" else [body]
