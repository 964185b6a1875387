"""A small chat: Flask-SocketIO on as many workers as you like.

    gunicorn -k sticky_session.Worker -w 4 app:app

The page says which worker serves it. A message reaches everybody, on whichever worker; with a message queue
(``CHAT_REDIS_URL=redis://...`` and ``pip install redis``) on whichever machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask, Response, render_template, request, send_from_directory
from flask_socketio import SocketIO

import sticky_session

HERE = Path(__file__).parent
NAME_LENGTH = 24
TEXT_LENGTH = 500
REDIS_URL = os.environ.get("CHAT_REDIS_URL")

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", message_queue=REDIS_URL)

people: set[str] = set()  # the session ids this worker serves


@app.get("/")
def page() -> str:
    return render_template("index.html", name_length=NAME_LENGTH, text_length=TEXT_LENGTH, shared=bool(REDIS_URL))


@app.get("/slot")
def slot() -> Response:
    """Which worker answers, for curl: ``curl --interface 127.0.0.5 http://127.0.0.1:8000/slot``."""
    return Response(f"slot {sticky_session.worker_id()}, pid {os.getpid()}\n", mimetype="text/plain")


@app.get("/static/socket.io.min.js")
def client() -> Response:
    """The Socket.IO client as npm installed it beside this file."""
    return send_from_directory(HERE / "node_modules" / "socket.io-client" / "dist", "socket.io.min.js")


@socketio.on("connect")
def connect() -> None:
    people.add(request.sid)
    socketio.emit("welcome", {"slot": sticky_session.worker_id(), "pid": os.getpid()}, to=request.sid)
    tell_people()


@socketio.on("disconnect")
def disconnect(_reason: str) -> None:
    people.discard(request.sid)
    tell_people()


@socketio.on("say")
def say(message: object) -> dict[str, object]:
    """Pass a message on; the acknowledgement says whether it was taken."""
    fields = message if isinstance(message, dict) else {}
    name, text = (str(fields.get(field, "")).strip() for field in ("name", "text"))
    if not name or not text:
        return {"ok": False, "why": "a message needs a name and a text"}
    if len(name) > NAME_LENGTH or len(text) > TEXT_LENGTH:
        return {"ok": False, "why": f"at most {NAME_LENGTH} letters of name and {TEXT_LENGTH} of text"}
    said = {"name": name, "text": text, "slot": sticky_session.worker_id(), "by": request.sid}
    socketio.emit("said", said)
    return {"ok": True}


def tell_people() -> None:
    """Tell the clients of this worker, and only those, how many they are."""
    socketio.emit("people", len(people), ignore_queue=True)
