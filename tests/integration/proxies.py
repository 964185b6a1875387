"""Real proxies, started from what ``sticky-session proxy-config`` prints.

Each is a program in the foreground with its files in a temporary folder, used like the servers of the harness::

    with Server(workers=1) as server, Nginx(f"--server=127.0.0.1:{server.port}") as proxy:
        assert get(proxy.port, "/", address="127.0.0.7").status == 200

What is printed goes into a file of its own, and a file around it holds what a distribution brings, and what keeps the
program from anything outside of the folder: process ids, logs, users, modules.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGTERM, SIGWINCH
from typing import TypeVar

from harness import COMMANDS, HOST, START_SECONDS, STOP_SECONDS, Process, free_port, wait_until

_P = TypeVar("_P", bound="Proxy")

_NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_APACHE_MODULES = Path("/usr/lib/apache2/modules")
_APACHE_USER = "www-data"  # as root Apache wants one for its children


@contextlib.contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """A folder that a proxy's children, another user, can look into; those of pytest are its user's only."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def program(name: str) -> str:
    """The path of a program; Debian has those of daemons where a user's PATH may not lead."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    assert found, f"{name} is not installed; make test does it"
    return found


class Proxy(Process):
    """A proxy that listens at :attr:`port` of the loopback address; ready when it accepts.

    :param flags: of ``sticky-session proxy-config``, but for ``--listen``
    :param edit: changes the printed configuration, as a user might
    """

    name = ""

    def __init__(self, *flags: str, edit: Callable[[str], str] = str) -> None:
        super().__init__([])
        self._port = free_port()
        self._flags = flags
        self._edit = edit
        self._folder = contextlib.ExitStack()

    @property
    def ports(self) -> list[int]:
        return [self._port]

    def printed(self) -> str:
        """What ``sticky-session proxy-config`` prints."""
        command = [str(COMMANDS / "sticky-session"), "proxy-config", self.name, "--listen", f"{HOST}:{self._port}"]
        finished = subprocess.run([*command, *self._flags], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def start(self: _P) -> _P:
        printed = self._edit(self.printed())
        folder = self._folder.enter_context(open_folder(f"{self.name}-"))
        self.command = list(self.files(folder, printed))
        self._env.update(HOME=str(folder), XDG_CONFIG_HOME=str(folder), XDG_DATA_HOME=str(folder))
        return super().start()

    def _wait_ready(self) -> None:
        def accepts() -> bool:
            assert self.running(), f"{self.name} exited:\n{self.log}"
            with socket.socket() as probe:
                return probe.connect_ex((HOST, self._port)) == 0

        wait_until(accepts, START_SECONDS, f"{self.name} accepts")

    def _close(self) -> None:
        super()._close()
        self._folder.close()

    @classmethod
    def files(cls, folder: Path, printed: str) -> Sequence[str]:
        """Write all files into ``folder``; the command that runs the proxy in the foreground."""
        raise NotImplementedError

    @classmethod
    def check(cls, folder: Path, printed: str) -> subprocess.CompletedProcess[str]:
        """Have the proxy's own program read the configuration; it starts nothing."""
        command = cls._checking(folder, cls.files(folder, printed))
        env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, check=False
        )

    @classmethod
    def _checking(cls, folder: Path, command: Sequence[str]) -> Sequence[str]:
        """The command that reads the configuration, made of the one that runs the proxy."""
        raise NotImplementedError


class Nginx(Proxy):
    """nginx with one worker process; with ``--via proxy-protocol`` it needs Debian's libnginx-mod-stream."""

    name = "nginx"

    @classmethod
    def files(cls, folder: Path, printed: str) -> Sequence[str]:
        (folder / "printed.conf").write_text(printed)
        stream = "\nstream {" in printed
        lines = [
            *([f"load_module {_NGINX_STREAM};"] if stream and "--with-stream=dynamic" in about(cls) else []),
            *(["user root;"] if os.geteuid() == 0 else []),
            "daemon off;",
            f"pid {folder}/pid;",
            "error_log stderr;",
            # A client that waits takes two; 512 are the default.
            "events { worker_connections 4096; }",
        ]
        if stream:
            lines.append(f"include {folder}/printed.conf;")
        else:
            temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            lines += ["http {", f"access_log {folder}/access.log;"]
            lines += [f"{name}_temp_path {folder}/{name};" for name in temporary]
            lines += [f"include {folder}/printed.conf;", "}"]
        (folder / "nginx.conf").write_text("\n".join(lines) + "\n")
        return [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]

    @classmethod
    def _checking(cls, folder: Path, command: Sequence[str]) -> Sequence[str]:
        del folder
        return [*command, "-t"]


