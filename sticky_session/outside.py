"""From outside: how a process that is no worker hands in messages for the bus.

It connects to the bus socket, and the listener hands the connection to a worker, which is on the bus. On a connection
messages follow one another::

    0         1          2      6           6+C
    | version | length C | size | channel C | payload |      an answer to each:  | status | length | text |
      u8        u8         u32                                                     u8       u16
      (network byte order)

``payload`` is JSON, as python-socketio's managers write it. ``status`` 0: every worker has been sent it, or it is
queued for it. 1: ``text`` says what is wrong with it; nobody has got it, and the connection ends.

A worker that leaves its slot sends what it has queued, and then shuts the receiving side down (shutdown(2), SHUT_RD).
What a sender had written whole is still read, published and answered; what comes later fails with EPIPE in the sender,
which then knows that nobody has read it and sends it on a new connection, to another worker. So nothing is sent twice,
overtakes what came before it, or is lost but with a worker that is killed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from struct import Struct
from typing import Any, NamedTuple

from sticky_session.busframe import MAX_CHANNEL_BYTES, MAX_MESSAGE_BYTES
from sticky_session.errors import ClusterError, UnconfirmedError
from sticky_session.strictjson import parse

# How long a sender waits for its message to be taken, and then for the answer.
WAIT_SECONDS = 10.0
# How deep lists and objects may be within each other: python-socketio takes two of Python's frames for each.
MAX_DEPTH = 200
# How many workers that are leaving a sender may come to, one after the other.
ATTEMPTS = 8

VERSION = 1
_REQUEST = Struct("!BBI")
_ANSWER = Struct("!BH")
_SENT, _REFUSED = range(2)
_UNAVAILABLE = b"HTTP/1.1 503"


class _Kind(NamedTuple):
    """What a member of a message may be."""

    accepts: Callable[[Any], bool]
    expected: str


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_room(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def _is_room_or_all(value: Any) -> bool:
    return value is None or _is_room(value)


def _one_or_more(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: all(map(is_one, value)) if isinstance(value, list) else is_one(value)


_NAME = _Kind(_is_text, "text")
# Packets name no others (Socket.IO protocol, "Packet encoding"), so no client is in one.
_NAMESPACE = _Kind(lambda value: _is_text(value) and value.startswith("/"), "text that begins with /")
_ROOM = _Kind(_is_room, "text or a number")

# What else than its method python-socketio's managers put into a message; host_id is only compared. The room None is
# that of all clients, in which python-socketio keeps who is connected: nobody may leave it.
_MEMBERS: dict[str, dict[str, _Kind]] = {
    "emit": {
        "event": _NAME,
        "data": _Kind(lambda value: isinstance(value, list), "a list"),
        "namespace": _NAMESPACE,
        # No room at all is an IndexError in python-socketio.
        "room": _Kind(
            lambda value: value != [] and _one_or_more(_is_room_or_all)(value),
            "text, a number, a list of them, or null for all clients",
        ),
        "skip_sid": _Kind(
            lambda value: value is None or _one_or_more(_is_text)(value), "text, a list of texts, or null"
        ),
    },
    "disconnect": {"sid": _NAME, "namespace": _NAMESPACE},
    "enter_room": {"sid": _NAME, "namespace": _NAMESPACE, "room": _ROOM},
    "leave_room": {"sid": _NAME, "namespace": _NAMESPACE, "room": _ROOM},
    "close_room": {"namespace": _NAMESPACE, "room": _ROOM},
}


def check(payload: bytes) -> None:
    """Check that every worker will know what to do with a message.

    :raises ClusterError: it is none that a manager which only writes would send
    """
    try:
        message = parse(payload)
    except (ValueError, RecursionError) as error:
        raise ClusterError(f"expected JSON: {error}") from None
    method = message.get("method") if isinstance(message, dict) else None
    members = _MEMBERS.get(method) if isinstance(method, str) else None
    if members is None:
        raise ClusterError(f"method {method!r:.100}: expected one of {', '.join(_MEMBERS)}")
    for name, kind in members.items():
        if not kind.accepts(message.get(name)):
            raise ClusterError(f"{method}: {name} {message.get(name)!r:.100}: expected {kind.expected}")
    if message.get("callback") is not None:
        raise ClusterError(f"{method}: callback: nobody outside can be answered")
    if method == "emit" and message.get("binary"):
        _check_attachments(message["data"])
    if _is_too_deep([message.get("data")]):
        raise ClusterError(f"{method}: expected at most {MAX_DEPTH} lists or objects within each other")


def _is_too_deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 2):
        inner = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _check_attachments(data: list[Any]) -> None:
    """Check what python-socketio writes where there are bytes: the data, and each of the bytes in base64.

    :raises ClusterError: it is something else
    """
    # Only now: the arbiter, which has this module too, must not import what its workers have to patch.
    from socketio.packet import Packet

    try:
        rest, *attachments = data
        Packet.reconstruct_binary(rest, [base64.b64decode(each) for each in attachments])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ClusterError(f"emit: data is not what stands for bytes: {error!r}") from None


class Sender:
    """A process's way to the bus from outside. Threads may share it, and it survives a fork.

    :param path: the bus socket's
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def send(self, channel: str, payload: bytes) -> None:
        """Send a message, and wait until it is on the bus.

        :raises ClusterError: it is not and will not be
        :raises UnconfirmedError: nobody can tell
        """
        try:
            name = channel.encode()
        except UnicodeEncodeError:
            raise ClusterError(f"channel {channel!r:.100}: expected a name in UTF-8") from None
        if len(name) > MAX_CHANNEL_BYTES or len(payload) > MAX_MESSAGE_BYTES:
            raise ClusterError(
                f"a message of {len(payload)} bytes (encoded) for channel {channel!r:.100}: expected at most "
                f"{MAX_MESSAGE_BYTES}, and a name of at most {MAX_CHANNEL_BYTES}"
            )
        parts = (_REQUEST.pack(VERSION, len(name), len(payload)) + name, payload)
        if self._process != os.getpid():
            # Another process's connection, and perhaps its lock held by a thread that is not here.
            self._begin()
        with self._lock:
            for _ in range(ATTEMPTS):
                if self._send(parts):
                    return
        raise ClusterError(f"{self._path}: no worker took the message; the server may be shutting down")

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _send(self, parts: tuple[bytes, ...]) -> bool:
        """Try once.

        :returns: False if the worker was leaving
        """
        connection, self._connection = self._connection or self._connect(), None
        done = False
        try:
            try:
                for part in parts:
                    connection.sendall(part)
                done = True
            except (BrokenPipeError, ConnectionResetError):
                # Why, if it was refused before it was read whole.
                pass
            except TimeoutError:
                raise ClusterError(f"{self._path}: no worker took the message in {WAIT_SECONDS:g} seconds") from None
            confirmed = self._confirmed(connection, whole=done)
        except BaseException:
            connection.close()
            raise
        if confirmed:
            self._connection = connection
        else:
            connection.close()
        return confirmed

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(WAIT_SECONDS)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise ClusterError(
                f"{self._path}: {error.strerror or error}; expected the bus socket of a running server "
                "(STICKY_SESSION_BUS_SOCKET, or --bus-socket)"
            ) from None
        return connection

    def _confirmed(self, connection: socket.socket, *, whole: bool) -> bool:
        """Wait for the answer.

        :param whole: whether all of the message was written
        :returns: False if it was not, and nobody has said why
        """
        try:
            head = _receive(connection, _ANSWER.size)
            status, size = _ANSWER.unpack(head)
            if status == _SENT:
                return True
            text = _receive(connection, size) if status == _REFUSED else _other_answer(connection, head)
        except (EOFError, OSError) as error:
            if not whole:
                return False
            why = "it took too long" if isinstance(error, TimeoutError) else "the connection ended"
            raise UnconfirmedError(
                f"{self._path}: the message was written, but {why} before it was confirmed; it may have been sent"
            ) from None
        raise ClusterError(f"{self._path}: {text.decode(errors='replace')}")


