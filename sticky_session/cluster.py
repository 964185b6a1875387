"""The Socket.IO client manager that lets every worker reach the clients of all: python-socketio's, over the bus.

python-socketio's ``PubSubManager`` does what there is to do (rooms, acknowledgements, disconnecting across processes)
over anything that has ``_publish`` and ``_listen``. A message is JSON, as its ``RedisManager`` writes it; only an emit
without a callback, which may be for many, is encoded once by the sender and delivered as it is, see :mod:`.emission`.

A manager is made when the app is loaded, which may be before the fork or in no worker at all. It *joins* when the
worker has its bus; one that has not joined acts as python-socketio's manager for a single process. One that only writes
may also reach the bus from outside, see :mod:`.outside`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import engineio.json
import gevent
import socketio
from engineio import packet as engineio_packet
from socketio.packet import EVENT, Packet

from sticky_session.bus import Bus, Inbox, current_bus
from sticky_session.config import OFF, OPTIONS
from sticky_session.emission import FORMAT, Emission
from sticky_session.errors import ClusterError
from sticky_session.outside import Sender

# python-socketio's own name for it.
DEFAULT_CHANNEL = "socketio"

_BUS_SOCKET = next(option for option in OPTIONS if option.name == "bus_socket")

# All managers of this process, for those that were made before the bus.
managers: WeakSet[ClusterManager] = WeakSet()


class ClusterManager(socketio.PubSubManager):  # type: ignore[misc]
    """A client manager that reaches the clients of all workers, without a message queue.

    An app's server gets one by itself, so there is rarely a need to name it::

        sio = socketio.Server(client_manager=sticky_session.ClusterManager())

    In a process that is no worker (``python app.py``, pytest) there are no others to reach, and it is python-socketio's
    manager for a single process.

    A process that is no worker, on the same machine, emits with one that belongs to no server::

        ClusterManager(write_only=True, path="/run/app/bus.sock").emit("news", {"text": "hello"})

    :param channel: servers hear each other if their channels have the same name
    :param write_only: True for one that belongs to no server and only emits
    :param path: the bus socket's (``STICKY_SESSION_BUS_SOCKET``, which is also the default), for one that only writes
    :param options: more of ``PubSubManager``'s: ``logger``, ``json``
    :raises ValueError: there is a path for one that is to be a server's, or it is empty
    """

    name = "sticky-session"

    def __init__(
        self,
        channel: str = DEFAULT_CHANNEL,
        write_only: bool = False,
        path: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if path is not None and not write_only:
            raise ValueError(f"ClusterManager(path={path!r}): expected write_only=True; a server's needs no path")
        if path is not None and not os.fspath(path):
            raise ValueError(f"ClusterManager(path={path!r}): expected the path of the server's bus socket")
        super().__init__(channel=channel, write_only=write_only, **options)
        self._bus: Bus | None = None
        self._inbox: Inbox | None = None
        self._has_said_so = False
        given = default_path() if path is None and write_only else path
        self._sender = None if given is None else Sender(os.fspath(given))
        if path is not None:
            return
        managers.add(self)
        bus = current_bus()
        if bus is not None:
            self.join(bus)

    def join(self, bus: Bus) -> None:
        """Use the bus from now on."""
        if self._bus is not None:
            return
        # An id from before the fork would be that of all workers.
        self.host_id = uuid.uuid4().hex
        self._bus = bus
        self._start_listening()

    def _start_listening(self) -> None:
        # Not only when the first client comes, as others do: somebody may wait for another worker's client to answer.
        # And not without a server: nobody would empty the inbox.
        if self._bus is not None and self.server is not None and self._inbox is None and not self.write_only:
            self._inbox = self._bus.listen(self.channel)
            self.thread = self.server.start_background_task(self._thread)

    def set_server(self, server: Any) -> None:
        """Belong to a server."""
        super().set_server(server)
        self._start_listening()

    def initialize(self) -> None:
        """Before the first client: nothing is left to do."""

    @property
    def _is_alone(self) -> bool:
        """Whether there are no others to reach."""
        return self._bus is None and not self.write_only

    # --- as in a single process, while there is no bus

    def emit(
        self,
        event: str,
        data: Any,
        namespace: str | None = None,
        room: Any = None,
        skip_sid: Any = None,
        callback: Any = None,
        to: Any = None,
        **options: Any,
    ) -> None:
        """Emit to a client, a room, or all, of this worker and the others; as ``socketio.Server.emit``."""
        namespace, room = namespace or "/", to or room
        # Whatever else python-socketio takes for an id is none, and skips nobody in a single process.
        skip_sid = [sid for sid in (skip_sid if isinstance(skip_sid, list) else [skip_sid]) if isinstance(sid, str)]
        if self._is_alone:
            options["ignore_queue"] = True
        if self._bus is None or callback is not None or options.get("ignore_queue") or not self._writes_packets:
            super().emit(event, data, namespace, room, skip_sid, callback, **options)
            return
        arguments = [] if data is None else list(data) if isinstance(data, tuple) else [data]
        try:
            parts = _encode(namespace, [event, *arguments])
        except (TypeError, ValueError) as error:
            if namespace in self.rooms:
                raise
            # As with python-socketio's, which looks first whether anybody is there.
            self._get_logger().error("%r to %s can't be sent, and nobody gets it: %s", event, namespace, error)
            return
        emission = Emission(self.host_id, namespace, room, skip_sid, parts)
        try:
            payload = emission.pack()
        except (TypeError, ValueError) as error:
            raise self._unwritable("emit", room, error) from None
        # A message that can't be sent reaches nobody.
        self._bus.publish(self.channel, payload, self._inbox)
        self._deliver(emission)

    def can_disconnect(self, sid: str, namespace: str) -> Any:
        """Whether the client is this worker's; if it is not, the others are asked to disconnect it."""
        if self._is_alone:
            return socketio.Manager.can_disconnect(self, sid, namespace)
        return super().can_disconnect(sid, namespace)

    def disconnect(self, sid: str, namespace: str | None = None, **kwargs: Any) -> Any:
        """Note that a client is gone; see :meth:`can_disconnect`."""
        if self._is_alone:
            kwargs["ignore_queue"] = True
        return super().disconnect(sid, namespace=namespace or "/", **kwargs)

    def enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> Any:
        """Put any worker's client into a room."""
        if self._is_alone:
            return socketio.Manager.enter_room(self, sid, namespace, room, eio_sid=eio_sid)
        return super().enter_room(sid, namespace, room, eio_sid=eio_sid)

    def leave_room(self, sid: str, namespace: str, room: Any) -> Any:
        """Take any worker's client out of a room."""
        if self._is_alone:
            return socketio.Manager.leave_room(self, sid, namespace, room)
        return super().leave_room(sid, namespace, room)

    def close_room(self, room: Any, namespace: str | None = None) -> Any:
        """Take all clients out of a room, on all workers."""
        if self._is_alone:
            return socketio.Manager.close_room(self, room, namespace or "/")
        return super().close_room(room, namespace)

    # --- over the bus

    def _publish(self, data: dict[str, Any]) -> None:
        if self._is_alone:
            return
        if data["method"] == "callback":
            data = _with_text_only(data)
        try:
            payload = self._json.dumps(data).encode()
        except (TypeError, ValueError) as error:
            raise self._unwritable(data["method"], data.get("room"), error) from None
        if self._bus is not None:
            self._bus.publish(self.channel, payload, self._inbox)
        elif self._sender is not None:
            self._sender.send(self.channel, payload)
        elif not self._has_said_so:
            self._has_said_so = True
            self._get_logger().warning(
                "This process is no worker: to reach clients it needs the path of the server's bus socket, "
                "ClusterManager(write_only=True, path=...) or %s",
                _BUS_SOCKET.environment,
            )

    def _unwritable(self, method: str, room: Any, error: Exception) -> ClusterError:
        alone = "" if self._bus is None else "; STICKY_SESSION_BUS=0 keeps everything in this worker"
        return ClusterError(
            f"{method} to room {room!r} can't be sent to the workers: {error}. Data and the names of rooms must be "
            f"what JSON has, or bytes{alone}"
        )

    def _thread(self) -> None:
        """Listen, for ever."""
        while True:
            try:
                super()._thread()
                return
            except gevent.Timeout:
                # No Exception, so python-socketio would hear nothing from here on.
                self.server.logger.exception("A handler let its timeout out into the listening greenlet")

    def _listen(self) -> Iterator[bytes]:
        """What python-socketio deals with; emissions never get there."""
        assert self._inbox is not None
        for payload in self._inbox:
            if payload[0] != FORMAT:
                yield payload
                continue
            try:
                emission = Emission.unpack(payload)
                if emission.sender != self.host_id:
                    self._deliver(emission)
            except Exception:
                self.server.logger.exception("An emission of another worker could not be delivered")

    @property
    def _writes_packets(self) -> bool:
        """Whether the server's clients get what :mod:`.emission` carries, and no other serializer's packets."""
        return self.server is not None and self.server.packet_class is Packet

    def _deliver(self, emission: Emission) -> None:
        """Send an emission to those of our own clients whom it is for."""
        if not self._writes_packets:
            text, *attachments = emission.parts
            packet = Packet(encoded_packet=text)
            for attachment in attachments:
                packet.add_attachment(attachment)
            event, *data = packet.data
            super().emit(event, tuple(data), emission.namespace, emission.room, emission.skipped, ignore_queue=True)
            return
        packets = [engineio_packet.Packet(engineio_packet.MESSAGE, part) for part in emission.parts]
        for sid, eio_sid in self.get_participants(emission.namespace, emission.room):
            if sid not in emission.skipped:
                for packet in packets:
                    self.server._send_eio_packet(eio_sid, packet)

    def _handle_disconnect(self, message: dict[str, Any]) -> None:
        if self.server is not None:
            super()._handle_disconnect(message)

    def _handle_callback(self, message: dict[str, Any]) -> None:
        if message.pop("binary", False):
            args, *attachments = message["args"]
            message["args"] = Packet.reconstruct_binary(args, [base64.b64decode(each) for each in attachments])
        super()._handle_callback(message)

    @property
    def _json(self) -> Any:
        # python-socketio before 5.16.1 has no choice of it.
        return getattr(self, "json", json)


