"""The listening sockets, gunicorn's objects: which a reload keeps, opens and closes."""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from socket import AF_INET, AF_INET6, AF_UNIX, SOCK_STREAM
from typing import Any

from gunicorn.sock import TCP6Socket, TCPSocket, UnixSocket
from gunicorn.util import is_ipv6

from sticky_session import handoff
from sticky_session.errors import OptionError

# How long another server that makes a socket in the same folder is waited for.
LOCK_SECONDS = 2.0


def listen_on(cfg: Any, log: Any, listening: Iterable[Any]) -> list[Any]:
    """The sockets for a new configuration's addresses: those already listened on, and new ones for the others.

    gunicorn closes all and opens all, which fails for an address that stays, since its listener still has it.

    :raises OSError: an address can't be listened on; nothing has been opened
    :raises OptionError: a descriptor is among the addresses
    """
    # Of an inherited socket the first is the second: an address, where the configuration may have a name.
    known = {address: sock for sock in listening for address in (sock.cfg_addr, sock.getsockname())}
    opened: list[Any] = []
    sockets: list[Any] = []
    try:
        for address in cfg.address:
            if isinstance(address, int):
                raise OptionError(f"bind=fd://{address}: a reload can't change bind to that; restart")
            sock = known.get(address) or known.get(_resolve(address))
            if sock is None:
                sock = known[address] = _open(address, cfg, log)
                opened.append(sock)
            if sock not in sockets:
                sockets.append(sock)
    except BaseException:
        close(opened, unlink=True)
        raise
    return sockets


def _resolve(address: Any) -> Any:
    """What getsockname() says of a socket that was bound to an address."""
    if isinstance(address, str):
        return address
    host, port = address
    try:
        return _socket.getaddrinfo(host, port, AF_INET6 if is_ipv6(host) else AF_INET, SOCK_STREAM)[0][4]
    except OSError:
        return address


def _open(address: Any, cfg: Any, log: Any) -> Any:
    kind = UnixSocket if isinstance(address, str) else TCP6Socket if is_ipv6(address[0]) else TCPSocket
    # gunicorn sets it and, if it can't bind, leaves it so.
    umask = os.umask(cfg.umask)
    try:
        return kind(address, cfg, log)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {address}") from None
    finally:
        os.umask(umask)


def bind_unix(sock: _socket.socket, path: str, cfg: Any, umask: int) -> None:
    """Listen on a path. A file that a server has left there is replaced, one that somebody listens on never.

    :param umask: the permissions that the file doesn't get, not even for a moment
    :raises OSError: it can't be done; EADDRINUSE if somebody listens there, or it is another kind of file
    """
    # Another server must not come between our look and our bind, nor find us bound and not listening yet.
    with _locked_folder(path):
        _remove_stale(path)
        before = os.umask(umask)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        # Whoever may write to the folder could have put a link in its place.
        os.chown(path, cfg.uid, cfg.gid, follow_symlinks=False)
        sock.listen(cfg.backlog)


def remove_stale(path: str) -> None:
    """Remove a Unix socket that nobody listens on any more, if it is there and can be removed."""
    # Another server may be about to do the same, or to listen there.
    with contextlib.suppress(OSError), _locked_folder(path):
        _remove_stale(path)


@contextlib.contextmanager
def _locked_folder(path: str) -> Iterator[None]:
    """While it lasts no other server of ours makes or removes a socket beside this one."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(folder)
        yield
    finally:
        handoff.close(folder)


def _lock(folder: int) -> None:
    """Lock a folder, but don't wait for ever: servers lock it for a moment, and whoever can read it for as long as he
    likes.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return


def _remove_stale(path: str) -> None:
    """Remove a Unix socket that nobody listens on any more; what else is there is left, and bind() will say so."""
    probe = _socket.socket(AF_UNIX, SOCK_STREAM)
    # One that is listened on, but whose backlog is full, would make it wait.
    probe.setblocking(False)
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError:
        return
    finally:
        probe.close()


def close(sockets: Iterable[Any], *, unlink: bool) -> None:
    """Close sockets in this process, at once: gevent, where it is patched in, would leave it to its loop.

    :param unlink: whether the file of a Unix socket goes, too
    """
    for sock in sockets:
        name = sock.getsockname()
        handoff.close(sock.detach())
        if unlink and sock.FAMILY == AF_UNIX and isinstance(name, str):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
