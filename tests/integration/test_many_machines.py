"""Two machines with python-socketio's RedisManager, nginx before them: what either does reaches the clients of both."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest
import socketio

from harness import HOST, Process, Script, Server, addresses, get, wait_until
from members import WAIT_SECONDS, Member, fenced, hear_each_other, members
from midway import clients_of
from pending import stopped
from proxies import Nginx, told
from redis_server import Redis

WORKERS = 2
TRANSPORTS = ["polling", "websocket"]
EACH = 2  # clients of each worker by each transport


class Site(NamedTuple):
    """All there is.

    :ivar groups: the clients of each worker, half of them by polling: two workers of one machine, two of the other
    :ivar spare: an address for each worker that nobody has
    """

    redis: Redis
    machines: list[Server]
    front: Nginx
    groups: list[list[Member]]
    spare: list[str]

    @property
    def everybody(self) -> list[Member]:
        return [member for group in self.groups for member in group]

    @property
    def speakers(self) -> list[Member]:
        """One client of each worker."""
        return [group[0] for group in self.groups]

    @property
    def workers(self) -> list[int]:
        """The worker of each client."""
        return [pid for pid in pids(self.machines) for _ in range(EACH * len(TRANSPORTS))]


def pids(machines: Iterable[Server]) -> list[int]:
    """The workers, by machine and slot."""
    return [machine.worker_pids[slot] for machine in machines for slot in range(WORKERS)]


def places(front: Nginx, workers: list[int], count: int) -> list[list[str]]:
    """``count`` addresses for each worker: nginx chooses the machine by them, and the machine the worker."""
    found: dict[int, list[str]] = {pid: [] for pid in workers}
    for address in addresses(1000):
        found[int(get(front.port, "/", address).body)].append(address)
        if all(len(places) >= count for places in found.values()):
            break
    return [found[pid][:count] for pid in workers]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """The Redis of all."""
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def running(redis: Redis) -> Iterator[Site]:
    """Two machines as nginx's configuration says that they are started, and clients that stay for all tests."""
    with contextlib.ExitStack() as stack:
        machines = [
            stack.enter_context(
                Server("cluster:app", workers=WORKERS, door="serve", args=told(Nginx), env={"MANAGER": redis.url})
            )
            for _ in range(2)
        ]
        front = stack.enter_context(Nginx(*(f"--server={HOST}:{machine.port}" for machine in machines)))
        groups, spare = [], []
        for *chosen, left in places(front, pids(machines), EACH * len(TRANSPORTS) + 1):
            ways = itertools.cycle(TRANSPORTS)
            groups.append([stack.enter_context(Member(front.port, address, next(ways))) for address in chosen])
            spare.append(left)
        yield Site(redis, machines, front, groups, spare)


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """All are linked, and nobody is disconnected or moved by the test."""
    for speaker in running.speakers:
        hear_each_other(speaker, running.everybody)
    assert served_by(running.everybody) == running.workers
    before = [member.sid() for member in running.everybody]
    yield running
    assert served_by(running.everybody) == running.workers
    assert [member.sid() for member in running.everybody] == before
    assert all(member.events.empty() for member in running.everybody)


def served_by(crowd: Iterable[Member]) -> list[int]:
    return [member.who()["pid"] for member in crowd]


def assert_heard_once(site: Site) -> None:
    """What each worker emits reaches every client of all workers, once."""
    for speaker in site.speakers:
        speaker.do("emit", "news", speaker.address)
        assert fenced(speaker, site.everybody) == [[("news", (speaker.address,))]] * len(site.everybody)


def test_emit(site: Site) -> None:
    """What any worker of either machine emits reaches all clients of both, once."""
    assert {member.who()["manager"] for member in site.everybody} == {"RedisManager"}
    assert_heard_once(site)


def test_emit_from_a_request(site: Site) -> None:
    """A route of the app, asked by way of nginx, emits to the clients of both machines."""
    for speaker, pid in zip(site.speakers, pids(site.machines), strict=True):
        assert get(site.front.port, "/emit?visit", speaker.address).body == str(pid).encode()
        assert [member.next() for member in site.everybody] == [("visit", (pid,))] * len(site.everybody)


