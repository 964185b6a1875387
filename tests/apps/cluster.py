"""A python-socketio app that does what a client tells it to: see Member in tests/integration/members.py.

MANAGER chooses its client manager: empty for none, "ours", the URL of a Redis server, or "own" for one of the app's.
"""

import json
import os
import time
import uuid

import gevent.event
import socketio

import sticky_session


class OwnManager(socketio.PubSubManager):
    """One that an app might have made."""

    def _publish(self, data):
        pass

    def _listen(self):
        gevent.event.Event().wait()
        yield


def manager():
    chosen = os.environ.get("MANAGER", "")
    if chosen.startswith("redis"):
        return socketio.RedisManager(chosen)
    return {"": lambda: None, "ours": sticky_session.ClusterManager, "own": OwnManager}[chosen]()


sio = socketio.Server(
    async_mode="gevent",
    client_manager=manager(),
    ping_interval=2,
    max_http_buffer_size=100_000_000,
    namespaces="*",
)
gone = []


@sio.on("do", namespace="*")
def do(namespace, sid, method, args, options):
    """Call a method of the server; "spread" makes a tuple of the data, which becomes several arguments."""
    if options.pop("spread", False):
        args[1] = tuple(args[1])
    try:
        result = getattr(sio, method)(*args, **options)
        # python-socketio finds no bytes in tuples.
        return "done", list(result) if isinstance(result, tuple) else result
    except Exception as error:
        return type(error).__name__, str(error)


@sio.on("ask", namespace="*")
def ask(namespace, sid, event, data, to):
    """Emit with a callback, and return what the callback was given."""
    answered = gevent.event.AsyncResult()
    try:
        sio.emit(event, data, to=to, namespace=namespace, callback=lambda *args: answered.set(args))
    except ValueError as error:
        return type(error).__name__
    return list(answered.get(timeout=20))


@sio.event
def emit_to_uuid(sid):
    """Emit to a room whose name JSON has no way to write."""
    return outcome("event", to=uuid.uuid4())


@sio.event
def emit_much(sid):
    """Emit more than 64 MB, to a room without clients."""
    return outcome("event", "x" * (64 * 2**20 + 1), to="nobody")


def outcome(*args, **options):
    try:
        sio.emit(*args, **options)
    except Exception as error:
        return type(error).__name__
    return "done"


@sio.on("who", namespace="*")
def who(namespace, sid):
    return {
        "pid": os.getpid(),
        "slot": sticky_session.worker_id(),
        "manager": type(sio.manager).__name__,
        "rooms": sorted(sio.rooms(sid, namespace)),
        "gone": gone,
    }


@sio.event
def aside(sid, event, data):
    """Emit by a manager that belongs to no server."""
    sticky_session.ClusterManager(write_only=True).emit(event, data)


@sio.event
def say(sid, speaker, number):
    """Tell everybody."""
    sio.emit("said", (speaker, number))


@sio.event
def flood(sid, speaker, count, size):
    """Tell all others very much, and when, by the clock that all processes have in common, in nanoseconds."""
    for number in range(count):
        sio.emit("said", (speaker, number, time.perf_counter_ns(), "x" * size), skip_sid=sid)
        gevent.sleep(0)
    return os.getpid()


@sio.event
def disconnect(sid, reason):
    gone.append(sid)


def app(environ, start_response):
    """Emit from a request, /emit?EVENT, and say who answers; call a client, /call?SID, and say what it answers."""
    answer = os.getpid()
    if environ["PATH_INFO"] == "/emit":
        sio.emit(environ["QUERY_STRING"], os.getpid())
    elif environ["PATH_INFO"] == "/call":
        answer = json.dumps(sio.call("question", 1, to=environ["QUERY_STRING"], timeout=10))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(answer).encode()]


app = socketio.WSGIApp(sio, app)
