"""A WSGI app that says in a header of its answers what it has seen, so that it can be said of every answer."""

import json

# Answers without a body of their own.
EMPTY = {
    "/204": ("204 No Content", []),
    "/204-length": ("204 No Content", [("Content-Length", "0")]),
    "/205": ("205 Reset Content", []),
    "/304": ("304 Not Modified", [("ETag", '"a"')]),
    "/304-length": ("304 Not Modified", [("ETag", '"a"'), ("Content-Length", "2")]),
}
# How many bytes of the body the app reads before it answers; all of them at other paths.
READ = {"/unread": 0, "/unread-stream": 0, "/some": 3}
LONGEST = 200


def shorten(text):
    return text if len(text) <= LONGEST else f"{len(text)} characters"


def witness(environ, body):
    saw = {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "query": environ["QUERY_STRING"],
        "target": environ["RAW_URI"],
        "protocol": environ["SERVER_PROTOCOL"],
        "body": body.decode("latin-1"),
    }
    saw |= {name: value for name, value in environ.items() if name.startswith(("HTTP_", "CONTENT_"))}
    return json.dumps({name: shorten(value) for name, value in saw.items()})


def pieces(*parts, failing=False):
    yield from parts
    if failing:
        raise RuntimeError("late")


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fails":
        raise RuntimeError("early")
    size = READ.get(path)
    body = environ["wsgi.input"].read() if size is None else environ["wsgi.input"].read(size) if size else b""
    status, headers = EMPTY.get(path, ("200 OK", []))
    headers = [*headers, ("X-Saw", witness(environ, body))]
    if path == "/says-close":
        headers.append(("Connection", "close"))
    start_response(status, headers)
    if path in EMPTY:
        return []
    if path == "/fails-late":
        return pieces(b"first", failing=True)
    if path in ("/stream", "/unread-stream"):
        return pieces(b"one", b"two")
    return [b"ok"]
