"""Greenlets that serve connections, each one after the other.

A greenlet that is new costs more than many a request: CPython maps 16 KiB for its frames and unmaps them when it ends.
So one that has served a connection serves the next one that something arrives on, unless somebody can tell: where the
app has kept a reference to it, linked something to its end, or left something in a thread's locals, it ends, as it
would have if each connection had its own. And it begins with empty context variables each time.
"""

from __future__ import annotations

import sys
from typing import Protocol

import gevent
from gevent import Greenlet

# How many wait for something to do.
MAX_IDLE = 32


class Job(Protocol):
    """What is served."""

    def serve(self) -> None:
        """Serve what there is to do now."""


class Crew:
    """All greenlets of a server that run the app."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._idle: list[_Member] = []
        self._busy: set[_Member] = set()

    def run(self, job: Job) -> None:
        """Have a job served until it first waits. Only the hub may call this."""
        member = self._idle.pop() if self._idle else _Member(self)
        member.job = job
        self._busy.add(member)
        member.switch()

    def kill(self, seconds: float) -> None:
        """End those that are busy, and wait for them for at most so long."""
        gevent.killall(list(self._busy), timeout=seconds)


class _Member(Greenlet):  # type: ignore[misc]
    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self._crew = crew
        self.job: Job | None = None

    def _run(self) -> None:
        crew = self._crew
        try:
            known = sys.getrefcount(self)
            while self.job is not None:
                self.job.serve()
                self.job = None
                self.gr_context = None
                if self.has_links() or sys.getrefcount(self) > known or len(crew._idle) >= MAX_IDLE:
                    return
                crew._busy.discard(self)
                crew._idle.append(self)
                crew._hub.switch()
        finally:
            crew._busy.discard(self)
            if self in crew._idle:
                # Somebody has found it after all.
                crew._idle.remove(self)
