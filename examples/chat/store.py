"""What all workers must remember alike: who is in which room, and what was said. One SQLite file, short transactions.

A worker may be killed at any moment and then can't tidy up. So each participant's row names the process that serves it
(its pid, and its birth, because pids are used again), and the other workers sweep out the rows of processes that are
gone.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HISTORY = 50  # messages that a newcomer to a room gets
KEPT = 10_000  # messages of all rooms together

SCHEMA = """
    CREATE TABLE IF NOT EXISTS people (
        sid TEXT PRIMARY KEY, name TEXT NOT NULL, room TEXT NOT NULL, slot INTEGER, pid INTEGER NOT NULL,
        birth TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, room TEXT NOT NULL, sid TEXT NOT NULL, name TEXT NOT NULL, slot INTEGER,
        text TEXT NOT NULL, at REAL NOT NULL
    );
    CREATE INDEX IF NOT EXISTS messages_of_room ON messages (room, id);
"""


@dataclass(frozen=True)
class Person:
    """A participant: one connection, in one room."""

    sid: str
    name: str
    room: str
    slot: int | None
    pid: int


class Store:
    """The file, as one process sees it. Every method is one transaction."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._opened: tuple[int, sqlite3.Connection] | None = None

    def check(self) -> None:
        """Open the file, making it if there is none, and close it again: a fork may come before its first use.

        :raises sqlite3.Error: it can't be used
        """
        self._open().close()

    def arrive(self, person: Person) -> None:
        """Put a participant in a room, and out of the one before."""
        with self._transaction() as database:
            row = (*asdict(person).values(), _birth(person.pid))
            database.execute(
                "INSERT INTO people VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (sid) DO UPDATE SET name = excluded.name, room = excluded.room",
                row,
            )
            _renew_version(database)

    def depart(self, sid: str) -> None:
        """Take a participant out."""
        with self._transaction() as database:
            database.execute("DELETE FROM people WHERE sid = ?", (sid,))
            _renew_version(database)

    def sweep(self) -> list[Person]:
        """Take out and return the participants whose process is gone. Each is returned once, to one of the workers."""
        with self._transaction() as database:
            processes = database.execute("SELECT DISTINCT pid, birth FROM people").fetchall()
            lost = []
            for gone in [(pid, birth) for pid, birth in processes if _birth(pid) != birth]:
                rows = database.execute(
                    "SELECT sid, name, room, slot, pid FROM people WHERE pid = ? AND birth = ?", gone
                )
                lost += [Person(*row) for row in rows]
                database.execute("DELETE FROM people WHERE pid = ? AND birth = ?", gone)
            if lost:
                _renew_version(database)
            return lost

    def rooms(self) -> dict[str, Any]:
        """How many are in each room. Of two answers the one with the higher version is newer."""
        with self._transaction() as database:
            rows = database.execute("SELECT room, COUNT(*) FROM people GROUP BY room ORDER BY room").fetchall()
            return {"version": _version(database), "rooms": [{"room": room, "people": n} for room, n in rows]}

    def people(self, room: str) -> dict[str, Any]:
        """Who is in a room. Of two answers the one with the higher version is newer."""
        with self._transaction() as database:
            return _people(database, room)

    def say(self, person: Person, text: str) -> dict[str, Any]:
        """Write a message down. Its id is its place in the one order that all participants see."""
        said: dict[str, Any] = {"room": person.room, "sid": person.sid, "name": person.name, "slot": person.slot}
        said |= {"text": text, "at": time.time()}
        insert = "INSERT INTO messages (room, sid, name, slot, text, at) VALUES (:room, :sid, :name, :slot, :text, :at)"
        with self._transaction() as database:
            number = database.execute(insert, said).lastrowid
            database.execute("DELETE FROM messages WHERE id <= ? - ?", (number, KEPT))
        return {"id": number, **said}

    def snapshot(self, room: str) -> dict[str, Any]:
        """All that a newcomer to a room has to know: :meth:`people`, and the last messages, oldest first."""
        with self._transaction() as database:
            rows = database.execute("SELECT * FROM messages WHERE room = ? ORDER BY id DESC LIMIT ?", (room, HISTORY))
            columns = [column for column, *_ in rows.description]
            history = [dict(zip(columns, row, strict=True)) for row in rows][::-1]
            return {**_people(database, room), "history": history}

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction; while it lasts other processes wait. Nothing in it may switch to another greenlet."""
        database = self._database()
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            # Of some errors SQLite rolls back by itself.
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _database(self) -> sqlite3.Connection:
        # One for each process, opened at its first use: a connection that a fork copies would corrupt the file.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def _open(self) -> sqlite3.Connection:
        # Not in WAL mode: processes that switch a new file to it at the same moment fail with "database is locked".
        database = sqlite3.connect(self._path, timeout=20, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA synchronous = OFF")  # survives the process's end, not the machine's
            database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        except BaseException:
            database.close()
            raise
        return database


def _version(database: sqlite3.Connection) -> int:
    """How often the people have changed; SQLite keeps such a number in the file's header."""
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _renew_version(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA user_version = {_version(database) + 1}")


def _people(database: sqlite3.Connection, room: str) -> dict[str, Any]:
    rows = database.execute(
        "SELECT sid, name, room, slot, pid FROM people WHERE room = ? ORDER BY slot, pid, rowid", (room,)
    )
    return {"room": room, "version": _version(database), "people": [asdict(Person(*row)) for row in rows]}


def _birth(pid: int) -> str | None:
    """When a process was started, in clock ticks since the machine was: field 22 of proc(5); None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]
