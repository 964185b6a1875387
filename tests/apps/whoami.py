"""A WSGI app that says who answers, and does what a test asks it to do."""

import json
import os
from urllib.parse import parse_qs

import gevent

import sticky_session


def whoami(environ):
    return {
        "pid": os.getpid(),
        "slot": environ.get("sticky_session.slot"),
        "worker_id": sticky_session.worker_id(),
        "remote_addr": environ["REMOTE_ADDR"],
        "remote_port": environ.get("REMOTE_PORT"),
        "scheme": environ["wsgi.url_scheme"],
    }


def app(environ, start_response):
    """Answer /, /slow?seconds=, /echo, /env, /big?bytes= and /boom; 404 to everything else."""
    query = {name: values[-1] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    status, kind = "200 OK", "application/json"
    match environ["PATH_INFO"]:
        case "/":
            body = json.dumps(whoami(environ)).encode()
        case "/slow":
            gevent.sleep(float(query["seconds"]))
            body = json.dumps(whoami(environ)).encode()
        case "/echo":
            body, kind = environ["wsgi.input"].read(), "application/octet-stream"
        case "/env":
            plain = {name: value for name, value in environ.items() if isinstance(value, str | int)}
            body = json.dumps(plain).encode()
        case "/big":
            body, kind = b"x" * int(query["bytes"]), "application/octet-stream"
        case "/boom":
            raise RuntimeError("boom")
        case path:
            body, status, kind = path.encode(), "404 Not Found", "text/plain"
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