def test_rooms(site: Site) -> None:
    """Clients enter and leave rooms by any machine, and what is emitted to a room reaches only those in it."""
    near, *_, far = site.speakers
    inside = [group[-1] for group in site.groups]
    for member in inside:
        near.do("enter_room", member.sid(), "room")
    fenced(near, site.everybody)
    far.do("emit", "in", to="room")
    heard = fenced(far, site.everybody)
    assert heard == [[("in", ())] if member in inside else [] for member in site.everybody]
    far.do("leave_room", inside[0].sid(), "room")
    fenced(far, site.everybody)
    near.do("emit", "left", to="room")
    heard = fenced(near, site.everybody)
    assert heard == [[("left", ())] if member in inside[1:] else [] for member in site.everybody]
    near.do("close_room", "room")
    fenced(near, site.everybody)
    far.do("emit", "closed", to="room")
    assert fenced(far, site.everybody) == [[] for _ in site.everybody]


def test_callbacks(site: Site) -> None:
    """Callbacks and call() are given what a client of either machine answers."""
    near = site.speakers[0]
    for group in site.groups:
        for member in group:
            assert near.call("ask", "question", ["a", 1], member.sid()) == ["ack", ["a", 1]]
            assert near.do("call", "question", [1, 2], to=member.sid(), spread=True) == ["ack", 1, 2]
            assert [member.next(), member.next()] == [("question", (["a", 1],)), ("question", (1, 2))]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_disconnect(site: Site, transport: str) -> None:
    """A client of any worker of either machine can be disconnected; its handler runs once, in its own worker."""
    for group, address in zip(site.groups, site.spare, strict=True):
        with Member(site.front.port, address, transport) as victim:
            sid = victim.sid()
            site.speakers[0].do("disconnect", sid)
            assert victim.next()[0] == "disconnect"
            wait_until(lambda sid=sid, group=group: group[0].who()["gone"].count(sid) == 1, what="the handler has run")


# --- without Redis


class Talk:
    """All clients ask and are answered, again and again until the block ends."""

    def __init__(self, crowd: list[Member]) -> None:
        self._changed = threading.Condition()
        self._answers = dict.fromkeys(crowd, 0)
        self._error: Exception | None = None
        self._end = False
        self._threads = [threading.Thread(target=self._run, args=(member,)) for member in crowd]

    def _run(self, member: Member) -> None:
        try:
            while not self._end:
                member.who()
                with self._changed:
                    self._answers[member] += 1
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def go_on(self) -> None:
        """Wait until every client has asked once more, and been answered."""

        def answered() -> bool:
            return all(count > before[member] + 1 for member, count in self._answers.items())

        with self._changed:
            before = dict(self._answers)
            in_time = self._changed.wait_for(lambda: self._error or answered(), WAIT_SECONDS)
            assert self._error is None
            assert in_time, "not all are answered"

    def __enter__(self) -> Talk:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end = True
        for thread in self._threads:
            thread.join()


