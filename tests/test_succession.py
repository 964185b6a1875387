"""How one generation follows another."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sticky_session.config import Options
from sticky_session.generation import Generation
from sticky_session.succession import Succession


class Listeners:
    """The arbiter's listeners; only what they are told is kept."""

    def __init__(self) -> None:
        self.told: list[signal.Signals] = []

    def stop(self, number: signal.Signals) -> None:
        self.told.append(number)


@pytest.fixture
def generations() -> Iterator[list[Generation]]:
    """Two generations, of two and three slots."""
    with ExitStack() as stack:
        made = [Generation(None, Options.from_environment({}), slots, []) for slots in (2, 3)]
        for generation in made:
            stack.callback(generation.close)
        yield made


def test_change_over(generations: list[Generation]) -> None:
    """When all slots are filled the next generation is the current one, with a ring before its listener has come."""
    former, upcoming = generations
    listeners: Any = Listeners()
    succession = Succession(former, {}, listeners, None)
    succession.begin(upcoming)
    for slot in range(3):
        succession.change_over()
        assert succession.current is former
        upcoming.table.fill(slot, 100 + slot)
    succession.change_over()
    assert (succession.current, succession.next, succession.old) == (upcoming, None, [former])
    assert upcoming.table.routing[0] == 3
    assert listeners.told == [signal.SIGTERM]
