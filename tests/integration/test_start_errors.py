"""What can't be started says why in one line, exits with a status that is not 0, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL

import pytest

from harness import APPS, Server, get
from pending import Gate, client_of, receive, send, take_turn, wait_for_workers
from sticky_session.config import OPTIONS, Choice, Number, Option

OPTION_IDS = [option.name for option in OPTIONS]
NUMBERS = [option for option in OPTIONS if isinstance(option, Number)]
WORDS = [option for option in OPTIONS if isinstance(option, Choice)]


def assert_fails(server: Server, complaint: str, place: Path, *, files: Sequence[str] = ()) -> list[str]:
    """The server ends by itself with one line that matches, without a traceback, and ``place`` is as it was.

    :returns: the log
    """
    with server:
        assert server.wait() != 0
        server.assert_nothing_left()
        lines = server.lines()
    assert len([line for line in lines if re.search(complaint, line)]) == 1, "\n".join(lines)
    assert not [line for line in lines if "Traceback" in line]
    assert sorted(it.name for it in place.iterdir()) == sorted(files)
    return lines


def server_in(
    place: Path,
    app: str = "whoami:app",
    *,
    door: str = "gunicorn",
    workers: int = 2,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Server:
    """A server that would leave a pid file and a Unix socket in ``place``."""
    return Server(
        app,
        door=door,
        workers=workers,
        bind=["127.0.0.1:0", f"unix:{place / 'socket'}"],
        args=["--pid", str(place / "pid"), "--pythonpath", str(APPS), *args],
        env=env,
        cwd=place,
        ready=False,
    )


# --- the app


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
@pytest.mark.parametrize(
    ("app", "complaint"),
    [
        ("no_such_module:app", "Can't load the app: ModuleNotFoundError: No module named 'no_such_module'"),
        ("whoami:nothing", "Can't load the app: AppImportError: .*'nothing'"),
        ("whoami:os", "Can't load the app: AppImportError: .*callable"),
    ],
)
def test_app_that_cannot_be_found(door: str, app: str, complaint: str, tmp_path: Path) -> None:
    """A missing module, a missing attribute, something that is no app: one line for all workers together."""
    lines = assert_fails(server_in(tmp_path, app, door=door, workers=3), complaint, tmp_path)
    assert [line for line in lines if "Reason: " in line]


@pytest.mark.parametrize("preload", [[], ["--preload"]])
@pytest.mark.parametrize(
    "source",
    [
        "async def app(scope, receive, send): pass",
        "class App:\n    async def __call__(self, scope, receive, send): pass\n\napp = App()",
        "import socketio; app = socketio.ASGIApp(socketio.AsyncServer(async_mode='asgi'))",
    ],
)
def test_asgi_app(source: str, preload: list[str], tmp_path: Path) -> None:
    """The workers can't run it: said at once, and not by a 500 for each request."""
    (tmp_path / "fast.py").write_text(source)
    args = ["--pythonpath", str(tmp_path), *preload]
    server = server_in(tmp_path, "fast:app", args=args)
    assert_fails(server, "Can't load the app: AppImportError: .* is an ASGI app.*expected", tmp_path, files=["fast.py"])


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_app_that_raises_while_it_is_imported(preload: list[str], tmp_path: Path) -> None:
    """An error in the app's own code: its traceback, once and not once for each worker."""
    (tmp_path / "broken.py").write_text("def helper():\n    raise KeyError('missing setting')\n\n\nhelper()\n")
    with server_in(tmp_path, "broken:app", workers=4, args=preload) as server:
        assert server.wait() != 0
        server.assert_nothing_left()
        assert len(server.find("^Traceback")) == 1
        assert len(server.find("^KeyError: 'missing setting'")) == 1
        assert len(server.find("broken.py.*line 2")) == 1
    assert [it.name for it in tmp_path.iterdir()] == ["broken.py"]


# --- addresses


