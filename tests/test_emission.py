"""Emits on their way to other workers: whatever it is, clients there get what they'd get by PubSubManager."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import engineio.packet
import gevent
import pytest
import socketio
from hypothesis import assume, given
from hypothesis import strategies as st
from socketio.packet import Packet

from sticky_session import ClusterError, ClusterManager, outside
from sticky_session.emission import FORMAT, Emission

NAMES = st.sampled_from(["/", "/chat", "room", "other", "é"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Other(Packet):  # type: ignore[misc]
    """Packets of another serializer."""

    def encode(self) -> Any:
        return f"other {self.data}"


class Server(socketio.Server):  # type: ignore[misc]
    """A server of one worker, with clients that are kept what they get."""

    def __init__(self, manager: Any, **options: Any) -> None:
        self.got: list[tuple[str, Any]] = []
        super().__init__(client_manager=manager, async_mode="threading", namespaces="*", **options)
        for name in ("A", "B"):
            self._handle_eio_connect(name, {})
            manager.basic_enter_room(f"sid {name}", "/chat", None, eio_sid=name)
            manager.basic_enter_room(f"sid {name}", "/chat", f"sid {name}", eio_sid=name)
        manager.basic_enter_room("sid A", "/chat", "room")

    def start_background_task(self, *_: object) -> None:
        pass

    def _send_eio_packet(self, eio_sid: str, eio_pkt: Any) -> None:
        self.got.append((eio_sid, eio_pkt.data))


class Reference(socketio.PubSubManager):  # type: ignore[misc]
    """python-socketio's manager, over a list."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def _publish(self, data: Any) -> None:
        self.sent.append(json.dumps(data).encode())

    def _listen(self) -> Any:
        return iter(self.sent)


# More than hypothesis makes up.
LIMIT_BYTES = 100_000


class Bus:
    """What a manager uses of the bus; gives its listeners what was put in."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def listen(self, _: str) -> list[bytes]:
        return self.sent

    def publish(self, _channel: str, payload: bytes, _sender: object) -> None:
        if len(payload) > LIMIT_BYTES:
            raise ClusterError("too large")
        self.sent.append(payload)


def joined(**options: Any) -> tuple[Server, Bus]:
    """A server whose manager is on a bus."""
    bus, server = Bus(), Server(ClusterManager(), **options)
    server.manager.join(bus)
    return server, bus


def received(server: Server, payloads: Iterable[bytes]) -> list[tuple[str, Any]]:
    """What the clients of a worker get of what comes by the bus."""
    server.got.clear()
    server.manager._inbox = payloads
    server.manager.sent = payloads
    server.manager._thread()
    return server.got


@given(
    data=JSON | st.lists(JSON, max_size=3).map(tuple),
    room=st.none() | NAMES | st.lists(NAMES, min_size=1, max_size=2) | st.just("sid B"),
    skipped=st.none() | st.just("sid A") | st.lists(st.sampled_from(["sid A", "sid B"])),
    namespace=st.sampled_from(["/chat", "/", None]),
)
def test_as_pubsub_manager(data: Any, room: Any, skipped: Any, namespace: str | None) -> None:
    """Clients of both workers get the very packets that they would get by PubSubManager."""
    # Of this one PubSubManager makes an event without an argument, and a manager for a single process doesn't.
    assume(data != (None,))
    reference = Server(Reference())
    ours, bus = joined()
    for server in (reference, ours):
        server.emit("event", data, to=room, skip_sid=skipped, namespace=namespace)
    assert ours.got == reference.got
    expected = received(Server(Reference()), reference.manager.sent)
    assert received(joined()[0], bus.sent) == expected
    assert bool(expected) <= (namespace == "/chat")


def test_argument_that_is_none() -> None:
    """An argument that is None is one for all clients."""
    ours, bus = joined()
    ours.emit("event", (None,), namespace="/chat", skip_sid="sid B")
    assert ours.got == received(joined()[0], bus.sent) == [("A", '2/chat,["event",null]')]


@given(
    emission=st.builds(
        Emission,
        sender=st.text(),
        namespace=st.text(),
        room=st.none() | st.text() | st.integers() | st.lists(st.text()),
        skipped=st.lists(st.none() | st.text()),
        parts=st.tuples(st.text(), st.lists(st.binary())).map(lambda it: [it[0], *it[1]]),
    )
)
def test_round_trip(emission: Emission) -> None:
    """What is packed is unpacked, and nobody outside can hand it in for JSON."""
    payload = emission.pack()
    assert Emission.unpack(payload) == emission
    assert payload[0] == FORMAT
    with pytest.raises(ClusterError, match="expected JSON"):
        outside.check(payload)


def test_own_emissions_are_not_heard() -> None:
    """What comes back to its sender is not delivered twice."""
    server, bus = joined()
    server.emit("event", 1, namespace="/chat")
    assert len(server.got) == 2
    assert received(server, bus.sent) == []


def test_nobody_gets_what_is_not_sent() -> None:
    """A message that can't be sent to the others is delivered to no client here."""
    server, _ = joined()
    for data, room in (("x" * LIMIT_BYTES, None), (1, frozenset("a")), (1, ("x", object()))):
        with pytest.raises(ClusterError):
            server.emit("event", data, to=room, namespace="/chat")
    with pytest.raises(TypeError):
        server.emit("event", object(), namespace="/chat")
    assert server.got == []


