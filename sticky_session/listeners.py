"""The arbiter's view of its listener processes: the one that accepts, and those that hand off the rest."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from sticky_session import children
from sticky_session.generation import Generation
from sticky_session.listener import BEAT_SECONDS

# A listener that lived for a shorter time than this is not restarted at once.
MIN_SECONDS = 1.0
# Longer than a listener that was told to stop hands off and refuses what it has.
STOP_SECONDS = 30.0


@dataclass
class ListenerProcess:
    """One listener."""

    pid: int
    generation: Generation
    started_at: float
    kill_at: float = math.inf
    accepting: bool = True


class Listeners:
    """At most one listener that accepts; the next one is started when the former one has said that it ceased to.

    :param log: gunicorn's logger
    :param run: what the child does, given the generation to feed
    """

    def __init__(self, log: Any, run: Callable[[Generation], NoReturn]) -> None:
        self._log = log
        self._run = run
        self._current: ListenerProcess | None = None
        # Told to stop, by process id.
        self._former: dict[int, ListenerProcess] = {}
        self._start_at = 0.0

    def _all(self) -> list[ListenerProcess]:
        former = list(self._former.values())
        return former if self._current is None else [*former, self._current]

    def __len__(self) -> int:
        return len(self._all())

    def is_accepting(self) -> bool:
        """Whether some listener still accepts."""
        for listener in self._all():
            if listener.generation.table.last_closed == listener.pid:
                listener.accepting = False
        return any(listener.accepting for listener in self._all())

    def still_feed(self, generation: Generation) -> bool:
        """Whether a listener that has been told to stop may still send to a generation's channels."""
        return any(listener.generation is generation for listener in self._former.values())

    def start(self, generation: Generation, *, pause: bool = True) -> None:
        """Have a listener, unless the former one still accepts, or (``pause``) one has just failed."""
        now = time.monotonic()
        if self._current is not None or self.is_accepting() or (pause and now < self._start_at):
            return
        try:
            pid = children.fork()
        except OSError as error:
            self._log.error("The listener can't be started: %s; trying again", error.strerror)
            self._start_at = now + MIN_SECONDS
            return
        if pid == 0:
            self._run(generation)
        self._current = ListenerProcess(pid, generation, now)

    def stop(self, number: signal.Signals) -> None:
        """Tell the listener to finish, with SIGTERM or SIGQUIT."""
        if self._current is not None:
            self._current.kill_at = time.monotonic() + STOP_SECONDS
            self._former[self._current.pid] = self._current
            children.kill(self._current.pid, number)
            self._current = None

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to all of them."""
        for listener in self._all():
            children.kill(listener.pid, number)

    def murder(self) -> None:
        """Kill those that have not been heard of for too long, or not ended when told to."""
        for listener in self._all():
            timeout_seconds = listener.generation.cfg.timeout or math.inf
            last_beat = max(listener.generation.table.last_beat, listener.started_at)
            now = time.monotonic()
            # An idle listener may take two beats' time for one. One that was told to stop may share its beats with
            # the next one.
            if now - last_beat > timeout_seconds + 2 * BEAT_SECONDS or now > listener.kill_at:
                self._log.critical("LISTENER TIMEOUT (pid:%s)", listener.pid)
                children.kill(listener.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Reap by process id, before gunicorn's waitpid(-1) takes the exit status."""
        if self._current is not None:
            status = children.reap(self._current.pid)
            if status is not None:
                # With status 0 it was told to end, as systemd tells all processes of a service at once.
                say = self._log.error if status else self._log.info
                say("The listener (pid:%s) ended %s", self._current.pid, children.describe(status))
                if time.monotonic() - self._current.started_at < MIN_SECONDS:
                    self._start_at = time.monotonic() + MIN_SECONDS
                self._current = None
        for pid in list(self._former):
            if children.reap(pid) is not None:
                del self._former[pid]
