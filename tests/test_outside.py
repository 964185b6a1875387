"""Messages from outside: what is taken for one, and what a sender makes of every end that a connection can have."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import socketio
from hypothesis import given
from hypothesis import strategies as st

from sticky_session import ClusterError, ClusterManager, UnconfirmedError, outside
from sticky_session.outside import Sender, Visit, check

# Stands among what is published.
SETTLED = ("settled", b"")
SENT = struct.pack("!BH", 0, 0)
EMIT = {"method": "emit", "event": "e", "data": [1], "namespace": "/", "room": None, "skip_sid": None}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def encoded(**changes: Any) -> bytes:
    return json.dumps({**EMIT, **changes}).encode()


def nested(depth: int) -> list[Any] | dict[str, Any]:
    value: list[Any] | dict[str, Any] = []
    for number in range(1, depth):
        value = [value] if number % 2 else {"a": value}
    return value


class Recorder(socketio.PubSubManager):  # type: ignore[misc]
    """Keeps what python-socketio would send to other processes."""

    def __init__(self) -> None:
        super().__init__(write_only=True)
        self.sent: list[bytes] = []

    def _publish(self, data: dict[str, Any]) -> None:
        self.sent.append(json.dumps(data).encode())


def test_what_managers_write() -> None:
    """Everything that python-socketio's managers write from outside is taken."""
    manager = Recorder()
    manager.emit("e", None)
    manager.emit("e", (1, "two"), room="r", namespace="/n", skip_sid=["a", "b"])
    manager.emit("e", {"a": b"1", "b": [b"2"]}, to=["r", 5])
    manager.emit("e", b"", skip_sid="a")
    manager.close_room("r")
    manager.enter_room("sid", "/", 7)
    manager.leave_room("sid", "/n", "r")
    assert len(manager.sent) == 7
    for payload in manager.sent:
        check(payload)
    check(b'{"method": "disconnect", "sid": "a", "namespace": "/", "host_id": "x"}')


def test_what_json_has_not() -> None:
    """What can't be written is refused before anything is sent, with nothing about workers' options."""
    with pytest.raises(ClusterError, match=r"^emit to room 'r' can't be sent .* not JSON serializable.* or bytes$"):
        ClusterManager(write_only=True, path="/nowhere").emit("e", {1, 2}, room="r")


def test_depth() -> None:
    """What is taken can be sent by the workers, which do with it what a client's packet needs."""
    data = nested(outside.MAX_DEPTH)
    check(encoded(data=[data]))
    assert socketio.packet.Packet(socketio.packet.EVENT, data=["e", data]).encode()


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "expected JSON"),
        (b"\xff\xfe\xfd", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[]", "method None: expected one of emit, disconnect, enter_room, leave_room, close_room"),
        (b'{"method": ["emit"]}', r"method \['emit'\]"),
        (encoded(method="callback"), "method 'callback'"),
        (encoded(method="initialize"), "method 'initialize'"),
        (encoded(event=5), "emit: event 5: expected text"),
        (encoded(data="x"), "emit: data 'x': expected a list"),
        (encoded(namespace="chat"), "emit: namespace 'chat': expected text that begins with /"),
        (encoded(method="disconnect", sid="a", namespace=""), "disconnect: namespace '': expected"),
        (encoded(namespace=None), "emit: namespace None: expected text that begins with /"),
        (encoded(room={"a": 1}), "emit: room {'a': 1}: expected text, a number, a list of them, or null"),
        (encoded(room=[["a"]]), r"emit: room \[\['a'\]\]: expected"),
        (encoded(room=[]), r"emit: room \[\]: expected"),
        (encoded(skip_sid=[5]), r"emit: skip_sid \[5\]: expected text, a list of texts, or null"),
        (encoded(callback=["r", "/", 1]), "nobody outside can be answered"),
        (encoded(binary=True, data=[]), "emit: data is not what stands for bytes"),
        (encoded(binary=True, data=[{"_placeholder": True, "num": 3}]), "emit: data is not what stands for bytes"),
        (encoded(binary=True, data=[{"_placeholder": True, "num": 0}, "x"]), "emit: data is not what stands for bytes"),
        (encoded(binary=True, data=[1, 2]), "emit: data is not what stands for bytes"),
        (encoded(method="enter_room"), "enter_room: sid None: expected text"),
        (encoded(method="leave_room", sid="a", room=["r"]), r"leave_room: room \['r'\]: expected text or a number"),
        (encoded(method="leave_room", sid="a"), "leave_room: room None: expected"),
        (encoded(method="close_room"), "close_room: room None: expected"),
        (encoded(data=[float("nan")]), "expected JSON: NaN is not in JSON"),
        (encoded(data=[float("-inf")]), "expected JSON: -Infinity is not in JSON"),
        (encoded(data=[5]).replace(b"5", b"-1e999"), "expected JSON: -1e999 is too large"),
        (encoded(data=[10**100]), "expected JSON: an integer of 101 characters; expected at most 100"),
        (
            encoded(data=[nested(outside.MAX_DEPTH + 1)]),
            "emit: expected at most 200 lists or objects within each other",
        ),
    ],
)
def test_what_is_none(payload: bytes, why: str) -> None:
    """Anything else is refused with its reason, before any worker has it."""
    with pytest.raises(ClusterError, match=why):
        check(payload)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything(payload: bytes) -> None:
    """Whatever it is, nothing but a ClusterError comes of it."""
    with contextlib.suppress(ClusterError):
        check(payload)


