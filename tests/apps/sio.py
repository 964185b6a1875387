"""A python-socketio app whose acknowledgements say which worker sent them."""

import os

import socketio

import sticky_session

# A poll ends with the next ping at the latest, and python-socketio's client may wait for that when it disconnects.
sio = socketio.Server(async_mode="gevent", ping_interval=2)
app = socketio.WSGIApp(sio)


@sio.event
def echo(sid, data):
    return data, os.getpid()


@sio.event
def whoami(sid):
    environ = sio.get_environ(sid)
    return {
        "pid": os.getpid(),
        "slot": sticky_session.worker_id(),
        "remote_addr": environ["REMOTE_ADDR"],
        "transport": sio.transport(sid),
    }
