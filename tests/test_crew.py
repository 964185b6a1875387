"""The crew: greenlets are used again, and nobody can tell."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import gevent
import gevent.local
import pytest
from gevent.event import Event

from sticky_session.crew import MAX_IDLE, Crew

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
    """One that has waited serves again; meanwhile others serve."""

    def wait() -> int:
        gevent.sleep(0.01)
        return who()

    crew = Crew()
    waited = run(crew, wait, wait, who)
    assert len(set(waited)) == 3
    assert set(run(crew, who, who)) <= set(waited)


def test_what_is_left_in_context_variables() -> None:
    """Each job begins with empty ones."""

    def look() -> tuple[int, str]:
        found = variable.get()
        variable.set("left")
        return who(), found

    (first, _), (second, found) = run(Crew(), look, look)
    assert first == second
    assert found == "nothing"


def test_what_is_left_in_locals() -> None:
    """A thread's locals, which gevent keeps by greenlet, are empty, too."""
    local = gevent.local.local()

    def look() -> Any:
        found = getattr(local, "value", "nothing")
        local.value = "left"
        return found

    assert run(Crew(), look, look, look) == ["nothing"] * 3


def test_one_that_somebody_knows() -> None:
    """Whoever has kept a greenlet to end it later, or waits for its end, ends no other job."""
    kept = []
    ended = []

    def keep() -> int:
        kept.append(gevent.getcurrent())
        return who()

    def link() -> int:
        gevent.getcurrent().link(ended.append)
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


def test_few_wait_for_something_to_do() -> None:
    """After a rush most of them end."""

    def wait() -> Any:
        gevent.sleep(0.01)
        return gevent.getcurrent().__class__

    crew = Crew()
    run(crew, *[wait] * (3 * MAX_IDLE))
    assert len(crew._idle) == MAX_IDLE
    assert not crew._busy


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
    assert not crew._busy
    assert run(crew, who)


def test_one_that_is_killed_while_it_has_nothing_to_do() -> None:
    """It is not counted on any more."""
    crew = Crew()
    run(crew, who)
    (idle,) = crew._idle
    idle.kill()
    assert not crew._idle
    assert run(crew, who)