class Haproxy(Proxy):
    """HAProxy as one process."""

    name = "haproxy"

    @classmethod
    def files(cls, folder: Path, printed: str) -> Sequence[str]:
        (folder / "printed.cfg").write_text(printed)
        return [program("haproxy"), "-db", "-f", str(folder / "printed.cfg")]

    def stop(self, number: int = SIGTERM, timeout: float = STOP_SECONDS) -> int:
        # A single HAProxy process ends by the signal, not by an exit.
        status = super().stop(number, timeout)
        return 0 if status == -number else status

    @classmethod
    def _checking(cls, folder: Path, command: Sequence[str]) -> Sequence[str]:
        del folder
        return [*command, "-c"]


class Apache(Proxy):
    """Apache with the event MPM and the modules that the printed comment tells to enable."""

    name = "apache"

    @classmethod
    def files(cls, folder: Path, printed: str) -> Sequence[str]:
        (folder / "printed.conf").write_text(printed)
        modules = ["mpm_event", "authz_core", "reqtimeout", "proxy", "proxy_http", "headers"]
        if "a2enmod" in printed and "proxy_balancer" in printed:
            modules += ["slotmem_shm", "proxy_balancer", "lbmethod_byrequests"]
        lines = [
            f'ServerRoot "{folder}"',
            f'DefaultRuntimeDir "{folder}"',
            f'PidFile "{folder}/pid"',
            "ErrorLog /proc/self/fd/2",
            "ServerName localhost",
            *(f"LoadModule {module}_module {_APACHE_MODULES}/mod_{module}.so" for module in modules),
            "GracefulShutdownTimeout 5",
            *([f"User {_APACHE_USER}", f"Group {_APACHE_USER}"] if os.geteuid() == 0 else []),
            f'Include "{folder}/printed.conf"',
        ]
        (folder / "apache.conf").write_text("\n".join(lines) + "\n")
        return [program("apache2"), "-DFOREGROUND", "-f", str(folder / "apache.conf")]

    def stop(self, number: int = SIGWINCH, timeout: float = STOP_SECONDS) -> int:
        # The graceful one: SIGTERM closes the sockets under a thread that is about to end a WebSocket, and that thread
        # then waits ten seconds to be killed.
        return super().stop(number, timeout)

    @classmethod
    def _checking(cls, folder: Path, command: Sequence[str]) -> Sequence[str]:
        del folder
        return [*command, "-t"]


class Caddy(Proxy):
    """Caddy without its admin interface."""

    name = "caddy"

    @classmethod
    def files(cls, folder: Path, printed: str) -> Sequence[str]:
        (folder / "printed").write_text(printed)
        (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\nimport {folder}/printed\n")
        return [program("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]

    @classmethod
    def _checking(cls, folder: Path, command: Sequence[str]) -> Sequence[str]:
        del folder
        return [command[0], "validate", *command[2:]]


def told(proxy: type[Proxy], *flags: str) -> list[str]:
    """The arguments that the printed configuration says we are to be started with, but for the place and the app.

    :param flags: of ``sticky-session proxy-config``, without ``--server``
    """
    found = re.search(r"sticky-session serve app:app --bind \S+ (.+)", proxy(*flags).printed())
    assert found
    return shlex.split(found[1])


PROXIES: tuple[type[Proxy], ...] = (Nginx, Haproxy, Apache, Caddy)
# What a Debian's version doesn't know yet: the line, and since when it does.
NEWER = {
    Nginx: ("sticky cookie", (1, 29, 6), 'unknown directive "sticky"'),
    Caddy: ("proxy_protocol", (2, 7, 0), "unrecognized subdirective proxy_protocol"),
}


def about(proxy: type[Proxy]) -> str:
    """What the installed program says of itself."""
    flag = {"nginx": "-V", "haproxy": "-v", "apache": "-v", "caddy": "version"}[proxy.name]
    command = [program("apache2" if proxy is Apache else proxy.name), flag]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def version(proxy: type[Proxy]) -> tuple[int, ...]:
    """The version of the installed program."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", about(proxy))
    assert found
    return tuple(map(int, found.groups()))
