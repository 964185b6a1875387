"""Two arbiters agree over who accepts: never both, and nobody for no longer than it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sticky_session.upgrade import VARIABLE, Upgrade


class Arbiter:
    """What an arbiter does with its view of the other one.

    :ivar accepts: whether its listener accepts
    """

    def __init__(self, upgrade: Upgrade, accepts: bool) -> None:
        self.upgrade = upgrade
        self.accepts = accepts

    def turn(self, *, ready: bool = True, slow: bool = False) -> bool:
        """One turn of its loop; a slow listener goes on accepting for a while after it has been told to stop."""
        may = self.upgrade.may_accept(ready, self.accepts)
        self.accepts = may or (self.accepts and slow)
        return self.accepts


class Pair:
    """The old arbiter, and a new one that has just been started; between them fork and exec are left out."""

    def __init__(self) -> None:
        self.watched: list[int] = []
        self.old = Arbiter(Upgrade(None, self.watched.append), accepts=True)
        self.new = self.start()

    def start(self) -> Arbiter:
        """What SIGUSR2 does: a new arbiter that inherits its end."""
        environ: dict[str, str] = {}
        with self.old.upgrade.offer(environ):
            environ[VARIABLE] = str(os.dup(int(environ[VARIABLE])))
            inherited = dict(environ)
        assert environ == {}
        upgrade = Upgrade.from_environment(inherited, self.watched.append)
        assert inherited == {}, "the new arbiter's own children must not see it"
        return Arbiter(upgrade, accepts=False)

    def turns(self, count: int, *, ready: bool = True) -> list[str]:
        """Who accepts after each of so many turns of both."""
        history = []
        for _ in range(count):
            self.old.turn()
            self.new.turn(ready=ready)
            history.append(self.who)
        return history

    @property
    def who(self) -> str:
        names = {(True, True): "both", (True, False): "old", (False, True): "new", (False, False): "nobody"}
        return names[self.old.accepts, self.new.accepts]

    def close(self) -> None:
        self.old.upgrade.close()
        self.new.upgrade.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """An old arbiter and a new one."""
    pair = Pair()
    yield pair
    pair.close()


def test_alone() -> None:
    """An arbiter that was started by nobody accepts at once."""
    watched: list[int] = []
    upgrade = Upgrade.from_environment({"PATH": "/bin"}, watched.append)
    assert upgrade.may_accept(False, False)
    assert watched == []


def test_handover(pair: Pair) -> None:
    """The old one accepts until the new one is ready; the new one begins when the old one has stopped; so it stays."""
    assert pair.turns(3, ready=False) == ["old"] * 3
    history = pair.turns(6)
    assert history == sorted(history, key=["old", "nobody", "new"].index)
    assert history[0] == "old"
    assert history[-3:] == ["new"] * 3


def test_never_both(pair: Pair) -> None:
    """However slow the old one's listener is to stop, the new one does not begin before it has."""
    pair.new.turn()
    for _ in range(5):
        assert pair.old.turn(slow=True)
        assert not pair.new.turn()
    pair.old.turn()
    pair.old.turn()
    assert pair.new.turn()
    assert pair.who == "new"


def test_new_one_fails(pair: Pair) -> None:
    """If the new one ends before it is ready, the old one has never stopped."""
    assert pair.turns(2, ready=False) == ["old"] * 2
    pair.new.upgrade.close()
    assert all(pair.old.turn() for _ in range(3))


@pytest.mark.parametrize("turns", [1, 2, 3, 5])
def test_new_one_ends(pair: Pair, turns: int) -> None:
    """If the new one ends, at whatever moment after it was ready, the old one accepts again."""
    pair.turns(turns)
    pair.new.upgrade.close()
    pair.old.turn()
    assert pair.old.turn()
    assert pair.old.turn()


def test_old_one_ends(pair: Pair) -> None:
    """If the old one ends, the new one accepts, ready or not: there is nobody else."""
    assert not pair.new.turn(ready=False)
    pair.old.upgrade.close()
    assert pair.new.turn(ready=False)


def test_old_one_ends_later(pair: Pair) -> None:
    """The end of an old one that has handed over changes nothing."""
    assert pair.turns(5)[-1] == "new"
    pair.old.upgrade.close()
    assert pair.new.turn()


def test_second_try(pair: Pair) -> None:
    """After a new one that took over and ended, another can be started and takes over too."""
    assert pair.turns(5)[-1] == "new"
    pair.new.upgrade.close()
    pair.old.turn()
    assert pair.old.turn()
    pair.new = pair.start()
    history = pair.turns(6)
    assert "both" not in history
    assert history[-1] == "new"


def test_both_are_woken(pair: Pair) -> None:
    """Each end is watched, so that neither arbiter has to ask in vain."""
    assert len(pair.watched) == 2


@pytest.mark.usefixtures("_no_collection")
def test_no_leak() -> None:
    """All descriptors are given back, and no other program inherits the new one's end from it."""
    before = set(os.listdir("/proc/self/fd"))
    pair = Pair()
    assert not os.get_inheritable(pair.watched[-1])
    pair.close()
    assert set(os.listdir("/proc/self/fd")) == before
