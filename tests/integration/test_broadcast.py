"""Socket.IO across workers: whatever a server does to clients, it does to those of every worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from signal import SIGHUP
from typing import Any, NamedTuple

import pytest

from harness import Process, Script, Server, get, wait_until
from members import Member, fenced, hear_each_other, members
from midway import clients_of
from redis_server import Redis

WORKERS = 2
TRANSPORTS = ["polling", "websocket"]
NAMESPACES = ["/", "/other"]


# --- the same cases, over our bus and over Redis


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
    """A room's name that can't be sent is an error of the caller's; RedisManager only logs it, since 5.16."""
    if cluster.manager == "RedisManager":
        assert pair[0].call("emit_to_uuid") in ("done", "TypeError")
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


# --- whose server has it


REACHES = "Socket.IO server reaches the clients of all workers"


def assert_reach_each_other(server: Process, workers: int = WORKERS) -> None:
    """Clients of all workers hear what each emits."""
    everybody = [clients_of(slot, 1, workers=workers)[0] for slot in range(workers)]
    with members(server.port, everybody, "polling") as crowd:
        for sender in crowd:
            sender.do("emit", "news", sender.address)
            assert fenced(sender, crowd) == [[("news", (sender.address,))]] * workers


@pytest.mark.parametrize("args", [(), ("--preload",)], ids=["", "--preload"])
def test_said_once(args: tuple[str, ...]) -> None:
    """One line of the log says that the server has got it, and one more after a reload."""
    with start(workers=3, args=args) as server:
        assert_reach_each_other(server, 3)
        assert len(server.find(REACHES)) == 1
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for_listener(after=mark)
        assert_reach_each_other(server, 3)
        assert len(server.find(REACHES, after=mark)) == 1


@pytest.mark.parametrize("door", ["gunicorn", "serve", "serve --no-bus"])
def test_turned_off(door: str) -> None:
    """Without the bus every worker has python-socketio's manager, and its own clients only."""
    args = ("--no-bus",) if "--no-bus" in door else ()
    env = {} if args else {"STICKY_SESSION_BUS": "0"}
    with start(door=door.split()[0], args=args, env=env) as server:
        everybody = [clients_of(slot, 1, workers=WORKERS)[0] for slot in range(WORKERS)]
        with members(server.port, everybody, "websocket") as (first, second):
            assert first.who()["manager"] == "Manager"
            first.do("emit", "news")
            assert fenced(first, [first]) == [[("news", ())]]
            assert fenced(second, [second]) == [[]]
        assert not server.find(REACHES)


def test_app_with_a_manager_of_its_own() -> None:
    """An app's own manager stays in place."""
    with start("own") as server:
        with Member(server.port, clients_of(0, 1, workers=WORKERS)[0], "websocket") as member:
            assert member.who()["manager"] == "OwnManager"
        assert not server.find(REACHES)


LISTEN = """
from gevent import monkey; monkey.patch_all()
import sticky_session
import cluster
sticky_session.listen(cluster.app, ("127.0.0.1", 0), workers=2, control_socket_disable=True)
"""


def test_listen() -> None:
    """An app that was made before listen() forked its workers has it, too."""
    with Script(LISTEN, workers=2) as server:
        assert_reach_each_other(server)
        assert len(server.find(REACHES)) == 1


@pytest.fixture(scope="module", params=["flask_cluster:app", "flask_cluster:create_app()"])
def flask(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A Flask-SocketIO app, made at import or in a factory."""
    with Server(request.param, workers=WORKERS) as server:
        yield server


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_flask_socketio(flask: Server, transport: str) -> None:
    """Flask-SocketIO's emit() and send() reach all workers' clients."""
    everybody = [clients_of(slot, 1, workers=WORKERS)[0] for slot in range(WORKERS)]
    with members(flask.port, everybody, transport) as (first, second):
        pid = int(get(flask.port, "/emit", first.address).body)
        assert [first.next(), second.next()] == [("visit", (pid,))] * 2
        assert first.call("shout", "hi") == pid
        assert [first.next(), second.next()] == [("heard", ("hi",))] * 2
        assert second.call("enter", "room") is None
        assert first.call("whisper", "room", "psst") is None
        assert second.next() == ("heard", ("psst",))
        assert first.events.empty()


SINGLE = """
from gevent import monkey; monkey.patch_all()
import cluster
from gevent.pywsgi import WSGIServer
server = WSGIServer(("127.0.0.1", 0), cluster.app)
server.start()
print("at port", server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("manager", ["", "ours"])
def test_single_process(manager: str) -> None:
    """The same app file runs in one process without us, with ClusterManager as with the default manager."""
    with Script(SINGLE, env={"MANAGER": manager}) as script:
        port = int(script.wait_for(r"at port (\d+)")[1])
        with members(port, ["127.0.0.2", "127.0.0.3"], "polling") as (first, second):
            assert first.who()["manager"] == ("ClusterManager" if manager else "Manager")
            first.do("enter_room", second.sid(), "room")
            first.do("emit", "news", to="room")
            assert fenced(first, [first, second]) == [[], [("news", ())]]
            assert first.do("call", "question", 1, to=second.sid()) == ["ack", 1]
            first.do("disconnect", second.sid())
            assert second.until("disconnect") == [("question", (1,))]
            # A poll that came after its session's end would be answered only after a ping's time.
            script.kill()


def test_write_only_in_a_worker() -> None:
    """A manager without a server emits to the clients of all workers, its own included."""
    with start() as server:
        everybody = [clients_of(slot, 1, workers=WORKERS)[0] for slot in range(WORKERS)]
        with members(server.port, everybody, "websocket") as (first, second):
            assert first.call("aside", "news", 1) is None
            assert [first.next(), second.next()] == [("news", (1,))] * 2


def test_route_that_calls_a_client() -> None:
    """A worker that has never had a client of its own gets the answer of another's."""
    with start() as server:
        near, far = clients_of(0, 1, workers=WORKERS)[0], clients_of(1, 1, workers=WORKERS)[0]
        with Member(server.port, far, "websocket") as member:
            assert get(server.port, f"/call?{member.sid()}", near).body == b'["ack", 1]'