def test_port_in_use() -> None:
    """A port that somebody else has: gunicorn tries five times, then it is an error."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # Side by side, for the tries take five seconds.
        with (
            Server(bind=[f"127.0.0.1:{port}"], ready=False) as gunicorn,
            Server(bind=[f"127.0.0.1:{port}"], ready=False, door="serve") as serve,
        ):
            for server in (gunicorn, serve):
                assert server.wait() == 1
                server.assert_nothing_left()
                assert len(server.find(rf"Can't connect to \('127.0.0.1', {port}\)")) == 1
                assert not server.find("Traceback")


# --- options


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
@pytest.mark.parametrize(
    ("workers", "env", "complaint"),
    [
        (0, {}, "workers=0: expected 1 to 1024"),
        (1025, {}, "workers=1025: expected 1 to 1024"),
        (5, {"STICKY_SESSION_PARTITIONS": "4"}, "workers=5: expected 1 to 4"),
    ],
)
def test_number_of_workers(door: str, workers: int, env: dict[str, str], complaint: str, tmp_path: Path) -> None:
    """No worker at all, or more of them than the ring has partitions."""
    assert_fails(server_in(tmp_path, door=door, workers=workers, env=env), complaint, tmp_path)


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_unknown_variable(door: str, tmp_path: Path) -> None:
    """A STICKY_SESSION_ variable that is none of ours, for example misspelt: the line names those that are."""
    env = {"STICKY_SESSION_PARTITION": "4"}
    complaint = "STICKY_SESSION_PARTITION: there is no such option; expected one of .*STICKY_SESSION_PARTITIONS"
    assert_fails(server_in(tmp_path, door=door, env=env), complaint, tmp_path)


def test_unknown_flag(tmp_path: Path) -> None:
    """A flag that is neither gunicorn's nor ours."""
    server = server_in(tmp_path, door="serve", args=["--nothing", "1"])
    assert_fails(server, "unrecognized arguments: --nothing", tmp_path)


@pytest.mark.parametrize("option", OPTIONS, ids=OPTION_IDS)
def test_bad_value_in_the_environment(option: Option, tmp_path: Path) -> None:
    """A value that can't be used: the line says where it came from and what was expected."""
    server = server_in(tmp_path, env={option.environment: "too many"})
    assert_fails(server, rf"{option.environment}=too many: expected .* \({option.unit}\)", tmp_path)


@pytest.mark.parametrize("option", NUMBERS, ids=[option.name for option in NUMBERS])
def test_bad_value_in_a_flag(option: Number, tmp_path: Path) -> None:
    """A value out of bounds: the line says where it came from and what was expected."""
    server = server_in(tmp_path, door="serve", args=[f"{option.flag}=-1"])
    assert_fails(server, rf"{option.flag}=-1: expected a (whole )?number from .* to .* \({option.unit}\)", tmp_path)


@pytest.mark.parametrize("option", WORDS, ids=[option.name for option in WORDS])
def test_bad_word_in_a_flag(option: Choice, tmp_path: Path) -> None:
    """A word that is none of those there are: the line says where it came from and what was expected."""
    server = server_in(tmp_path, door="serve", args=[f"{option.flag}=[1]"])
    assert_fails(server, rf"{option.flag}=\[1\]: expected {option.expected} \({option.unit}\)", tmp_path)


@pytest.mark.parametrize("option", OPTIONS, ids=OPTION_IDS)
def test_bad_value_in_a_file(option: Option, tmp_path: Path) -> None:
    """A value of the wrong type in the configuration file: the line says what was expected."""
    (tmp_path / "conf.py").write_text(f"{option.setting} = [1]\n")
    server = server_in(tmp_path, door="serve", args=["-c", "conf.py"])
    assert_fails(
        server,
        r"=\[1\]: expected (a (whole )?number from|listener|the name|first|an absolute path|three octal)",
        tmp_path,
        files=["conf.py"],
    )


# --- workers that don't get to serve


def test_worker_killed_while_it_boots(tmp_path: Path) -> None:
    """A worker that is killed before it has booted is replaced; who waits for its slot is served."""
    gate = Gate(tmp_path)
    gate.hold_next()
    with Server("gated:app", workers=2, env=gate.env, ready=False) as server:
        killed = gate.held()
        server.wait_for("Listener ready")
        waiting = [send(server.port, "/", client_of(slot, 2)) for slot in (0, 1)]
        os.kill(killed, SIGKILL)
        assert [receive(it).json()["slot"] for it in waiting] == [0, 1]
        server.wait_for("Worker ready", count=2)
        take_turn(server, server.pid)
        wait_for_workers(server, server.pid, server.worker_pids.values())
        assert killed not in server.worker_pids.values()


def test_app_that_boots_for_longer_than_the_timeout(tmp_path: Path) -> None:
    """gunicorn's timeout begins when a worker has booted: until then it is left alone, and the others serve."""
    gate = Gate(tmp_path)
    env = {**gate.env, "STICKY_SESSION_FAILOVER": "5"}
    with Server("gated:app", workers=2, env=env, args=["--timeout", "3"]) as server:
        gate.close()
        mark = server.mark()
        os.kill(server.worker_pids[1], SIGKILL)
        booting = int(server.wait_for(r"Booting worker with pid: (\d+)", after=mark)[1])
        server.wait_for("Slot 1 is empty for more than 5 s", after=mark)
        assert get(server.port, "/", client_of(1, 2)).json()["slot"] == 0
        assert not server.find("TIMEOUT")
        gate.open()
        server.wait_for("Slot 1 is back")
        assert get(server.port, "/", client_of(1, 2)).json()["pid"] == booting
