"""ClusterManager outside a worker, and how an app's servers come to have it."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterator
from typing import Any

import flask
import flask_socketio
import pytest
import socketio

from sticky_session import ClusterManager, adoption, cluster
from sticky_session.emission import Emission

# What is left alone.
OTHERS = {"pubsub": socketio.PubSubManager, "redis": socketio.RedisManager}


class Bus:
    """What a manager uses of the bus."""

    def __init__(self) -> None:
        self.channels: list[str] = []
        self.sent: list[tuple[str, bytes]] = []

    def listen(self, channel: str) -> Any:
        self.channels.append(channel)
        return iter([])

    def publish(self, channel: str, payload: bytes, sender: object) -> None:
        assert sender is None or hasattr(sender, "__next__")
        self.sent.append((channel, payload))


class Server(socketio.Server):  # type: ignore[misc]
    """A server that sends nothing: who got what is kept."""

    def __init__(self, manager: Any = None, **options: Any) -> None:
        self.out: list[tuple[str, Any]] = []
        super().__init__(client_manager=manager, async_mode="threading", **options)

    def start_background_task(self, *_: object) -> None:
        pass

    def _send_eio_packet(self, eio_sid: str, eio_pkt: Any) -> None:
        self.out.append((eio_sid, eio_pkt.data))

    def _send_packet(self, eio_sid: str, pkt: Any) -> None:
        self.out.append((eio_sid, pkt.encode()))

    def connect(self, *eio_sids: str) -> list[str]:
        """Let clients in, and return their ids."""
        for eio_sid in eio_sids:
            self._handle_eio_connect(eio_sid, {})
        return [self.manager.connect(eio_sid, "/") for eio_sid in eio_sids]


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    """No server of another test is found among all objects, or joins."""
    gc.collect()
    yield
    cluster.managers.clear()


def both() -> list[Server]:
    """A server with python-socketio's manager for a single process, and one with ours."""
    return [Server(), Server(ClusterManager())]


def scenario(server: Server) -> list[Any]:
    """A bit of everything, and all that came of it."""
    told: list[Any] = []

    def attempt(method: Any, *args: Any, **options: Any) -> None:
        try:
            told.append(method(*args, **options))
        except Exception as error:
            told.append((type(error), str(error)))

    a, b = server.connect("A", "B")
    names = {a: "a", b: "b"}
    attempt(server.emit, "all", (1, 2))
    attempt(server.emit, "one", b"1", to=a)
    attempt(server.emit, "but", [1], skip_sid=b)
    attempt(server.enter_room, a, "room")
    attempt(server.emit, "room", {"a": b"1"}, to="room")
    attempt(server.leave_room, a, "room")
    attempt(server.emit, "room", to="room")
    attempt(server.enter_room, b, "room")
    attempt(server.close_room, "room")
    attempt(server.emit, "room", to="room")
    attempt(server.emit, "any name of a room", to=("x", object()))
    attempt(server.emit, "not json for the bus", 1, to=frozenset())
    attempt(server.emit, "ask", 1, to=a, callback=lambda *args: told.append(args))
    attempt(server._handle_ack, "A", "/", 1, ["answer", b"1"])
    attempt(server.emit, "ask all", 1, callback=lambda *args: told.append(args))
    attempt(server.enter_room, "nobody", "room", namespace="/empty")
    attempt(server.enter_room, "nobody", "room")
    attempt(server.leave_room, "nobody", "room")
    attempt(server.disconnect, "nobody")
    attempt(server.manager.can_disconnect, a, "/")
    attempt(server.manager.can_disconnect, "nobody", "/")
    attempt(server.disconnect, b)
    attempt(server.emit, "rest")
    told.append(sorted(names[sid] for sid, _ in server.manager.get_participants("/", None)))
    return told


def test_single_process() -> None:
    """Outside a worker it does, returns and raises what python-socketio's own manager does."""
    plain, ours = both()
    assert scenario(plain) == scenario(ours)
    assert len(plain.out) > 10
    assert [(to, str(data)) for to, data in plain.out] == [(to, str(data)) for to, data in ours.out]


def test_write_only_outside() -> None:
    """One that belongs to no server says nothing and fails at nothing where there is nobody to hear it."""
    ClusterManager(write_only=True).emit("news", {"a": 1}, to="room")


