"""A Flask-SocketIO app as its own documentation writes it."""

import os

from flask import Flask, request
from flask_socketio import SocketIO

import sticky_session

app = Flask(__name__)
socketio = SocketIO(app)


@app.route("/")
def index():
    return {"pid": os.getpid(), "slot": sticky_session.worker_id()}


@socketio.on("echo")
def echo(data):
    return data, os.getpid()


@socketio.on("whoami")
def whoami():
    return {"pid": os.getpid(), "slot": sticky_session.worker_id(), "remote_addr": request.remote_addr}


if __name__ == "__main__":
    socketio.run(app)