def _other_answer(connection: socket.socket, begin: bytes) -> bytes:
    """What an answer means that is no worker's.

    :raises EOFError: there is less of it than of the listener's
    """
    # The listener doesn't know what it refuses, and does so as HTTP has it.
    if begin + _receive(connection, len(_UNAVAILABLE) - len(begin)) == _UNAVAILABLE:
        return b"too many wait for this server's workers"
    return b"something else answers there; expected the bus socket (STICKY_SESSION_BUS_SOCKET, or --bus-socket)"


def _receive(connection: socket.socket, size: int) -> bytes:
    """Receive exactly so much.

    :raises EOFError: there is less
    """
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class Visit:
    """In a worker: a connection from outside.

    :param publish: puts a payload on the bus, given the channel's name and it
    :param settle: waits until other workers have what was published
    :param log: gunicorn's logger
    """

    def __init__(self, sock: Any, publish: Callable[[str, bytes], None], settle: Callable[[], None], log: Any) -> None:
        self._sock = sock
        self._publish = publish
        self._settle = settle
        self._log = log
        self._retiring = False

    def serve(self) -> None:
        """Take messages until the sender has no more, or sends one that can't be taken."""
        with self._sock, self._sock.makefile("rb") as stream:
            # The sender may go at any moment.
            with contextlib.suppress(OSError):
                while head := stream.read(_REQUEST.size):
                    try:
                        if not self._take(head, stream):
                            return
                    except ClusterError as error:
                        self._log.warning("A message from outside was refused: %s", error)
                        text = str(error).encode()[:1000]
                        self._answer(_REFUSED, text)
                        return
                    if self._retiring:
                        # The sender goes on with another worker, whose messages must not overtake this one.
                        self._settle()
                    self._answer(_SENT)

    def _answer(self, status: int, text: bytes = b"") -> None:
        """Answer a message.

        :raises TimeoutError: the sender doesn't read its answers
        """
        # Waited for without end, it would keep a worker that leaves until the graceful timeout.
        self._sock.settimeout(WAIT_SECONDS)
        self._sock.sendall(_ANSWER.pack(status, len(text)) + text)
        self._sock.settimeout(None)

    def _take(self, head: bytes, stream: Any) -> bool:
        """Take the rest of a message, and publish it.

        :returns: False if the sender is gone before the end of it
        :raises ClusterError: it is none
        """
        if head[0] != VERSION:
            raise ClusterError(f"it begins with {head!r}; expected a message of version {VERSION}")
        if len(head) < _REQUEST.size:
            return False
        _, length, size = _REQUEST.unpack(head)
        if size > MAX_MESSAGE_BYTES:
            raise ClusterError(f"{size} bytes; expected at most {MAX_MESSAGE_BYTES}")
        channel, payload = stream.read(length), stream.read(size)
        if len(payload) < size:
            return False
        try:
            name = channel.decode()
        except UnicodeDecodeError:
            raise ClusterError(f"channel {channel!r}: expected a name in UTF-8") from None
        check(payload)
        self._publish(name, payload)
        return True

    def retire(self) -> None:
        """Take what has been sent whole, and no more: the worker leaves. Waits a moment."""
        self._retiring = True
        self._settle()
        # gevent's shutdown() would have the reading greenlet give up, with a message that has just arrived.
        sock = getattr(self._sock, "_sock", self._sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RD)
