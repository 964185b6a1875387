"""Broadcasts while processes die, stop, come and go: who lives hears everything once and in order."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTTIN, SIGTTOU

import pytest

from crowd import Crowd, Guest
from harness import Server, alive, descriptors, rss, wait_until
from members import Member
from midway import clients_of
from pending import Gate, stopped, take_turn
from sticky_session.busframe import MAX_MESSAGE_BYTES


def on_each(workers: int, count: int, start: int = 0) -> list[list[str]]:
    """``count`` addresses for each slot."""
    return [clients_of(slot, count, workers=workers, start=start) for slot in range(workers)]


def invite(crowd: Crowd, workers: int, count: int, start: int = 0) -> list[list[Guest]]:
    """``count`` clients of each slot, of which the first speaks."""
    guests = [crowd.join(addresses) for addresses in on_each(workers, count, start)]
    for group in guests:
        crowd.let_speak(group[0])
    return guests


def wait_until_gone(crowd: Crowd, guests: list[Guest]) -> None:
    """Wait until their connections have ended."""
    crowd.wait_until(lambda: not any(guest.open for guest in guests), "their connections have ended")


def living(*groups: list[Guest]) -> list[Guest]:
    return [guest for group in groups for guest in group]


def assert_heard_all(crowd: Crowd, listeners: list[Guest], speakers: list[Guest]) -> None:
    """These clients, which have lived from the beginning, have heard all that those have said."""
    for name, speaker in crowd.speakers.items():
        if speaker in speakers:
            for guest in listeners:
                assert guest.open
                assert (guest.first[name], guest.heard[name]) == (0, crowd.said[name] - 1)


def test_killed_worker_under_load() -> None:
    """Clients of the other workers hear everything once and in order; those who come back hear everybody again."""
    with Server("cluster:app", workers=3) as server, Crowd(server.port) as crowd:
        groups = invite(crowd, 3, 4)
        crowd.wait_for_more(20)
        before = [descriptors(server.worker_pids[slot]) for slot in (1, 2)]
        for _ in range(3):
            mark = server.mark()
            os.kill(server.worker_pids[0], SIGKILL)
            wait_until_gone(crowd, groups[0])
            crowd.wait_for_more(20)
            server.wait_for_worker(0, after=mark)
            groups[0] = crowd.join(guest.address for guest in groups[0])
            crowd.let_speak(groups[0][0])
            crowd.wait_for_more(20)
        crowd.settle()
        assert crowd.faults() == []
        others = living(*groups[1:])
        assert_heard_all(crowd, others, [groups[1][0], groups[2][0]])
        assert [descriptors(server.worker_pids[slot]) for slot in (1, 2)] == before
        assert "Traceback" not in server.log


def test_stopped_worker() -> None:
    """While one worker is stopped the others go on at once; when it continues, its clients hear all they missed."""
    with Server("cluster:app", workers=3) as server, Crowd(server.port) as crowd:
        groups = invite(crowd, 3, 3)
        crowd.wait_for_more(20)
        for guest in groups[0]:
            guest.waited_for = False
        with stopped(server.worker_pids[0]):
            crowd.wait_for_more(1000)
        crowd.wait_for_more(20)
        crowd.settle()
        assert crowd.faults() == []
        assert_heard_all(crowd, living(*groups), [group[0] for group in groups])
        assert not server.find("were dropped")


@pytest.mark.parametrize(("count", "size"), [(60_000, 2_000), (300, 1_000_000)])
def test_flood_at_a_stopped_worker(count: int, size: int) -> None:
    """Memory is bounded while a worker takes nothing; it is said that messages are dropped, and the newest arrive."""
    with Server("cluster:app", workers=2, args=("--timeout", "100")) as server, Crowd(server.port) as crowd:
        near, far = clients_of(0, 1, workers=2) + clients_of(1, 1, workers=2)
        (slow,) = crowd.join([far])
        with Member(server.port, near, "websocket") as speaker:
            sender, receiver = server.worker_pids[0], server.worker_pids[1]
            before = rss(sender)
            with stopped(receiver):
                assert speaker.call("flood", "s", count, size) == sender
                server.wait_for(rf"messages to the worker of slot 1 \(pid:{receiver}\) were dropped")
                assert rss(sender) < before + 2 * MAX_MESSAGE_BYTES
            crowd.wait_until(lambda: slow.heard.get("s") == count - 1, "the last message")
        # It has heard the first, which were in the channel already, and after one gap the last.
        assert slow.first["s"] == 0
        assert len(crowd.faults()) == 1


def test_more_and_fewer_workers_under_load() -> None:
    """TTIN: the older workers' clients and the new one's hear each other. TTOU: the others go on."""
    with Server("cluster:app", workers=2) as server, Crowd(server.port) as crowd:
        groups = invite(crowd, 2, 3)
        crowd.wait_for_more(20)
        before = [descriptors(pid) for pid in (server.arbiter_pid, *server.worker_pids.values())]
        for turn in range(2):
            mark = server.mark()
            server.signal(SIGTTIN)
            server.wait_for_worker(2, after=mark)
            server.wait_for_listener(after=mark)
            added = crowd.join(clients_of(2, 3, workers=3))
            crowd.let_speak(added[0])
            crowd.wait_for_more(50)
            mark = server.mark()
            server.signal(SIGTTOU)
            wait_until_gone(crowd, added)
            gone = int(server.wait_for(r"Worker exiting \(pid: (\d+)\)", after=mark)[1])
            wait_until(lambda gone=gone: not alive(gone), what="the worker has ended")  # type: ignore[misc]
            # The arbiter has closed what it had for it.
            take_turn(server, server.pid)
            crowd.wait_for_more(20)
            if turn == 0:
                grown = [descriptors(pid) for pid in (server.arbiter_pid, *list(server.worker_pids.values())[:2])]
        crowd.settle()
        assert crowd.faults() == []
        assert_heard_all(crowd, living(*groups), [group[0] for group in groups])
        after = [descriptors(pid) for pid in (server.arbiter_pid, *list(server.worker_pids.values())[:2])]
        assert after == grown, "the second time costs nothing"
        assert [more - less for more, less in zip(after[1:], before[1:], strict=True)] == [1, 1], "one end each"


def test_several_more_workers_while_one_is_stopped() -> None:
    """A worker that was stopped while others came hears of them and reaches them when it continues."""
    with Server("cluster:app", workers=2) as server, Crowd(server.port) as crowd:
        groups = invite(crowd, 2, 2)
        crowd.wait_for_more(20)
        for guest in groups[0]:
            guest.waited_for = False
        with stopped(server.worker_pids[0]):
            crowd.wait_for_more(700)
            for slot in (2, 3):
                mark = server.mark()
                server.signal(SIGTTIN)
                server.wait_for_worker(slot, after=mark)
                server.wait_for_listener(after=mark)
            newer = [crowd.join(clients_of(slot, 2, workers=4)) for slot in (2, 3)]
            for group in newer:
                crowd.let_speak(group[0])
            crowd.wait_for_more(50)
        for guest in groups[0]:
            guest.waited_for = True
        crowd.wait_for_more(50)
        crowd.settle()
        assert crowd.faults() == []
        assert_heard_all(crowd, living(*groups), [group[0] for group in groups])
        # Also from the beginning: what was said before the older worker had their ends has waited in it.
        assert_heard_all(crowd, living(*newer), [group[0] for group in newer])


def test_slot_that_comes_while_a_worker_boots(tmp_path: Path) -> None:
    """A worker that was started before a slot was added, and is ready after it, reaches it like all others."""
    gate = Gate(tmp_path)
    with Server("gated_cluster:app", workers=2, env=gate.env) as server, Crowd(server.port) as crowd:
        gate.hold_next()
        mark = server.mark()
        os.kill(server.worker_pids[0], SIGKILL)
        gate.held()
        server.signal(SIGTTIN)
        server.wait_for_worker(2, after=mark)
        take_turn(server, server.pid)
        gate.release()
        server.wait_for_worker(0, after=mark)
        server.wait_for_listener(after=mark)
        groups = invite(crowd, 3, 2)
        crowd.wait_for_more(50)
        crowd.settle()
        assert crowd.faults() == []
        assert_heard_all(crowd, living(*groups), [group[0] for group in groups])


def test_reload_under_load() -> None:
    """HUP: until its worker ends every client hears everything; the new generation's clients hear each other."""
    with Server("cluster:app", workers=2) as server, Crowd(server.port) as crowd:
        groups = invite(crowd, 2, 3)
        crowd.wait_for_more(50)
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for_listener(after=mark)
        wait_until_gone(crowd, living(*groups))
        groups = invite(crowd, 2, 3)
        crowd.wait_for_more(50)
        crowd.settle()
        assert crowd.faults() == []
        assert_heard_all(crowd, living(*groups), [group[0] for group in groups])


def test_soak() -> None:
    """Fifty clients on four workers, one of which is killed again and again: nothing lost, doubled or out of order."""
    with Server("cluster:app", workers=4) as server, Crowd(server.port) as crowd:
        groups = invite(crowd, 4, 12)
        for turn in range(8):
            victim = turn % 3 + 1
            crowd.wait_for_more(30)
            mark = server.mark()
            os.kill(server.worker_pids[victim], SIGKILL)
            crowd.wait_until(
                lambda victim=victim: not any(guest.open for guest in groups[victim]), "its clients are gone"
            )  # type: ignore[misc]
            server.wait_for_worker(victim, after=mark)
            groups[victim] = crowd.join(guest.address for guest in groups[victim])
            crowd.let_speak(groups[victim][0])
        crowd.settle()
        assert crowd.faults() == []
        assert_heard_all(crowd, groups[0], [groups[0][0]])
        assert "Traceback" not in server.log
