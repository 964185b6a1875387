"""The greenlets that serve connections.

A greenlet that is new costs more than many a request: CPython maps 16 KiB for its frames and unmaps them when it ends.
So one that has served a connection without ever waiting serves the next one, too, unless somebody could tell: where the
app has kept a reference to it, be it in a weak collection, linked something to its end, or left something in a thread's
locals or in an attribute, where tracers keep what belongs to a request, it ends, as it would have if each connection
had its own. It begins with empty context variables each time.
"""

from __future__ import annotations

import sys
import weakref
from typing import Protocol

import gevent
from gevent import Greenlet


class Job(Protocol):
    """What is served."""

    def serve(self) -> None:
        """Serve what there is to do now."""


class Crew:
    """All greenlets of a server that run the app."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._waiting: set[_Member] = set()
        # One is enough: while a job doesn't wait no other is begun.
        self._idle: _Member | None = None

    def run(self, job: Job) -> None:
        """Have a job served until it first waits. Only the hub may call this."""
        member = self._idle or _Member(self)
        self._idle = None
        member.job = job
        member.switch()
        if member.job is not None:
            self._waiting.add(member)

    def kill(self, seconds: float) -> None:
        """End those that wait in the middle of a job, and wait for them for at most so long."""
        gevent.killall(list(self._waiting), timeout=seconds)


def _is_known(member: _Member) -> bool:
    # Weak references without a callback are those by which greenlets know who has spawned them.
    return (
        member.has_links()
        or bool(member.__dict__)
        or any(each.__callback__ is not None for each in weakref.getweakrefs(member))
    )


class _Member(Greenlet):  # type: ignore[misc]
    """Serves a job each time that it is switched to.

    :ivar job: what it is serving
    """

    # What is in its __dict__ is the app's.
    __slots__ = ("_crew", "job")
    # gevent notes where each was spawned, ten frames deep. For these that is one place.
    spawning_stack_limit = 1

    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self._crew = crew
        self.job: Job | None = None

    def _run(self) -> None:
        crew = self._crew
        try:
            while self.job is not None:
                references = sys.getrefcount(self)
                self.job.serve()
                if self in crew._waiting or sys.getrefcount(self) != references or _is_known(self):
                    return
                self.job = None
                self.gr_context = None  # type: ignore[misc]  # It is greenlet's.
                crew._idle = self
                crew._hub.switch()
        finally:
            self.job = None
            crew._waiting.discard(self)
            if crew._idle is self:
                # Somebody has found it after all.
                crew._idle = None