@given(
    st.fixed_dictionaries(
        {"method": st.sampled_from(["emit", "disconnect", "enter_room", "leave_room", "close_room"])},
        optional=dict.fromkeys(["event", "data", "namespace", "room", "skip_sid", "sid"], JSON),
    )
)
def test_almost_messages(message: dict[str, Any]) -> None:
    """Nor if the method is right."""
    with contextlib.suppress(ClusterError):
        check(json.dumps({**message, "binary": True}).encode())


# --- the sender, before workers of all kinds


@contextlib.contextmanager
def serving(path: Path, *answers: Callable[[socket.socket], None]) -> Iterator[None]:
    """Answer one connection after the other, each in its way."""

    def serve() -> None:
        for answer in answers:
            connection, _ = listening.accept()
            with connection:
                answer(connection)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        listening.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def take(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read one message: channel and payload."""
    stream = connection.makefile("rb")
    version, length, size = struct.unpack("!BBI", stream.read(6))
    assert version == 1
    return stream.read(length), stream.read(size)


def confirm(connection: socket.socket) -> None:
    """As a worker does, for as long as there are messages."""
    while connection.recv(1, socket.MSG_PEEK):
        take(connection)
        connection.sendall(SENT)


def leave(connection: socket.socket) -> None:
    """As a worker that leaves its slot."""
    connection.shutdown(socket.SHUT_RD)


def die(connection: socket.socket) -> None:
    """As a worker that is killed with a message in its hands."""
    take(connection)


def refuse(connection: socket.socket) -> None:
    """As a worker that can't make sense of the beginning of a message."""
    connection.recv(6)
    connection.sendall(struct.pack("!BH", 1, 7) + b"because")


def busy(connection: socket.socket) -> None:
    """As the listener, when it has no place for the connection."""
    take(connection)
    connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")


def other(connection: socket.socket) -> None:
    """As a server of something else."""
    take(connection)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_one_connection(tmp_path: Path) -> None:
    """Many messages go by one connection, whoever sends them."""
    sender = Sender(os.fspath(tmp_path / "s"))
    with serving(tmp_path / "s", confirm):
        threads = [threading.Thread(target=sender.send, args=("c", b"x" * size)) for size in (0, 1, 10**6, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        del sender


def test_fork(tmp_path: Path) -> None:
    """A process that was forked has a connection of its own, even if a thread was just sending."""
    sender = Sender(os.fspath(tmp_path / "s"))
    with serving(tmp_path / "s", confirm, confirm):
        sender.send("c", b"parent's")
        with sender._lock:
            pid = os.fork()
            if not pid:
                status = 1
                with contextlib.suppress(ClusterError):
                    sender.send("c", b"child's")
                    status = 0
                os._exit(status)
        del sender
        assert os.waitpid(pid, 0)[1] == 0


def test_worker_leaves(tmp_path: Path) -> None:
    """Who comes to a worker that is leaving comes to the next one."""
    sender = Sender(os.fspath(tmp_path / "s"))
    with serving(tmp_path / "s", leave, leave, confirm):
        sender.send("c", b"x" * 10**6)
        del sender


def test_all_leave(tmp_path: Path) -> None:
    """But not for ever."""
    sender = Sender(os.fspath(tmp_path / "s"))
    with (
        serving(tmp_path / "s", *[leave] * outside.ATTEMPTS),
        pytest.raises(ClusterError, match="no worker took the message; the server may be shutting down") as caught,
    ):
        sender.send("c", b"x" * 10**6)
    assert type(caught.value) is ClusterError


def test_worker_dies(tmp_path: Path) -> None:
    """A message that was taken and not confirmed is not sent again: nobody knows."""
    sender = Sender(os.fspath(tmp_path / "s"))
    with serving(tmp_path / "s", die), pytest.raises(UnconfirmedError, match="it may have been sent"):
        sender.send("c", b"x" * 1000)


def test_worker_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that doesn't answer, or doesn't read, is not waited for for ever."""
    monkeypatch.setattr(outside, "WAIT_SECONDS", 0.1)
    done = threading.Event()
    sender = Sender(os.fspath(tmp_path / "s"))
    with serving(tmp_path / "s", lambda _: done.wait() and None, lambda _: done.wait() and None):
        with pytest.raises(UnconfirmedError, match="it took too long"):
            sender.send("c", b"x")
        done.set()
        done = threading.Event()
        with pytest.raises(ClusterError, match=r"no worker took the message in 0\.1 seconds") as caught:
            sender.send("c", b"x" * 10**7)
        assert type(caught.value) is ClusterError
        done.set()


@pytest.mark.parametrize("size", [10, 10**7])
def test_refused(size: int, tmp_path: Path) -> None:
    """The reason is told, also to one that could not write it all."""
    sender = Sender(os.fspath(tmp_path / "s"))
    with serving(tmp_path / "s", refuse), pytest.raises(ClusterError, match="because"):
        sender.send("c", b"x" * size)


def test_no_place(tmp_path: Path) -> None:
    """The listener speaks another language when workers are full."""
    sender = Sender(os.fspath(tmp_path / "s"))
    with serving(tmp_path / "s", busy), pytest.raises(ClusterError, match="too many wait for this server's workers"):
        sender.send("c", b"x")


def test_something_else(tmp_path: Path) -> None:
    """A server that is none of ours is told apart."""
    sender = Sender(os.fspath(tmp_path / "s"))
    with serving(tmp_path / "s", other), pytest.raises(ClusterError, match="something else answers there; expected"):
        sender.send("c", b"x")


def test_nobody_there(tmp_path: Path) -> None:
    """No file, and one without a server."""
    with pytest.raises(ClusterError, match=r"No such file.*expected the bus socket of a running server"):
        Sender(os.fspath(tmp_path / "s")).send("c", b"x")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(os.fspath(tmp_path / "s"))
    with pytest.raises(ClusterError, match="Connection refused"):
        Sender(os.fspath(tmp_path / "s")).send("c", b"x")


def test_too_large(tmp_path: Path) -> None:
    """What no worker would take is not sent at all."""
    with pytest.raises(ClusterError, match="expected at most"):
        Sender(os.fspath(tmp_path / "s")).send("c", bytes(outside.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ClusterError, match="expected at most"):
        Sender(os.fspath(tmp_path / "s")).send("c" * 256, b"")
    with pytest.raises(ClusterError, match="expected a name in UTF-8"):
        Sender(os.fspath(tmp_path / "s")).send("\udcff", b"")


# --- the worker's side


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, *args: object) -> None:
        self.lines.append(text % args)


@contextlib.contextmanager
def visited() -> Iterator[tuple[socket.socket, list[tuple[str, bytes]], list[str], Visit]]:
    """The sender's end of a connection, what is published, what is logged, and the visit, which ends by itself."""
    ours, theirs = socket.socketpair()
    published: list[tuple[str, bytes]] = []
    log = Log()
    visit = Visit(
        theirs,
        lambda channel, payload: published.append((channel, payload)),
        lambda: published.append(SETTLED),
        log,
    )
    thread = threading.Thread(target=visit.serve)
    with ours:
        ours.settimeout(10)
        thread.start()
        yield ours, published, log.lines, visit
    thread.join()
    assert theirs.fileno() == -1


def message(payload: bytes, channel: bytes = b"socketio") -> bytes:
    return struct.pack("!BBI", 1, len(channel), len(payload)) + channel + payload


def test_messages_are_published() -> None:
    """Each is published as it came, and confirmed; pieces of any size make no difference."""
    payloads = [encoded(), encoded(data=["x" * 100_000])]
    with visited() as (sock, published, lines, _):
        sock.sendall(message(payloads[0]) + message(payloads[1], b"other"))
        assert sock.makefile("rb").read(6) == SENT * 2
        for byte in message(payloads[0]):
            sock.sendall(bytes([byte]))
        assert sock.makefile("rb").read(3) == SENT
    assert published == [("socketio", payloads[0]), ("other", payloads[1]), ("socketio", payloads[0])]
    assert lines == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "it begins with b'GET / '; expected a message of version 1"),
        (b"\n", "it begins with"),
        (struct.pack("!BBI", 1, 0, 2**32 - 1), "4294967295 bytes; expected at most 67108864"),
        (message(b"{}"), "method None"),
        (message(encoded(), b"\xff"), "expected a name in UTF-8"),
    ],
)
def test_garbage(data: bytes, why: str) -> None:
    """What is no message is refused, once in the log; nothing is published, and the connection ends."""
    with visited() as (sock, published, lines, _):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := sock.recv(4096):
                answer += more
    status, size = struct.unpack_from("!BH", answer)
    assert (status, size) == (1, len(answer) - 3)
    assert published == []
    [line] = lines
    assert line == "A message from outside was refused: " + answer[3:].decode()
    assert why in line


