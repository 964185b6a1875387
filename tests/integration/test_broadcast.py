"""Socket.IO across workers: whatever a server does to clients, it does to those of every worker."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import Process, Server, get, wait_until
from members import Member, fenced, members
from midway import clients_of

WORKERS = 2
TRANSPORTS = ["polling", "websocket"]
NAMESPACES = ["/", "/other"]


# --- the same cases, over our bus and over Redis


class Redis(Process):
    """Debian's redis-server at a free port, its files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._number = free.getsockname()[1]
        options = {"port": self._number, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no"}
        program = shutil.which("redis-server")
        assert program, "redis-server is missing: apt-get install redis-server, without starting its service"
        super().__init__([program, *(str(part) for item in options.items() for part in ("--" + item[0], item[1]))])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._number}/0"

    def _wait_ready(self) -> None:
        self.wait_for("Ready to accept connections")


class Cluster(NamedTuple):
    """A server and its kind of client manager."""

    server: Server
    manager: str


@pytest.fixture(scope="module", params=["by itself", "named", "Redis"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers whose clients reach each other in one of three ways."""
    if request.param == "Redis":
        with Redis(tmp_path_factory.mktemp("redis")) as redis, start(redis.url) as server:
            yield Cluster(server, "RedisManager")
    else:
        with start("ours" if request.param == "named" else "") as server:
            yield Cluster(server, "ClusterManager")


def start(manager: str = "", app: str = "cluster:app", workers: int = WORKERS, **more: Any) -> Server:
    env = {"MANAGER": manager, **more.pop("env", {})}
    return Server(app, workers=workers, env=env, **more)


@pytest.fixture(params=TRANSPORTS)
def pair(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[list[Member]]:
    """Three clients, the first two on different workers, the third beside the second."""
    first, second, third = *clients_of(0, 1, workers=WORKERS), *clients_of(1, 2, workers=WORKERS)
    with members(cluster.server.port, [first, second, third], request.param, NAMESPACES) as trio:
        # With Redis a worker hears the others only some time after its first client has come.
        for member in trio:
            hear_each_other(member, trio)
        yield trio


def hear_each_other(sender: Member, receivers: list[Member]) -> None:
    """Wait until what one emits reaches all, and forget what was emitted meanwhile."""

    def all_heard() -> bool:
        sender.do("emit", "probe")
        return all(not receiver.events.empty() for receiver in receivers)

    wait_until(all_heard, what="all hear what one emits")
    fenced(sender, receivers)


def test_managers(cluster: Cluster, pair: list[Member]) -> None:
    """The servers have the manager that the other tests are about, and the first two clients two workers."""
    who = [member.who() for member in pair]
    assert {each["manager"] for each in who} == {cluster.manager}
    assert [each["slot"] for each in who] == [0, 1, 1]


def test_emit_to_all(pair: list[Member]) -> None:
    """Everybody gets what is emitted to all, once."""
    pair[0].do("emit", "news", {"a": [1, 2.5, None, "ä"]})
    assert fenced(pair[0], pair) == [[("news", ({"a": [1, 2.5, None, "ä"]},))]] * 3


def test_emit_from_a_request(cluster: Cluster, pair: list[Member]) -> None:
    """A route of the app emits to the clients of all workers."""
    pid = int(get(cluster.server.port, "/emit?visit", pair[0].address).body)
    assert [member.next() for member in pair] == [("visit", (pid,))] * 3


@pytest.mark.parametrize(
    ("data", "options", "arguments"),
    [
        (None, {}, ()),
        ([], {}, ([],)),
        ([1, 2], {}, ([1, 2],)),
        ([1, 2], {"spread": True}, (1, 2)),
        (["only"], {"spread": True}, ("only",)),
        ([], {"spread": True}, ()),
        ("", {}, ("",)),
        (b"", {}, (b"",)),
        (bytes(range(256)), {}, (bytes(range(256)),)),
        ({"a": b"1", "b": [b"2", {"c": b"3"}]}, {}, ({"a": b"1", "b": [b"2", {"c": b"3"}]},)),
        ([b"1", 2, b"3"], {"spread": True}, (b"1", 2, b"3")),
    ],
)
def test_data(pair: list[Member], data: object, options: dict[str, Any], arguments: tuple[Any, ...]) -> None:
    """Data of all kinds reaches the other worker's clients as it reaches one's own: one argument, or several."""
    pair[0].do("emit", "data", data, **options)
    assert fenced(pair[0], pair) == [[("data", arguments)]] * 3


def test_large_data(pair: list[Member]) -> None:
    """5 MB, binary and text, arrive whole and in order with what comes after."""
    binary, text = os.urandom(5_000_000), "ä" * 1_000_000
    pair[0].do("emit", "binary", binary)
    pair[0].do("emit", "text", text)
    expected = [("binary", (binary,)), ("text", (text,))]
    assert fenced(pair[0], pair) == [expected] * 3


def test_rooms(pair: list[Member]) -> None:
    """Clients enter and leave rooms by any worker, and what is emitted to a room reaches only those in it."""
    first, second, third = pair
    first.do("enter_room", second.sid(), "room")
    third.do("enter_room", first.sid(), "room")
    # What one worker sends another keeps its order, so by now both have done it.
    fenced(first, pair)
    fenced(third, pair)
    assert second.who()["rooms"] == sorted([second.sid(), "room"])
    assert first.who()["rooms"] == sorted([first.sid(), "room"])
    third.do("emit", "in", to="room")
    assert fenced(third, pair) == [[("in", ())], [("in", ())], []]
    first.do("leave_room", second.sid(), "room")
    first.do("emit", "left", to="room")
    assert fenced(first, pair) == [[("left", ())], [], []]
    second.do("close_room", "room")
    second.do("emit", "closed", to="room")
    assert fenced(second, pair) == [[], [], []]


def test_several_rooms(pair: list[Member]) -> None:
    """Who is in several of the rooms that something is emitted to gets it once."""
    first, second, third = pair
    for room in ("a", "b"):
        first.do("enter_room", second.sid(), room)
    first.do("enter_room", third.sid(), "b")
    first.do("emit", "both", to=["a", "b"])
    assert fenced(first, pair) == [[], [("both", ())], [("both", ())]]
    for room in ("a", "b"):
        first.do("close_room", room)


def test_one_client(pair: list[Member]) -> None:
    """One client is reached by its id from any worker."""
    for sender in (pair[0], pair[1]):
        sender.do("emit", "you", 1, to=pair[1].sid())
        assert fenced(sender, pair) == [[], [("you", (1,))], []]


def test_skip_sid(pair: list[Member]) -> None:
    """Clients of any worker can be left out."""
    first, second, third = pair
    first.do("emit", "some", skip_sid=second.sid())
    assert fenced(first, pair) == [[("some", ())], [], [("some", ())]]
    first.do("emit", "fewer", skip_sid=[second.sid(), first.sid()])
    assert fenced(first, pair) == [[], [], [("fewer", ())]]
    assert third.events.empty()


def test_namespaces(pair: list[Member]) -> None:
    """What is emitted in one namespace is heard in no other; ids and rooms are each namespace's own."""
    first, second, _ = pair
    first.do("emit", "there", namespace="/other", on="/other")
    assert fenced(first, pair, "/other") == [[("there", ())]] * 3
    first.do("enter_room", second.sid("/other"), "room", namespace="/other")
    first.do("emit", "here", to="room")
    first.do("emit", "there", to="room", namespace="/other", on="/other")
    assert second.next("/other") == ("there", ())
    assert fenced(first, pair) == [[], [], []]
    first.do("close_room", "room", namespace="/other")
    fenced(first, pair, "/other")


@pytest.mark.parametrize("receiver", [0, 1], ids=["own worker", "other worker"])
def test_acknowledgement(pair: list[Member], receiver: int) -> None:
    """A callback is given what the client of any worker answers."""
    assert pair[0].call("ask", "question", ["a", 1], pair[receiver].sid()) == ["ack", ["a", 1]]
    assert pair[receiver].next() == ("question", (["a", 1],))


def test_acknowledgement_in_a_namespace(pair: list[Member]) -> None:
    """Callbacks work in all namespaces."""
    answer = pair[0].call("ask", "question", 1, pair[1].sid("/other"), namespace="/other")
    assert answer == ["ack", 1]
    assert pair[1].next("/other") == ("question", (1,))


@pytest.mark.parametrize("receiver", [0, 1], ids=["own worker", "other worker"])
def test_call(pair: list[Member], receiver: int) -> None:
    """call() returns what the client of any worker answers."""
    assert pair[0].do("call", "question", [1, 2], to=pair[receiver].sid(), spread=True) == ["ack", 1, 2]
    assert pair[receiver].next() == ("question", (1, 2))


def test_call_of_nobody(pair: list[Member]) -> None:
    """call() to a client that doesn't exist is a TimeoutError when the time is over."""
    assert pair[0].failure("call", "question", to="nobody", timeout=0.3) == "TimeoutError"


def test_callback_without_a_room(pair: list[Member]) -> None:
    """A callback for an emit to all is refused, as python-socketio's documentation has it."""
    assert pair[0].call("ask", "question", 1, None) == "ValueError"


@pytest.mark.parametrize("receiver", [0, 1], ids=["own worker", "other worker"])
def test_disconnect(pair: list[Member], receiver: int) -> None:
    """A client of any worker can be disconnected; its handler runs once, in its own worker."""
    victim, witness = pair[receiver], pair[2 if receiver else 1]
    sid = victim.sid()
    pair[0].do("disconnect", sid)
    assert victim.next()[0] == "disconnect"
    if receiver:
        wait_until(lambda: witness.who()["gone"].count(sid) == 1, what="the handler has run")


@pytest.mark.parametrize("event", ["ask", "call"])
def test_binary_answer(cluster: Cluster, pair: list[Member], event: str) -> None:
    """A client of another worker answers with bytes; RedisManager loses such an answer."""
    if cluster.manager == "RedisManager":
        assert pair[0].failure("call", "question", b"\0\xff", to=pair[1].sid(), timeout=1) == "TimeoutError"
    elif event == "ask":
        assert pair[0].call("ask", "question", {"a": b"\0\xff"}, pair[1].sid()) == ["ack", {"a": b"\0\xff"}]
    else:
        assert pair[0].do("call", "question", b"\0\xff", to=pair[1].sid()) == ["ack", b"\0\xff"]


def test_what_json_has_not(cluster: Cluster, pair: list[Member]) -> None:
    """A room's name that can't be sent is an error of the caller's; RedisManager only logs it."""
    if cluster.manager == "RedisManager":
        assert pair[0].call("emit_to_uuid") == "done"
    else:
        assert pair[0].call("emit_to_uuid") == "ClusterError"


def test_too_large(cluster: Cluster, pair: list[Member]) -> None:
    """More than 64 MB is an error of the caller's that says so."""
    if cluster.manager == "ClusterManager":
        assert pair[0].call("emit_much") == "ClusterError"


def test_no_traceback(cluster: Cluster) -> None:
    """Nothing in all these tests has made a server's log show a traceback."""
    if cluster.manager == "ClusterManager":
        assert "Traceback" not in cluster.server.log