def test_joined_later() -> None:
    """A manager that was made before the bus sends from when it joins, under an id of its own."""
    server = Server(ClusterManager())
    server.emit("early", 1)
    bus, before = Bus(), server.manager.host_id
    cluster.join(bus)  # type: ignore[arg-type]
    cluster.join(Bus())  # type: ignore[arg-type]
    server.emit("news", 1)
    assert bus.channels == ["socketio"]
    assert [channel for channel, _ in bus.sent] == ["socketio"]
    assert Emission.unpack(bus.sent[0][1]).parts == ['2["news",1]']
    # Or all workers that were forked from one process would take each other for themselves.
    assert server.manager.host_id != before


def test_nobody_listens_without_a_server() -> None:
    """A manager without a server, or that only writes, has no inbox that would fill up."""
    managers = [ClusterManager(), ClusterManager(write_only=True)]
    bus = Bus()
    cluster.join(bus)  # type: ignore[arg-type]
    assert bus.channels == []
    for manager in managers:
        manager.emit("news", 1)
    assert len(bus.sent) == 2


def test_adopted() -> None:
    """A server with the default manager gets ours: the same object, and all that is in it stays."""
    server = Server()
    manager = server.manager
    (sid,) = server.connect("A")
    server.enter_room(sid, "room")
    assert adoption.adopt_servers() == (["socketio"], 0)
    assert server.manager is manager
    assert type(manager) is ClusterManager
    assert manager.channel == "socketio"
    server.emit("news", to="room")
    assert server.out == [("A", '2["news"]')]
    assert set(server.rooms(sid)) == {sid, "room"}
    assert adoption.adopt_servers() == ([], 0)


def test_adopted_joins() -> None:
    """An adopted manager is among those that join."""
    server = Server()
    adoption.adopt_servers()
    bus = Bus()
    cluster.join(bus)  # type: ignore[arg-type]
    server.emit("news")
    assert len(bus.sent) == 1


@pytest.mark.parametrize("other", OTHERS)
def test_other_managers_are_left_alone(other: str) -> None:
    """An app's own manager stays, whatever it is derived from."""

    class Own(socketio.Manager):  # type: ignore[misc]
        pass

    servers = [Server(OTHERS[other]()), Server(Own()), Server(ClusterManager("mine"))]
    kinds = [type(server.manager) for server in servers]
    assert adoption.adopt_servers() == ([], 0)
    assert [type(server.manager) for server in servers] == kinds


def test_asyncio_is_left_alone() -> None:
    """An AsyncServer is not ours: it doesn't run under gevent."""
    server = socketio.AsyncServer()
    assert adoption.adopt_servers() == ([], 0)
    assert type(server.manager) is socketio.AsyncManager


def test_flask_socketio() -> None:
    """Flask-SocketIO's server is found, also one that is made in a factory."""
    extension = flask_socketio.SocketIO(async_mode="threading")
    assert adoption.adopt_servers() == ([], 0)
    extension.init_app(flask.Flask("test"))
    assert adoption.adopt_servers() == (["socketio"], 0)
    assert type(extension.server.manager) is ClusterManager


def test_instrumented() -> None:
    """What Server.instrument() has put around the manager's methods stays around ours."""
    server = Server()
    admin = server.instrument(auth=False, mode="development")
    adoption.adopt_servers()
    bus = Bus()
    cluster.join(bus)  # type: ignore[arg-type]
    server.emit("news", 1)
    assert any(b'["news",1]' in payload for _, payload in bus.sent)
    admin.uninstrument()
    server.emit("more", 1)
    assert any(b'["more",1]' in payload for _, payload in bus.sent)


def test_patched_manager() -> None:
    """What an app has put in the place of a method of the manager's stays there, whatever it is called."""

    def emit(self: Any, event: str, *args: Any, **kwargs: Any) -> None:
        type(self).emit(self, f"{event}!", *args, **kwargs)

    def traced(self: Any, *args: Any, **kwargs: Any) -> None:
        emit(self, *args, **kwargs)

    for patch in (emit, traced):
        server = Server()
        server.manager.emit = types.MethodType(patch, server.manager)
        assert adoption.adopt_servers() == (["socketio"], 0)
        bus = Bus()
        cluster.join(bus)  # type: ignore[arg-type]
        server.emit("news")
        assert any(b'["news!"]' in payload for _, payload in bus.sent)
        cluster.managers.clear()


