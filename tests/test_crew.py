"""The crew: greenlets are used again, and nobody can tell."""

from __future__ import annotations

import contextvars
import gc
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import gevent.local
import pytest
from gevent.event import Event

from sticky_session.crew import Crew

variable = contextvars.ContextVar("variable", default="nothing")


class Job:
    """Serves by calling a function.

    :ivar done: set when it has been served, or has failed
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.result: Any = None
        self.done = Event()

    def serve(self) -> None:
        try:
            self.result = self._function()
        finally:
            self.done.set()


def run(crew: Crew, *functions: Callable[[], Any]) -> list[Any]:
    """What functions return that the hub has a crew run, one right after the other."""
    jobs = [Job(function) for function in functions]
    for job in jobs:
        gevent.get_hub().loop.run_callback(crew.run, job)
    assert all(job.done.wait(5) for job in jobs)
    gevent.sleep(0)
    return [job.result for job in jobs]


def who() -> int:
    return id(gevent.getcurrent())


def test_one_after_the_other() -> None:
    """One greenlet serves all that never wait."""
    assert len(set(run(Crew(), *[who] * 10))) == 1


def test_one_who_waited() -> None:
    """While one waits others serve, and when it has done its job it ends."""
    ended = []

    def wait() -> int:
        gevent.sleep(0.01)
        ended.append(weakref.ref(gevent.getcurrent()))
        return who()

    crew = Crew()
    assert len(set(run(crew, wait, wait, who))) == 3
    gc.collect()
    assert [each() for each in ended] == [None, None]
    assert not crew._waiting


def test_what_is_left_in_context_variables() -> None:
    """Each job begins with empty ones."""

    def look() -> tuple[int, str]:
        found = variable.get()
        variable.set("left")
        return who(), found

    (first, _), (second, found) = run(Crew(), look, look)
    assert first == second
    assert found == "nothing"


@pytest.mark.parametrize("waits", [False, True])
def test_what_is_left_in_locals(waits: bool) -> None:
    """A thread's locals, which gevent keeps by greenlet, are empty, too."""
    local = gevent.local.local()

    def look() -> Any:
        found = getattr(local, "value", "nothing")
        local.value = "left"
        if waits:
            gevent.sleep(0.01)
        return found

    assert run(Crew(), look, look, look) == ["nothing"] * 3


def test_what_is_left_in_attributes() -> None:
    """What tracers keep in the greenlet itself, or by it in a weak dictionary, is not there either."""
    weak: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    def by_attribute() -> Any:
        found = getattr(gevent.getcurrent(), "note", "nothing")
        gevent.getcurrent().note = "left"
        return found

    def by_weak_reference() -> Any:
        found = weak.get(gevent.getcurrent(), "nothing")
        weak[gevent.getcurrent()] = "left"
        return found

    for look in (by_attribute, by_weak_reference):
        assert run(Crew(), look, look) == ["nothing"] * 2


def test_one_that_has_spawned_others() -> None:
    """It serves again while they go on."""
    children = []

    def spawn() -> int:
        children.append(gevent.spawn(gevent.sleep, 60))
        return who()

    assert len(set(run(Crew(), spawn, spawn))) == 1
    gevent.killall(children)


def test_a_timeout_that_is_never_closed() -> None:
    """It does not strike the one that is served next."""

    def leave() -> None:
        gevent.Timeout(0.02).start()

    def victim() -> str:
        gevent.sleep(0.1)
        return "served"

    assert run(Crew(), leave, victim)[1] == "served"


@pytest.mark.parametrize("waits", [False, True])
def test_one_that_somebody_knows(waits: bool) -> None:
    """Whoever has kept a greenlet to end it later, or waits for its end, ends no other job."""
    kept = []
    ended = []

    def keep() -> int:
        kept.append(gevent.getcurrent())
        if waits:
            gevent.sleep(0.01)
        return who()

    def link() -> int:
        gevent.getcurrent().link(ended.append)
        if waits:
            gevent.sleep(0.01)
        return who()

    crew = Crew()
    run(crew, keep)
    assert kept[0].dead
    kept[0].kill()
    run(crew, link)
    gevent.sleep(0)
    assert [each.dead for each in ended] == [True]
    assert run(crew, who)


@pytest.mark.filterwarnings("ignore")
def test_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """One whose job failed ends, and says why; the next job finds another."""

    def fail() -> None:
        raise ValueError("a bug of ours")

    crew = Crew()
    assert run(crew, fail, who)[1]
    assert "a bug of ours" in capsys.readouterr().err


def test_kill() -> None:
    """Those that are busy end, by the exception that gevent ends greenlets with."""
    ends = []

    def wait() -> None:
        try:
            gevent.sleep(60)
        except gevent.GreenletExit:
            ends.append(who())
            raise

    crew = Crew()
    run(crew, who)
    for _ in range(2):
        gevent.get_hub().loop.run_callback(crew.run, Job(wait))
    gevent.sleep(0)
    crew.kill(5)
    assert len(ends) == 2
    assert not crew._waiting
    assert run(crew, who)


def test_one_that_is_killed_while_it_has_nothing_to_do() -> None:
    """It is not counted on any more."""
    crew = Crew()
    run(crew, who)
    idle = crew._idle
    assert idle is not None
    idle.kill()
    assert not crew._idle
    assert run(crew, who)
