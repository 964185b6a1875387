"""A Flask-SocketIO app that emits, as its documentation writes it, also in a factory."""

import os

from flask import Flask
from flask_socketio import SocketIO, emit, join_room

socketio = SocketIO()


def create_app():
    flask = Flask(__name__)
    socketio.init_app(flask)

    @flask.route("/emit")
    def visit():
        socketio.emit("visit", os.getpid())
        return str(os.getpid())

    return flask


@socketio.on("shout")
def shout(text):
    emit("heard", text, broadcast=True)
    return os.getpid()


@socketio.on("enter")
def enter(room):
    join_room(room)


@socketio.on("whisper")
def whisper(room, text):
    emit("heard", text, to=room)


def __getattr__(name):
    # gunicorn asks for it when it is told so; the factory must not have been run before.
    if name == "app":
        return create_app()
    raise AttributeError(name)
