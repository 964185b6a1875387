"""A chat with rooms, on as many workers as you like.

    sticky-session serve app:app

It keeps three kinds of state in three places:

1. What belongs to one connection, such as a participant's name, is in a dict of the worker that has the connection.
   With sticky sessions that is always the same worker, until it dies.
2. What happens (somebody comes, says something, types) is told by ``emit(..., to=room)``, which reaches the room's
   participants on all workers.
3. What must be remembered (who is here, what was said) is in a file that all workers share, see ``store.py``.

``python app.py`` runs it in a single process, for comparison and for a debugger.
"""

from __future__ import annotations

import os
import sqlite3
import time
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flask import Flask, Response, render_template, request, send_from_directory
from flask_socketio import SocketIO, join_room, leave_room
from gunicorn.errors import AppImportError

import sticky_session
from store import Person, Store

HERE = Path(__file__).parent
NAME_LENGTH = 24
TEXT_LENGTH = 500
BURST, PER_SECOND = 30, 5  # events that a client may send at once, and in the long run
BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol for Unicode, nothing for the eye
NEW_EMOJI = frozenset(map(chr, range(0x1F000, 0x1FC00)))
CHECK_SECONDS = 1  # how long a list of rooms or people may be wrong

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", max_http_buffer_size=64 * 1024)
database = os.environ.get("CHAT_DATABASE") or os.fspath(HERE / "chat.sqlite3")
store = Store(database)
try:
    store.check()
except sqlite3.Error as error:
    complaint = f"CHAT_DATABASE={database!r}: {error}; expected the path of an SQLite file, or of one to be made"
    # This error's words are all that gunicorn's log has of it, and no more workers are started.
    raise SystemExit(complaint) if __name__ == "__main__" else AppImportError(complaint) from None


@dataclass
class Session:
    """What this worker knows of one connection."""

    person: Person | None = None  # None until it has joined a room
    allowance: float = BURST
    since: float = field(default_factory=time.monotonic)

    def may_send(self) -> bool:
        """Whether it isn't too fast: a bucket of tokens that fills again at a steady rate."""
        now = time.monotonic()
        self.allowance = min(BURST, self.allowance + (now - self.since) * PER_SECOND)
        self.since = now
        if self.allowance < 1:
            return False
        self.allowance -= 1
        return True


sessions: dict[str, Session] = {}


class Refusal(Exception):
    """Why an event isn't taken; the client reads it in the answer."""


# --- events -------------------------------------------------------------------------------------------------


Handler = Callable[[Session, dict[str, Any]], dict[str, Any] | None]


def event(handler: Handler) -> Handler:
    """Take an event of the handler's name: one object of data. Its acknowledgement has ``ok``, and ``why`` not."""

    def checked(*data: Any) -> dict[str, Any]:
        session = sessions.get(request.sid)
        if session is None:
            return {"ok": False, "why": "the connection is closing"}
        if not session.may_send():
            return {"ok": False, "why": "too many events; wait a few seconds"}
        if len(data) != 1 or not isinstance(data[0], dict):
            return {"ok": False, "why": "an event has one object of data"}
        try:
            return {"ok": True, **(handler(session, data[0]) or {})}
        except Refusal as refusal:
            return {"ok": False, "why": str(refusal)}

    socketio.on(handler.__name__)(checked)
    return handler


@socketio.on("connect")
def connect() -> None:
    # A client's own event of this name comes here as well, but can't bring the environment of the client's request.
    if any(argument is request.environ for argument in request.event["args"]):
        sessions[request.sid] = Session()
        start_checking()


@event
def join(session: Session, data: dict[str, Any]) -> dict[str, Any]:
    """Enter a room under a name, and leave the room before: ``{name, room}``. A room exists while somebody is in it."""
    name, room = text_of(data, "name", NAME_LENGTH), text_of(data, "room", NAME_LENGTH)
    before = session.person
    person = session.person = Person(request.sid, name, room, sticky_session.worker_id(), os.getpid())
    moved = before is None or before.room != room
    store.arrive(person)
    if moved:
        if before:
            leave_room(channel(before.room))
            tell("left", before)
        join_room(channel(room))
        sweep()
        tell("joined", person)
    elif before and before.name != name:
        tell("renamed", person, was=before.name)
    tell_rooms()
    # Read last, and answered without a pause: all that the newcomer hears from now on is newer.
    return {"you": asdict(person), **store.snapshot(room)}


