"""A WSGI app that answers in every way the protocol allows, and in some that it doesn't."""

import asyncio
import errno
import socket
from urllib.parse import parse_qs

import gevent
import whoami

# What this sets is for the app's own connections.
socket.setdefaulttimeout(0.5)


def pieces(*parts):
    yield from parts


def breaks_off():
    yield b"first"
    raise RuntimeError("late")


def never_starts():
    raise RuntimeError("early")
    yield b"never"


def thinks():
    """A stream that is silent for a while."""
    yield b"one"
    gevent.sleep(3)
    yield b"two"


def read_late(environ):
    yield b"first"
    yield environ["wsgi.input"].read()


# Path: status, headers, body.
FIXED = {
    "/generator": ("200 OK", [], lambda: pieces(b"one", b"", b"two")),
    "/list": ("200 OK", [], lambda: [b"one", b"two"]),
    "/empty": ("200 OK", [], list),
    "/sized-generator": ("200 OK", [("Content-Length", "6")], lambda: pieces(b"one", b"two")),
    "/short": ("200 OK", [("Content-Length", "10")], lambda: [b"short"]),
    "/long": ("200 OK", [("Content-Length", "4")], lambda: pieces(b"lo", b"ng and more", b"and more")),
    "/204": ("204 No Content", [], list),
    "/304": ("304 Not Modified", [("ETag", '"a"')], list),
    "/204-body": ("204 No Content", [("Content-Length", "4")], lambda: [b"body"]),
    "/304-body": ("304 Not Modified", [], lambda: pieces(b"bo", b"dy")),
    "/unread": ("200 OK", [("Content-Length", "6")], lambda: [b"unread"]),
    "/unread-list": ("200 OK", [], lambda: [b"unread"]),
    "/unread-generator": ("200 OK", [], lambda: pieces(b"unread")),
    "/thinks": ("200 OK", [], thinks),
    "/late": ("200 OK", [], breaks_off),
    "/late-sized": ("200 OK", [("Content-Length", "10")], breaks_off),
    "/early": ("200 OK", [("Content-Length", "10")], never_starts),
    "/no-start": (None, [], lambda: [b"never"]),
    "/no-start-empty": (None, [], list),
    "/text": ("200 OK", [], lambda: ["text, not bytes"]),
    "/split": ("200 OK", [("X-A", "a\r\nX-B: b")], lambda: [b"never"]),
    "/passes-on": ("200 OK", [("Transfer-Encoding", "chunked")], lambda: pieces(b"one")),
    "/passes-on-list": ("200 OK", [("Transfer-Encoding", "chunked")], lambda: [b"one"]),
    "/says-close": ("200 OK", [("Connection", "close"), ("Content-Length", "2")], lambda: [b"ok"]),
    "/says-close-in-other-words": (
        "200 OK",
        [("Connection", "Keep-Alive, Close"), ("Content-Length", "2")],
        lambda: [b"ok"],
    ),
    "/says-keep-alive": ("200 OK", [("Connection", "keep-alive")], lambda: [b"ok"]),
}


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path in FIXED:
        status, headers, body = FIXED[path]
        if status:
            start_response(status, headers)
        return body()
    if path == "/some":
        amount = int(parse_qs(environ["QUERY_STRING"])["bytes"][0])
        body = environ["wsgi.input"].read(amount)
    elif path == "/time-limit":
        raise gevent.Timeout(1)
    elif path == "/cancelled":
        raise asyncio.CancelledError
    elif path == "/reset":
        raise ConnectionResetError(errno.ECONNRESET, "the app's database has gone")
    elif path == "/wrapped":
        try:
            body = environ["wsgi.input"].read()
        except OSError as error:
            raise OSError("the app's framework could not read the body") from error
    elif path == "/read-late":
        start_response("200 OK", [])
        return read_late(environ)
    elif path == "/lines":
        body = b"|".join(environ["wsgi.input"])
    elif path == "/write":
        write = start_response("200 OK", [("Content-Length", "6")])
        write(b"one")
        return [b"two"]
    else:
        return whoami.app(environ, start_response)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