def _encode(namespace: str, data: list[Any]) -> list[str | bytes]:
    """The text of an event's packet, and its attachments."""
    encoded = None
    # Packet looks for bytes in all of the data before it encodes any. JSON that refuses them finds them as it encodes,
    # in a fraction of the time.
    if _json_refuses_bytes():
        with contextlib.suppress(TypeError):
            encoded = Packet(EVENT, data, namespace, binary=False).encode()
    if encoded is None:
        encoded = Packet(EVENT, data, namespace).encode()
    return encoded if isinstance(encoded, list) else [encoded]


def _json_refuses_bytes() -> bool:
    """Whether packets are made by Python's JSON as it is; another, or a patched one, may take bytes for text."""
    return Packet.json is engineio.json and getattr(json.JSONEncoder.default, "__module__", "") == "json.encoder"


def default_path() -> str | None:
    """The bus socket's path that the environment names, as it does for the server."""
    path = os.environ.get(_BUS_SOCKET.environment, OFF)
    return None if path.lower() == OFF else path


def _with_text_only(callback: dict[str, Any]) -> dict[str, Any]:
    """A callback whose bytes are written as python-socketio writes those of what is emitted; it leaves callbacks'."""
    args = list(callback["args"])
    if not Packet.data_is_binary(args):
        return callback
    rest, attachments = Packet.deconstruct_binary(args)
    return {**callback, "args": [rest, *(base64.b64encode(each).decode() for each in attachments)], "binary": True}


def join(bus: Bus) -> None:
    """Let the managers that there are use the bus."""
    for manager in list(managers):
        manager.join(bus)
