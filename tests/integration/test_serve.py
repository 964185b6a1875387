"""``sticky-session serve``: gunicorn's command with our options."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import gunicorn
import pytest

from harness import APPS, COMMANDS, Process, Server, addresses, get
from sticky_session import __version__
from sticky_session.config import OPTIONS, Number, Option

SERVE = [COMMANDS / "sticky-session", "serve"]


def run(*arguments: str, env: dict[str, str] | None = None, status: int = 0) -> str:
    """What a ``serve`` that doesn't stay prints."""
    with Process([*SERVE, *arguments], env=env) as process:
        assert process.wait() == status, process.log
        process.assert_nothing_left()
    return process.log


def settings(*arguments: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """The settings in force, by --print-config."""
    printed = run("--print-config", *arguments, env=env)
    return {found[1]: found[2] for found in re.finditer(r"^(\w+) += (.*)$", printed, re.MULTILINE)}


def slots(server: Process) -> set[int]:
    """The slots that many addresses come to."""
    return {get(server.port, "/", address).json()["slot"] for address in addresses(40)}


def text(option: Option, number: int) -> str:
    """One of several values of an option, different from those of the numbers before and after."""
    if isinstance(option, Number):
        return str(option.type(option.low + number % (option.high - option.low + 1)))
    texts = {
        "client_header": f"X-Client-{number}",
        # None where there is no bus.
        "bus_socket": f"/bus{number}" if number % 2 else "off",
        "bus_socket_mode": f"60{number}",
        "router": ("listener", "kernel", "auto")[number % 3],
    }
    return texts.get(option.name, str(number))


def ours(found: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in found.items() if name.startswith("sticky_")}


def test_defaults() -> None:
    """Without options it runs as many workers as there are processors, all of ours, on the defaults."""
    found = settings("whoami:app")
    assert found["workers"] == str(len(os.sched_getaffinity(0)))
    assert found["worker_class"] == "sticky_session.Worker"
    assert ours(found) == {option.setting: str(option.default) for option in OPTIONS}


def test_workers() -> None:
    """The number of workers: a flag is stronger than WEB_CONCURRENCY, which is stronger than the processors."""
    assert settings("whoami:app", env={"WEB_CONCURRENCY": "7"})["workers"] == "7"
    assert settings("-w", "3", "whoami:app", env={"WEB_CONCURRENCY": "7"})["workers"] == "3"


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_version(flag: str) -> None:
    """The version is ours, with gunicorn's beside it."""
    assert run(flag).strip() == f"sticky-session {__version__} (gunicorn {gunicorn.__version__})"


@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_other_workers(tmp_path: Path, worker_class: str) -> None:
    """Workers of another kind, as an app's configuration file may still name, would not be sticky: one line says so."""
    config = tmp_path / "conf.py"
    config.write_text(f"worker_class = '{worker_class}'\n")
    printed = run("-c", str(config), "whoami:app", status=1)
    assert f"worker_class={worker_class}: expected sticky_session.Worker" in printed
    assert "Traceback" not in printed
    assert "Starting" not in printed


def test_derived_workers(tmp_path: Path) -> None:
    """A class derived from ours may be named."""
    (tmp_path / "mine.py").write_text("import sticky_session\n\n\nclass Mine(sticky_session.Worker):\n    pass\n")
    args = ("--worker-class", "mine.Mine", "--pythonpath", f"{APPS},{tmp_path}")
    with Server(door="serve", args=args, cwd=tmp_path) as server:
        assert get(server.port).json()["slot"] is not None


def test_precedence(tmp_path: Path) -> None:
    """Every option: a flag over GUNICORN_CMD_ARGS over the configuration file over the environment."""
    config = tmp_path / "conf.py"
    config.write_text("".join(f"{option.setting} = {text(option, 2)!r}\n" for option in OPTIONS))
    environment = {option.environment: text(option, 1) for option in OPTIONS}
    arguments = {"GUNICORN_CMD_ARGS": " ".join(f"{option.flag} {text(option, 3)}" for option in OPTIONS)}
    flags = [word for option in OPTIONS for word in (option.flag, text(option, 4))]
    file = ("-c", str(config))

    def values(number: int) -> dict[str, str]:
        return {option.setting: text(option, number) for option in OPTIONS}

    assert ours(settings("-w1", "whoami:app", env=environment)) == values(1)
    assert ours(settings("-w1", *file, "whoami:app", env=environment)) == values(2)
    assert ours(settings("-w1", *file, "whoami:app", env={**environment, **arguments})) == values(3)
    assert ours(settings("-w1", *file, *flags, "whoami:app", env={**environment, **arguments})) == values(4)


def test_serves() -> None:
    """It serves with every processor, and our flags take effect: /8 networks are one client."""
    args = ("--ipv4-prefix", "8", "--keep-alive", "7")
    with Server(workers=None, door="serve", args=args) as server:
        assert len(server.worker_pids) == len(os.sched_getaffinity(0))
        assert len(slots(server)) == 1


def test_module_and_reload(tmp_path: Path) -> None:
    """``python -m sticky_session`` is the same; HUP reads the configuration file again, USR2 runs the same command."""
    config = tmp_path / "conf.py"
    config.write_text("bind = '127.0.0.1:0'\nworkers = 2\nsticky_ipv4_prefix = 8\ncontrol_socket_disable = True\n")
    command = [sys.executable, "-m", "sticky_session", "serve", "-c", config, "whoami:app"]
    with Process(command) as server:
        server.wait_for("Worker ready", count=2)
        server.wait_for("Listener ready")
        assert len(slots(server)) == 1

        config.write_text(config.read_text().replace("= 8", "= 32").replace("workers = 2", "workers = 3"))
        mark = server.mark()
        server.signal(signal.SIGHUP)
        server.wait_for("Worker ready", count=3, after=mark)
        server.wait_for_listener(after=mark)
        assert slots(server) == {0, 1, 2}

        config.write_text(config.read_text().replace("= 32", "= 33"))
        mark, pids = server.mark(), server.worker_pids
        server.signal(signal.SIGHUP)
        server.wait_for("Reload failed, the old configuration stays in force", after=mark)
        assert slots(server) == {0, 1, 2}
        assert server.worker_pids == pids

        config.write_text(config.read_text().replace("= 33", "= 8"))
        mark, port = server.mark(), server.port
        server.signal(signal.SIGUSR2)
        server.wait_for_listener(after=mark)
        assert server.port == port
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert len(slots(server)) == 1
        os.kill(server.arbiter_pid, signal.SIGTERM)


def test_help() -> None:
    """--help has gunicorn's flags with our defaults, and ours in a group of their own with their variables."""
    printed = run("--help")
    gunicorns, _, group = printed.partition("\nsticky-session:\n")
    assert printed.startswith("usage: sticky-session serve [OPTIONS] [APP_MODULE]")
    assert "--worker-connections" in gunicorns
    assert "--sticky" not in gunicorns
    for option in OPTIONS:
        assert option.flag in group
        assert option.environment in " ".join(group.split())
    words = " ".join(gunicorns.split())
    assert f"worker processes for handling requests. [{len(os.sched_getaffinity(0))}]" in words
    assert "[sticky_session.Worker]" in words


def test_unit() -> None:
    """What systemd starts, in the documentation's unit, is a command line that is taken."""
    page = Path(__file__).parent.parent.parent / "docs" / "deployment.md"
    found = re.search(r"^ExecStart=\S+/sticky-session serve app:app ((?:.*\\\n)*.*)$", page.read_text(), re.MULTILINE)
    assert found
    flags = found[1].replace("\\\n", " ").split()
    assert settings(*flags, "whoami:app")["keepalive"] == "75"


def test_check_config() -> None:
    """--check-config loads the app and says nothing if all is well."""
    assert run("--check-config", "whoami:app") == ""
    assert "ModuleNotFoundError" in run("--check-config", "nonsense:app", status=1)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--seed", "salt"), {}, "Error: --seed=salt: expected a whole number from 0 to 4294967295"),
        (("--failover", "-1"), {}, "Error: --failover=-1: expected a number from 0 to 86400 (seconds)"),
        ((), {"STICKY_SESSION_IPV4_PREFIX": "33"}, "Error: STICKY_SESSION_IPV4_PREFIX=33: expected a whole number"),
        ((), {"STICKY_SESSION_SALT": "1"}, "Error: STICKY_SESSION_SALT: there is no such option; expected one of"),
        (("--partitions", "2", "-w", "3"), {}, "workers=3: expected 1 to 2"),
        (("-w", "0"), {}, "workers=0: expected 1 to 1024"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], environment: dict[str, str], message: str) -> None:
    """An option that can't be used is one clear line, here and with --check-config; nothing is left running."""
    for more in ((), ("--check-config",)):
        printed = run(*more, "--bind", "127.0.0.1:0", *arguments, "whoami:app", env=environment, status=1)
        assert len([line for line in printed.splitlines() if message in line]) == 1
        assert "Traceback" not in printed


def test_wrong_configuration_file(tmp_path: Path) -> None:
    """A wrong value of ours in the configuration file is named as it is written there."""
    config = tmp_path / "conf.py"
    config.write_text("sticky_ipv4_prefix = 'all'\n")
    assert "Invalid value for sticky_ipv4_prefix: all" in run("-c", str(config), "whoami:app", status=1)


def test_unknown_flag() -> None:
    """An unknown flag is an error with the usage."""
    assert "unrecognized arguments: --nonsense" in run("--nonsense", "whoami:app", status=2)


def test_no_app() -> None:
    """Without an app it says so."""
    assert "No application module specified." in run(status=1)


def test_without_path_of_script(tmp_path: Path) -> None:
    """The app is found from the working directory and from --chdir, as with gunicorn."""
    (tmp_path / "elsewhere.py").write_text("def app(environ, start_response):\n    return []\n")
    assert run("--check-config", "--chdir", str(tmp_path), "elsewhere:app") == ""
    finished = subprocess.run([*SERVE, "--check-config", "whoami:app"], cwd=APPS, capture_output=True, check=False)
    assert finished.returncode == 0