def test_frozen_objects() -> None:
    """gc.freeze(), which spares a preloaded app's memory, hides no server."""
    server = Server()
    gc.freeze()
    try:
        assert adoption.adopt_servers() == (["socketio"], 0)
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
    assert type(server.manager) is ClusterManager


def test_method_of_another_manager() -> None:
    """A method of another server's manager that an app has put there stays the other's."""
    server, other = Server(), Server(OTHERS["pubsub"]())
    server.manager.emit = other.manager.emit
    assert adoption.adopt_servers() == (["socketio"], 0)
    assert server.manager.emit.__self__ is other.manager
    assert type(server.manager) is ClusterManager


def test_named_and_default() -> None:
    """A server whose manager the app has named itself, and one that gets one, don't hear each other."""
    named, other = Server(ClusterManager()), Server()
    ((channel,), _) = adoption.adopt_servers()
    assert other.manager.channel == channel != named.manager.channel == "socketio"


def test_namespaces_of_two_modules() -> None:
    """Namespaces of one name in two modules tell servers apart."""
    servers = [Server(), Server()]
    for server, module in zip(servers, "ab", strict=True):
        server.register_namespace(type("Chat", (socketio.Namespace,), {"__module__": module})("/"))
    names, left = adoption.adopt_servers()
    assert (len(set(names)), left) == (2, 0)


def test_what_json_has_not() -> None:
    """It is an error where one of the worker's clients would get it, and else none, as with one worker."""
    servers = [Server(), Server(ClusterManager())]
    bus = Bus()
    cluster.join(bus)  # type: ignore[arg-type]
    for server in servers:
        server.emit("news", ({1},))
        server.connect("A")
        with pytest.raises(TypeError):
            server.emit("news", ({1},))
        assert server.out == []
    assert bus.sent == []


@pytest.mark.parametrize("wrap", [lambda sid: {sid}, lambda sid: (sid,), str.encode], ids=["set", "tuple", "bytes"])
def test_skipping_what_is_no_id(wrap: Any) -> None:
    """What python-socketio would compare in vain skips nobody, on no worker."""
    servers = [Server(), Server(ClusterManager())]
    bus = Bus()
    cluster.join(bus)  # type: ignore[arg-type]
    for server in servers:
        (sid,) = server.connect("A")
        server.emit("news", skip_sid=wrap(sid))
        assert server.out == [("A", '2["news"]')]
    ((_, payload),) = bus.sent
    assert Emission.unpack(payload).skipped == []


def test_two_servers() -> None:
    """Two servers have two channels, which are those of the same servers in every worker."""

    def make() -> tuple[Server, Server]:
        first, second = Server(), Server()
        first.on("chat", make)
        second.on("chat", test_two_servers)
        return first, second

    def channels(*pair: Server) -> list[str]:
        """Those that they get; the order is the first's, then the second's."""
        names, left = adoption.adopt_servers()
        of_pair = [server.manager.channel for server in pair]
        assert (sorted(of_pair), left) == (names, 0)
        return of_pair

    found = channels(*make())
    assert len(set(found)) == 2
    assert "socketio" not in found
    # As in another worker, which happens to find them in another order.
    second, first = make()[::-1]
    assert channels(first, second) == found


def test_two_servers_that_are_alike() -> None:
    """Servers that nothing tells apart are left alone: they would be mixed up."""
    servers = [Server(), Server()]
    assert adoption.adopt_servers() == ([], 2)
    assert {type(server.manager) for server in servers} == {socketio.Manager}


@pytest.mark.parametrize("frozen", [False, True])
def test_server_that_is_gone(frozen: bool) -> None:
    """A server that only the garbage collector knows makes no second one."""
    gone = Server()
    gone.itself = gone
    alive = weakref.ref(gone)
    server = Server()
    gc.disable()
    try:
        del gone
        assert alive() is not None
        if frozen:
            gc.freeze()
        assert adoption.adopt_servers() == (["socketio"], 0)
    finally:
        gc.unfreeze()
        gc.enable()
    assert server.manager.channel == "socketio"


def test_proxies() -> None:
    """Objects that raise when they are asked what they are don't disturb the search."""

    class Proxy:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("asked too early")

    proxies = [Proxy(), weakref.proxy(Server())]
    server = Server()
    assert adoption.adopt_servers() == (["socketio"], 0)
    assert type(server.manager) is ClusterManager
    assert len(proxies) == 2
