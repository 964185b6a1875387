"""The listening sockets, gunicorn's objects: which a reload keeps, opens and closes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from socket import AF_UNIX
from typing import Any

from gunicorn.sock import TCP6Socket, TCPSocket, UnixSocket
from gunicorn.util import is_ipv6

from sticky_session import handoff
from sticky_session.errors import OptionError


def listen_on(cfg: Any, log: Any, listening: Iterable[Any]) -> list[Any]:
    """The sockets for a new configuration's addresses: those already listened on, and new ones for the others.

    gunicorn closes all and opens all, which fails for an address that stays, since its listener still has it.

    :raises OSError: an address can't be listened on; nothing has been opened
    :raises OptionError: a descriptor is among the addresses
    """
    known = {sock.cfg_addr: sock for sock in listening}
    opened: list[Any] = []
    sockets = []
    try:
        for address in cfg.address:
            if isinstance(address, int):
                raise OptionError(f"bind=fd://{address}: a reload can't change bind to that; restart")
            if address not in known:
                opened.append(_open(address, cfg, log))
            sockets.append(known.get(address) or opened[-1])
    except BaseException:
        close(opened, unlink=True)
        raise
    return sockets


def _open(address: Any, cfg: Any, log: Any) -> Any:
    kind = UnixSocket if isinstance(address, str) else TCP6Socket if is_ipv6(address[0]) else TCPSocket
    try:
        return kind(address, cfg, log)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {address}") from None


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
