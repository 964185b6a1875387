"""What the chat example's workers remember together: ``examples/chat/store.py``, used by many processes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import store
from store import Person, Store

CHAT = Path(store.__file__).parent


@pytest.fixture(autouse=True)
def _closed_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store has its connection until its process ends. Python 3.13 and later warn of those that nobody closes."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connect_and_note(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connect_and_note)
    yield
    for connection in opened:
        connection.close()


def person(name: str, pid: int | None = None, room: str = "lobby") -> Person:
    return Person(sid=f"sid of {name}", name=name, room=room, slot=0, pid=pid or os.getpid())


BEGIN = """
import os
from store import Person, Store
store = Store({path!r})
me = Person(f"sid {{os.getpid()}}", "Grace", "lobby", 1, os.getpid())
"""


def process(path: Path, script: str) -> subprocess.Popen[bytes]:
    """Start another Python with ``me``, a participant it serves, and the file's ``store``."""
    command = [sys.executable, "-c", BEGIN.format(path=str(path)) + script]
    return subprocess.Popen(command, cwd=CHAT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def names(found: dict[str, list[dict[str, str]]]) -> list[str]:
    return [someone["name"] for someone in found["people"]]


def test_rows_of_a_dead_process_are_swept(tmp_path: Path) -> None:
    """A participant whose process was killed is returned by a sweep, once, and not listed any more."""
    shared = Store(tmp_path / "chat")
    shared.arrive(person("Ada"))
    with process(tmp_path / "chat", "store.arrive(me); print(flush=True); input()") as other:
        assert other.stdout
        other.stdout.readline()
        before = shared.people("lobby")
        assert names(before) == ["Ada", "Grace"]
        assert shared.sweep() == []
        assert shared.people("lobby") == before
        other.kill()
    (lost,) = shared.sweep()
    assert (lost.name, lost.room, lost.slot, lost.pid) == ("Grace", "lobby", 1, other.pid)
    assert names(after := shared.people("lobby")) == ["Ada"]
    assert after["version"] > before["version"]
    assert shared.sweep() == []


def test_a_process_with_the_same_number_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row isn't mistaken for one of the process that has the dead one's pid now."""
    shared = Store(tmp_path / "chat")
    with monkeypatch.context() as patch:
        patch.setattr(store, "_birth", lambda pid: f"long before {pid}")
        shared.arrive(person("Ada"))
    shared.arrive(person("Grace"))
    assert [lost.name for lost in shared.sweep()] == ["Ada"]


def test_versions_grow_with_every_change(tmp_path: Path) -> None:
    """Of two answers the newer has the higher version, whichever process gave it; what is only said changes nobody."""
    first, second = Store(tmp_path / "chat"), Store(tmp_path / "chat")
    first.arrive(person("Ada"))
    before = second.people("lobby")["version"]
    second.arrive(person("Grace"))
    after = first.rooms()
    assert after["version"] == before + 1
    assert after["rooms"] == [{"room": "lobby", "people": 2}]
    first.say(person("Ada"), "hello")
    assert second.snapshot("lobby")["version"] == after["version"]


def test_arriving_again_is_moving(tmp_path: Path) -> None:
    """A participant is in one room, under one name."""
    shared = Store(tmp_path / "chat")
    shared.arrive(person("Ada"))
    shared.arrive(Person("sid of Ada", "Countess", "garden", 0, os.getpid()))
    assert names(shared.people("lobby")) == []
    assert names(shared.people("garden")) == ["Countess"]


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rooms together only the newest messages are kept, and a newcomer gets the last of the room."""
    monkeypatch.setattr(store, "KEPT", 8)
    monkeypatch.setattr(store, "HISTORY", 3)
    shared = Store(tmp_path / "chat")
    shared.say(person("Ada", room="garden"), "long ago")
    for number in range(8):
        shared.say(person("Ada"), f"{number}")
    assert shared.snapshot("garden")["history"] == []
    assert [said["text"] for said in shared.snapshot("lobby")["history"]] == ["5", "6", "7"]


def test_many_processes_at_once(tmp_path: Path) -> None:
    """Processes that open a new file at the same moment and write into it wait for each other, and nothing is lost."""
    script = "input()\nfor number in range(50): store.say(me, f'{os.getpid()} {number}')"
    others = [process(tmp_path / "chat", script) for _ in range(6)]
    for other in others:
        assert other.stdin
        other.stdin.write(b"\n")
        other.stdin.flush()
    for other in others:
        other.communicate(timeout=60)
        assert other.returncode == 0
    store_here = Store(tmp_path / "chat")
    assert store_here.say(person("Ada"), "the last")["id"] == 6 * 50 + 1


def test_a_fork_opens_the_file_again(tmp_path: Path) -> None:
    """A store that was used before a fork can be used on both sides of it: an SQLite connection must not be."""
    script = """
store.arrive(me)
child = os.fork()
if child == 0:
    store.say(me, 'child')
    os._exit(0)
os.waitpid(child, 0)
store.say(me, 'parent')
"""
    with process(tmp_path / "chat", script) as forked:
        forked.communicate(timeout=60)
    assert forked.returncode == 0
    assert [said["text"] for said in Store(tmp_path / "chat").snapshot("lobby")["history"]] == ["child", "parent"]


def test_file_that_somebody_reads(tmp_path: Path) -> None:
    """A transaction that can't be committed is over, and the next one has nothing to do with it."""
    database = Store(tmp_path / "chat")
    ada = person("Ada")
    database.arrive(ada)
    database._database().execute("PRAGMA busy_timeout = 10")
    with contextlib.closing(sqlite3.connect(tmp_path / "chat")) as reader:
        rows = reader.execute("SELECT * FROM sqlite_master")
        rows.fetchone()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database.depart(ada.sid)
        rows.close()
    assert names(database.people("lobby")) == ["Ada"]