def test_killed_redis(site: Site) -> None:
    """Redis is killed: each worker goes on for its own clients. When it is back, so is the link; nobody reconnects."""
    near, *_, far = site.speakers
    near.do("enter_room", far.sid(), "room")
    fenced(near, site.everybody)
    with Talk(site.everybody) as talk:
        marks = [machine.mark() for machine in site.machines]
        site.redis.kill()
        talk.go_on()
        for group, speaker in zip(site.groups, site.speakers, strict=True):
            # It answers, without an error: the log alone says that nobody else has it.
            speaker.do("emit", "alone", speaker.address)
            assert [member.next() for member in group] == [("alone", (speaker.address,))] * len(group)
            assert speaker.do("call", "question", 1, to=group[1].sid()) == ["ack", 1]
            assert group[1].next() == ("question", (1,))
        for machine, mark in zip(site.machines, marks, strict=True):
            # An emit and a call of each worker.
            machine.wait_for(r"Cannot publish to redis\.\.\. giving up", count=2 * WORKERS, after=mark)
            machine.wait_for(r"Cannot receive from redis\.\.\. retrying in 1 secs", count=WORKERS, after=mark)
        talk.go_on()
        site.redis.start()
        for speaker in site.speakers:
            heard = hear_each_other(speaker, site.everybody)
            assert {event for events in heard for event, _ in events} == {"probe"}, "what was emitted then is lost"
        talk.go_on()
    assert_heard_once(site)
    near.do("emit", "in", to="room")
    assert fenced(near, site.everybody) == [[("in", ())] if member is far else [] for member in site.everybody]
    assert near.do("call", "question", 1, to=far.sid()) == ["ack", 1]
    assert far.next() == ("question", (1,))


def test_redis_that_hangs(site: Site) -> None:
    """While Redis takes connections and says nothing, what emits waits, when its own worker's clients have it."""
    with Talk(site.everybody) as talk, ThreadPoolExecutor(len(site.groups)) as pool:
        with stopped(site.redis.pid):
            emitting = [pool.submit(speaker.do, "emit", "late", speaker.address) for speaker in site.speakers]
            for group, speaker in zip(site.groups, site.speakers, strict=True):
                assert [member.next() for member in group] == [("late", (speaker.address,))] * len(group)
            talk.go_on()
            assert not any(future.done() for future in emitting)
            assert all(member.events.empty() for member in site.everybody)
        for future in emitting:
            future.result()
    for group in site.groups:
        others = sorted(("late", (speaker.address,)) for speaker in site.speakers if speaker is not group[0])
        for member in group:
            assert sorted(member.next() for _ in others) == others


# --- before the fork

POST_FORK = """
import uuid

def post_fork(server, worker):
    import cluster

    cluster.sio.manager.host_id = uuid.uuid4().hex
"""

LISTEN = """
import uuid
from gevent import monkey; monkey.patch_all()
import sticky_session
import cluster
if sticky_session.listen(cluster.app, ("127.0.0.1", 0), workers=2, control_socket_disable=True):
    {in_worker}
"""


def preloaded(redis: Redis, folder: Path, own: bool) -> Process:
    args = ["--preload"]
    if own:
        (folder / "conf.py").write_text(POST_FORK)
        args += ["--config", str(folder / "conf.py")]
    return Server("cluster:app", workers=WORKERS, args=args, env={"MANAGER": redis.url})


def listening(redis: Redis, _folder: Path, own: bool) -> Process:
    in_worker = "cluster.sio.manager.host_id = uuid.uuid4().hex" if own else "pass"
    return Script(LISTEN.format(in_worker=in_worker), workers=WORKERS, env={"MANAGER": redis.url})


@pytest.mark.parametrize("door", [preloaded, listening])
@pytest.mark.parametrize("own", [False, True], ids=["one host_id", "a host_id each"])
def test_manager_that_is_made_before_the_fork(
    redis: Redis, tmp_path: Path, door: Callable[[Redis, Path, bool], Process], own: bool
) -> None:
    """Workers with one ``host_id`` hear other machines, but not each other; they do if each is given its own."""
    outside: Any = socketio.RedisManager(redis.url, write_only=True)
    with door(redis, tmp_path, own) as server:
        crowd = [clients_of(slot, 1, workers=WORKERS)[0] for slot in range(WORKERS)]
        with members(server.port, crowd, "websocket") as (near, far):

            def all_heard() -> bool:
                outside.emit("probe", None)
                return not (near.events.empty() or far.events.empty())

            wait_until(all_heard, WAIT_SECONDS, "both hear another machine")
            near.do("emit", "news")
            outside.emit("fence", None)
            heard = [[event for event, _ in member.until("fence") if event != "probe"] for member in (near, far)]
            assert heard == [["news"], ["news"] if own else []]
    outside.redis.close()