@event
def say(session: Session, data: dict[str, Any]) -> None:
    """Say something in the room: ``{text}``."""
    person = participant(session)
    text = text_of(data, "text", TEXT_LENGTH)
    socketio.emit("said", store.say(person, text), to=channel(person.room))


@event
def typing(session: Session, data: dict[str, Any]) -> None:
    """Tell the others in the room that one types, or has stopped: ``{typing: true}``."""
    person = participant(session)
    if not isinstance(data.get("typing"), bool):
        raise Refusal("typing is true or false")
    told = {"sid": person.sid, "room": person.room, "typing": data["typing"]}
    socketio.emit("typing", told, to=channel(person.room), skip_sid=person.sid)


@socketio.on("disconnect")
def disconnect(*_reason: Any) -> None:
    if socketio.server.manager.is_connected(request.sid, request.namespace):
        return  # it is a client's own event of this name
    session = sessions.pop(request.sid, None)
    if session and session.person:
        store.depart(request.sid)
        tell("left", session.person)
        tell_rooms()


def text_of(data: dict[str, Any], key: str, length: int) -> str:
    """A text from a client: never believed, and never longer than it may be."""
    text = data.get(key)
    if not isinstance(text, str) or len(text) > 4 * length:
        raise Refusal(f"{key} is a text of at most {length} characters")
    text = " ".join(text.split())
    if not 1 <= len(text) <= length:
        raise Refusal(f"{key} has 1 to {length} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise Refusal(f"{key} has a character that isn't text")
    if not any(map(is_visible, text)):
        raise Refusal(f"{key} has nothing to be seen")
    return text


def is_visible(character: str) -> bool:
    """Whether it shows by itself, as spaces, marks and the likes of a zero-width joiner don't."""
    category = unicodedata.category(character)
    if category == "Cn":
        # It may be an emoji that is newer than this Python.
        return character in NEW_EMOJI
    return category[0] not in "ZCM" and character not in BLANK


def participant(session: Session) -> Person:
    if session.person is None:
        raise Refusal("join a room first")
    return session.person


def channel(room: str) -> str:
    """The Socket.IO room of a room. Its prefix matters: the bare name of a room may be the private one of a client."""
    return f"room {room}"


def tell(what: str, who: Person, **more: Any) -> None:
    """Tell a room what has happened to whom, and who is in it now: all of them, so that no loss can mislead anyone."""
    told = {"what": what, "who": asdict(who), **more, **store.people(who.room)}
    socketio.emit("people", told, to=channel(who.room))


def tell_rooms() -> None:
    """Tell everybody how many are in which room."""
    socketio.emit("rooms", store.rooms())


def sweep() -> None:
    """Take out, and tell of, the participants whose worker was killed: it can't."""
    lost = store.sweep()
    for person in lost:
        tell("lost", person)
    if lost:
        tell_rooms()


def keep_lists_right() -> None:
    """Set right, for this worker's clients, what nobody told them: nobody can for a killed worker, and those that a
    reload makes don't hear the ones that it replaces.
    """
    version = None
    while True:
        socketio.sleep(CHECK_SECONDS)
        sweep()
        rooms = store.rooms()
        if rooms["version"] != version:
            version = rooms["version"]
            socketio.emit("rooms", rooms, ignore_queue=True)
            for room in {session.person.room for session in sessions.values() if session.person}:
                socketio.emit("people", store.people(room), to=channel(room), ignore_queue=True)


@cache
def start_checking() -> None:
    """Have :func:`keep_lists_right` run: once in every worker that has had a client."""
    socketio.start_background_task(keep_lists_right)


# --- pages --------------------------------------------------------------------------------------------------


@app.get("/")
def page() -> str:
    return render_template("index.html", name_length=NAME_LENGTH, text_length=TEXT_LENGTH)


@app.get("/slot")
def slot() -> Response:
    """Which worker answers, for curl: ``curl --interface 127.0.0.5 http://127.0.0.1:8000/slot``."""
    return Response(f"slot {sticky_session.worker_id()}, pid {os.getpid()}\n", mimetype="text/plain")


@app.get("/static/socket.io.min.js")
def client() -> Response:
    """The Socket.IO client as npm installed it beside this file."""
    return send_from_directory(HERE / "node_modules" / "socket.io-client" / "dist", "socket.io.min.js")


@app.after_request
def only_from_here(response: Response) -> Response:
    """Let the page load nothing and run nothing that isn't in this directory."""
    response.headers["Content-Security-Policy"] = "default-src 'self'; img-src data:; frame-ancestors 'none'"
    return response


if __name__ == "__main__":
    socketio.run(app, port=int(os.environ.get("PORT", "8000")))