@pytest.mark.parametrize("data", [1, (1, [b"2"]), None])
def test_another_serializer(data: Any) -> None:
    """Servers of different serializers on one channel reach each other's clients, as with PubSubManager."""
    default, from_default = joined()
    other, from_other = joined(serializer=Other)
    default.emit("event", data, namespace="/chat", skip_sid="sid B")
    other.emit("event", data, namespace="/chat", skip_sid="sid B")
    as_default, as_other = default.got[:], other.got[:]
    assert received(other, from_default.sent) == as_other
    assert received(default, from_other.sent) == as_default
    assert len(as_other) == 1


def test_emission_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """One that can't be delivered is logged, and the next one is delivered."""
    server, bus = joined(logger=True)
    server.emit("event", 1, namespace="/chat")
    assert received(joined(logger=True)[0], [bytes([FORMAT]), *bus.sent]) == [
        ("A", '2/chat,["event",1]'),
        ("B", '2/chat,["event",1]'),
    ]
    assert "could not be delivered" in caplog.text


@pytest.mark.parametrize("chosen", [True, False])
def test_json_that_takes_bytes_for_text(monkeypatch: pytest.MonkeyPatch, *, chosen: bool) -> None:
    """Bytes are attachments with any JSON that the app chose, and if it has patched Python's."""
    options = {}
    if chosen:
        monkeypatch.setattr(Packet, "json", Packet.json)
        monkeypatch.setattr(engineio.packet.Packet, "json", engineio.packet.Packet.json)
        options["json"] = SimpleNamespace(
            dumps=lambda data, **options: json.dumps(data, default=bytes.decode, **options), loads=json.loads
        )
    else:
        monkeypatch.setattr(json.JSONEncoder, "default", lambda _, it: it.decode())
    server, bus = joined(**options)
    server.emit("event", b"1", namespace="/chat", skip_sid="sid B")
    text = '51-/chat,["event",{"_placeholder":true,"num":0}]'
    assert server.got == received(joined()[0], bus.sent) == [("A", text), ("A", b"1")]


def time_out(_: object) -> None:
    raise gevent.Timeout(1)


def test_timeout_of_a_handler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A timeout that an app's code lets out ends nothing but that code."""
    server, bus = joined()
    server.emit("event", 1, namespace="/chat", skip_sid="sid B")
    other = joined(logger=True)[0]
    # What python-socketio deals with, and calls the app for.
    monkeypatch.setattr(other.manager, "_handle_disconnect", time_out)
    asked = json.dumps({"method": "disconnect", "host_id": "another", "sid": "sid B", "namespace": "/chat"}).encode()
    assert received(other, iter([asked, *bus.sent])) == [("A", '2/chat,["event",1]')]
    assert "let its timeout out" in caplog.text
