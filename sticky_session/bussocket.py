"""The bus socket: a Unix socket that lets processes which are no workers hand in messages, see :mod:`.outside`.

It is one more listening socket of the listener's, there only if it was asked for. Its file's permissions say who may
use it.
"""

from __future__ import annotations

import _socket
import contextlib
import os
from collections.abc import Iterable, Iterator, MutableMapping
from socket import AF_UNIX, SOCK_STREAM
from typing import Any

from sticky_session import handoff
from sticky_session.config import OFF, Options
from sticky_session.errors import OptionError
from sticky_session.sockets import bind_unix

# The descriptor that an arbiter passes on to the one that SIGUSR2 starts.
VARIABLE = "_STICKY_SESSION_BUS_SOCKET"


class BusSocket:
    """The listening socket, with what gunicorn's have beside a socket's own methods.

    :ivar cfg_addr: its path
    """

    FAMILY = AF_UNIX

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.cfg_addr = sock.getsockname()
        self._file = _file_at(self.cfg_addr)

    def __str__(self) -> str:
        return f"unix:{self.cfg_addr}"

    @property
    def is_in_place(self) -> bool:
        """Whether the file at its path is still its own: somebody may have removed it, and another listens there."""
        return self._file is not None and self._file == _file_at(self.cfg_addr)

    def admit(self, options: Options, cfg: Any) -> None:
        """Let those use it that the configuration names, if its file is still there.

        :raises OSError: the file's owner can't be changed
        """
        try:
            descriptor = os.open(self.cfg_addr, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) == self._file:
                # Not by its path, where whoever may write to the folder could put something else now.
                place = f"/proc/self/fd/{descriptor}"
                os.chown(place, cfg.uid, cfg.gid)
                os.chmod(place, int(options.bus_socket_mode, 8))
        finally:
            handoff.close(descriptor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def _file_at(path: str) -> tuple[int, int] | None:
    """What tells a file from others; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def listen(options: Options, cfg: Any, known: Iterable[Any] = ()) -> list[BusSocket]:
    """Listen on the path that the options name.

    :param known: sockets that are listened on already, and may be it; then only who may use it changes
    :returns: the socket, or nothing if the options name no path
    :raises OptionError: it can't be done: the path has no folder, is somebody's, or is no socket
    """
    path = options.bus_socket
    if path == OFF:
        return []
    for it in known:
        if isinstance(it, BusSocket) and it.cfg_addr == path and it.is_in_place:
            try:
                it.admit(options, cfg)
            except OSError as error:
                raise OptionError(f"bus_socket={path}: its owner can't be changed: {error.strerror}") from None
            return [it]
    sock = _socket.socket(AF_UNIX, SOCK_STREAM)
    try:
        bind_unix(sock, path, cfg, 0o777 & ~int(options.bus_socket_mode, 8))
    except OSError as error:
        handoff.close(sock.detach())
        raise OptionError(
            f"bus_socket={path}: {error.strerror}; expected a path where a socket can be made, and that nobody "
            "listens on. Choose another, or stop who has it"
        ) from None
    return [BusSocket(sock)]


@contextlib.contextmanager
def offer(bus_socket: BusSocket | None, environ: MutableMapping[str, str]) -> Iterator[None]:
    """Around the fork and exec of a new arbiter: let it have the socket."""
    if bus_socket is None:
        # What this arbiter was started with, and is not listening on any more, may still be in there.
        environ.pop(VARIABLE, None)
        yield
        return
    os.set_inheritable(bus_socket.fileno(), True)
    environ[VARIABLE] = str(bus_socket.fileno())
    try:
        yield
    finally:
        del environ[VARIABLE]
        os.set_inheritable(bus_socket.fileno(), False)


def inherit(environ: MutableMapping[str, str]) -> list[BusSocket]:
    """The socket of the arbiter that has started this one, if it has one."""
    descriptor = environ.pop(VARIABLE, None)
    if descriptor is None:
        return []
    os.set_inheritable(int(descriptor), False)
    return [BusSocket(_socket.socket(fileno=int(descriptor)))]
