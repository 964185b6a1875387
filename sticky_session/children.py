"""Forking, signalling and reaping children, whatever gevent has patched."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from gevent.monkey import get_original

# gevent, when it is patched in here (--preload, listen()), would watch children and take their exit statuses.
_fork = get_original("os", "fork")


# What the arbiter may send to a child that has no handlers of its own yet.
_KEPT = (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGINT)


def fork() -> int:
    """fork(2), with the signals blocked that a child could lose before it has handlers of its own.

    The child unblocks them when it has. gevent's replacement for ``os.fork`` is not used.

    :returns: the child's process id; 0 in the child
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)
    pid: int = -1
    try:
        pid = _fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
    return pid


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Have the same signals wait until a child has changed its handlers."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def keep_signals(kept: list[int]) -> None:
    """In a child: unblock what :func:`fork` has blocked, and keep what comes for later.

    A blocked signal would stay blocked in the processes that a server hook starts.

    :param kept: where signals that come are added; raise them again when there are handlers
    """
    for number in _KEPT:
        signal.signal(number, lambda number, _: kept.append(number))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def reap(pid: int) -> int | None:
    """The wait status of a child that has ended; None while it runs, 0 if somebody else has reaped it."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if found else None


def is_lost(pid: int) -> bool:
    """Whether this process has no such child any more: somebody else has taken its exit status."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a child that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def describe(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"with status {os.waitstatus_to_exitcode(status)}"


@contextlib.contextmanager
def original_fork() -> Iterator[None]:
    """Give gunicorn's own code the fork that gevent has not replaced."""
    patched = os.fork
    os.fork = _fork
    try:
        yield
    finally:
        os.fork = patched