@pytest.mark.parametrize("size", [3, 6, 8, 100])
def test_sender_goes_in_the_middle(size: int) -> None:
    """Part of a message is no message, and nobody's mistake."""
    with visited() as (sock, published, lines, _):
        sock.sendall(message(encoded())[:size])
    assert published == lines == []


def test_answers_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that writes and never reads is not waited for for ever; it finds its connection closed."""
    monkeypatch.setattr(outside, "WAIT_SECONDS", 0.1)

    def send_for_ever(sock: socket.socket) -> None:
        while True:
            sock.sendall(message(encoded()) * 100)

    with visited() as (sock, published, lines, _):
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_for_ever(sock)
    assert published
    assert lines == []


def test_retiring() -> None:
    """A worker that leaves takes what was written whole; what comes then fails where it is written."""
    with visited() as (sock, published, _, visit):
        sock.sendall(message(encoded()) * 3)
        visit.retire()
        with pytest.raises(BrokenPipeError):
            sock.sendall(message(encoded()))
        assert sock.makefile("rb").read() == SENT * 3
    assert len([one for one in published if one != SETTLED]) == 3
    # The last message was on its way before it was confirmed.
    assert published[-1] == SETTLED


# --- ClusterManager


def test_manager_without_a_way(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One that only writes says once where it would have to write; a server's needs no path."""
    monkeypatch.setenv("STICKY_SESSION_BUS_SOCKET", "off")
    manager = ClusterManager(write_only=True)
    manager.emit("e", 1)
    manager.emit("e", 2)
    [record] = caplog.records
    assert record.getMessage().endswith("ClusterManager(write_only=True, path=...) or STICKY_SESSION_BUS_SOCKET")
    with pytest.raises(ValueError, match="expected write_only=True"):
        ClusterManager(path="/run/bus")
    with pytest.raises(ValueError, match="expected the path"):
        ClusterManager(path="", write_only=True)


def test_manager_takes_the_path_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that the server has is all that another process needs."""
    monkeypatch.setenv("STICKY_SESSION_BUS_SOCKET", os.fspath(tmp_path / "s"))
    taken = []

    def keep(connection: socket.socket) -> None:
        taken.append(take(connection))
        connection.sendall(SENT)

    with serving(tmp_path / "s", keep):
        ClusterManager("mine", write_only=True).emit("e", 1, to="r")
    [(channel, payload)] = taken
    assert channel == b"mine"
    assert json.loads(payload).items() >= {"method": "emit", "event": "e", "data": [1], "room": "r"}.items()
