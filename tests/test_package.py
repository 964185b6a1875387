"""What is installed, and what importing it costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import sticky_session

ROOT = Path(__file__).parent.parent


def run(*arguments: str, cwd: Path | None = None) -> str:
    finished = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_import_is_light() -> None:
    """``import sticky_session`` imports neither gevent nor gunicorn nor anything that needs them."""
    script = "import sticky_session, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    heavy = {"gevent", "geventwebsocket", "gunicorn", "socketio", "engineio"}
    assert not heavy & set(run("-c", script).split())


def test_ring_is_light() -> None:
    """The ring is usable without gevent and gunicorn."""
    script = "import sys, sticky_session; sticky_session.Ring(4); print(*sys.modules)"
    assert not {"gevent", "gunicorn"} & set(run("-c", script).split())


def test_worker_is_light() -> None:
    """The arbiter imports the worker's class, and nothing with it that apps import and gevent has to patch."""
    script = (
        "import sticky_session, sys; sticky_session.Worker; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    assert not {"socketio", "engineio", "requests", "urllib3", "redis"} & set(run("-c", script).split())


def test_public_names() -> None:
    """The public names are these, and each exists."""
    assert sticky_session.__all__ == [
        "ClusterError",
        "ClusterManager",
        "ListenError",
        "OptionError",
        "Options",
        "PlatformError",
        "Ring",
        "StickySessionError",
        "UnconfirmedError",
        "Worker",
        "__version__",
        "close",
        "listen",
        "wait",
        "worker_id",
    ]
    script = "import sticky_session as s; print(*[name for name in s.__all__ if getattr(s, name) is not None])"
    assert run("-c", script).split() == sticky_session.__all__
    assert set(sticky_session.__all__) <= set(dir(sticky_session))


def test_unknown_name() -> None:
    """A name that doesn't exist is an AttributeError, as in every module."""
    assert not hasattr(sticky_session, "nonsense")


def test_command() -> None:
    """``python -m sticky_session`` and ``sticky-session`` are one command with help."""
    help_text = run("-m", "sticky_session", "--help")
    assert "serve" in help_text
    assert "ring" in help_text
    command = Path(sys.executable).with_name("sticky-session")
    finished = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert finished.stdout == help_text


def test_wheel(tmp_path: Path) -> None:
    """A wheel built from this tree has every module, the type marker, the licence and the command."""
    source = copy_of_source(tmp_path)
    run(
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
        cwd=source,
    )
    (wheel,) = tmp_path.glob("sticky_session-*.whl")
    assert wheel.name == f"sticky_session-{sticky_session.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "sticky-session = sticky_session.cli:main" in archive.read(entry_points).decode()
    assert packaged() <= names
    assert any(name.endswith("LICENSE") for name in names)


def test_sdist(tmp_path: Path) -> None:
    """A source distribution has the same modules and data."""
    source = copy_of_source(tmp_path)
    run("-W", "ignore", "setup.py", "-q", "sdist", "--formats=tar", "-d", str(tmp_path), cwd=source)
    (sdist,) = tmp_path.glob("sticky*session-*.tar")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert packaged() <= names


def copy_of_source(folder: Path) -> Path:
    """What a package is built from, without what building leaves."""
    source = folder / "source"
    shutil.copytree(ROOT / "sticky_session", source / "sticky_session", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


def packaged() -> set[str]:
    """The files that every package of ours has."""
    patterns = ("*.py", "py.typed", "proxyconfigs/*")
    return {str(path.relative_to(ROOT)) for name in patterns for path in (ROOT / "sticky_session").glob(name)}
