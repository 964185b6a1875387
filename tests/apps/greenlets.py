"""A WSGI app that says how many greenlets serve connections, and how many connections are open."""

import gc
import json

import gevent

from sticky_session.connection import Connection
from sticky_session.crew import _Member


def count(kind):
    return sum(isinstance(each, kind) for each in gc.get_objects())


def app(environ, start_response):
    """Answer /; and /slow a little later."""
    if environ["PATH_INFO"] == "/slow":
        gevent.sleep(0.2)
    environ["wsgi.input"].read()
    body = json.dumps({"greenlets": count(_Member), "connections": count(Connection)}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
