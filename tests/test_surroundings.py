"""Directory, import path and environment, had back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sticky_session.surroundings import Surroundings


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of this process's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("REMOVED", "before")
    monkeypatch.setenv("GUNICORN_PID", "1")
    monkeypatch.delenv("ADDED", raising=False)
    return tmp_path


def test_restore(place: Path) -> None:
    """What was changed, added and removed is as before; what gunicorn tells itself is left alone."""
    surroundings = Surroundings.now()
    path = list(sys.path)
    os.chdir("/")
    sys.path.insert(0, "/")
    os.environ["CHANGED"] = os.environ["ADDED"] = "after"
    del os.environ["REMOVED"], os.environ["GUNICORN_PID"]
    surroundings.restore()
    assert Path.cwd() == place
    assert sys.path == path
    assert (os.environ["CHANGED"], os.environ["REMOVED"]) == ("before", "before")
    assert not {"ADDED", "GUNICORN_PID"} & os.environ.keys()


@pytest.mark.parametrize("when", ["before", "after"])
def test_directory_that_is_removed(place: Path, when: str) -> None:
    """The rest is had back."""
    (place / "gone").mkdir()
    os.chdir("gone")
    if when == "before":
        (place / "gone").rmdir()
    surroundings = Surroundings.now()
    os.chdir(place)
    if when == "after":
        (place / "gone").rmdir()
    os.environ["CHANGED"] = "after"
    surroundings.restore()
    assert Path.cwd() == place
    assert os.environ["CHANGED"] == "before"
