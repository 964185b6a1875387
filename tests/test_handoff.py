"""Frames, and descriptors on their way from process to process."""

from __future__ import annotations

import _socket
import fcntl
import itertools
import os
import subprocess
import sys
from array import array
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session import StickySessionError, handoff

BINDS = st.integers(0, 65535)
PORTS = st.integers(0, 65535)
HOSTS = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None),
)
DATA = st.binary(max_size=300)


@pytest.fixture
def channel() -> Iterator[tuple[_socket.socket, _socket.socket]]:
    """Both ends of a channel."""
    ends = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose ends are sent about."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def fill(channel: _socket.socket, message: bytes, descriptor: int) -> int:
    """Send until the channel is full; how many frames it took."""
    for sent in itertools.count():
        try:
            handoff.send(channel, message, descriptor)
        except BlockingIOError:
            return sent
    raise AssertionError("unreachable")


def rights(*descriptors: int) -> list[tuple[int, int, array[int]]]:
    return [(SOL_SOCKET, SCM_RIGHTS, array("i", descriptors))]


# --- the frame


@given(bind=BINDS, host=HOSTS, port=PORTS, data=DATA)
def test_round_trip(bind: int, host: IPv4Address | IPv6Address, port: int, data: bytes) -> None:
    """A frame with an address is decoded to what it was made of."""
    address = (str(host), port)
    assert handoff.decode(handoff.encode(bind, address, data)) == (bind, address, data, None)


@given(bind=BINDS, host=HOSTS, data=DATA)
def test_round_trip_of_a_client(bind: int, host: IPv4Address | IPv6Address, data: bytes) -> None:
    """A frame that is routed by a client's address is decoded to what it was made of."""
    assert handoff.decode(handoff.encode(bind, None, data, str(host))) == (bind, None, data, str(host))


@given(bind=BINDS, data=DATA)
def test_round_trip_without_address(bind: int, data: bytes) -> None:
    """A frame without an address is decoded to what it was made of."""
    assert handoff.decode(handoff.encode(bind, None, data)) == (bind, None, data, None)


def test_largest() -> None:
    """A frame with the longest address and the most data is as large as the receiver's buffer, and round."""
    data = os.urandom(handoff.MAX_DATA_BYTES)
    message = handoff.encode(65535, ("2001:db8::1", 65535), data)
    assert len(message) == handoff.MAX_FRAME_BYTES
    assert handoff.decode(message) == (65535, ("2001:db8::1", 65535), data, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((258,), "0000 0102 0000 0000"),
        ((1, ("192.0.2.1", 80), b"GET"), "0400 0001 0050 0003 c0000201 474554"),
        ((0, ("::ffff:192.0.2.1", 80)), "0400 0000 0050 0000 c0000201"),
        ((0, ("2001:db8::1", 80)), "1000 0000 0050 0000 20010db8000000000000000000000001"),
        ((1, None, b"GET", "192.0.2.1"), "0401 0001 0000 0003 c0000201 474554"),
    ],
)
def test_layout(arguments: tuple[Any, ...], message: str) -> None:
    """The layout is the documented one: old and new processes speak over one channel during an upgrade."""
    assert handoff.encode(*arguments) == bytes.fromhex(message)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "00",
        "0000 0000 0000 00",
        "0000 0000 0000 0001",
        "0000 0000 0000 0000 00",
        "0400 0000 0000 0000 c00002",
        "0400 0000 0000 0000 c000020100",
        "0500 0000 0000 0000 c000020100",
        "1000 0000 0000 0000 c0000201",
        "ff00 0000 0000 0000",
    ],
)
def test_malformed(message: str) -> None:
    """A message that does not add up is a FrameError, which is one of ours."""
    with pytest.raises(handoff.FrameError, match="a frame of") as caught:
        handoff.decode(bytes.fromhex(message))
    assert isinstance(caught.value, StickySessionError)


@given(message=st.binary(max_size=64))
def test_any_bytes(message: bytes) -> None:
    """Whatever the bytes, they are the one frame that has them, or a FrameError."""
    try:
        bind, address, data, client = handoff.decode(message)
    except handoff.FrameError:
        return
    if address is None or address[0].startswith("::ffff:"):
        return  # the port means nothing without an address, and a mapped address gets shorter
    assert handoff.encode(bind, address, data, client)[2:] == message[2:]


# --- sending and receiving


def test_descriptor_arrives(channel: tuple[_socket.socket, _socket.socket], pipe: tuple[int, int]) -> None:
    """The received descriptor is the same open file, under a number of its own, and closed on exec."""
    handoff.send(channel[0], handoff.encode(3, ("192.0.2.1", 5), b"data"), pipe[1])
    frame = handoff.Receiver(channel[1]).receive()
    assert frame is not None
    assert frame[1:] == (3, ("192.0.2.1", 5), b"data", None)
    assert frame.host == "192.0.2.1"
    assert frame.descriptor not in pipe
    assert fcntl.fcntl(frame.descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.write(frame.descriptor, b"x")
    os.close(frame.descriptor)
    assert os.read(pipe[0], 2) == b"x"


def test_sender_keeps_its_descriptor(channel: tuple[_socket.socket, _socket.socket], pipe: tuple[int, int]) -> None:
    """Sending closes nothing: the same descriptor can be sent again, and arrives in the order sent."""
    for bind in range(5):
        handoff.send(channel[0], handoff.encode(bind), pipe[0])
    receiver = handoff.Receiver(channel[1])
    for bind in range(5):
        frame = receiver.receive()
        assert frame is not None
        assert frame.bind == bind
        os.close(frame.descriptor)


def test_empty_channel(channel: tuple[_socket.socket, _socket.socket]) -> None:
    """An empty channel is a BlockingIOError, even though its sockets block."""
    with pytest.raises(BlockingIOError):
        handoff.Receiver(channel[1]).receive()


def test_closed_channel(channel: tuple[_socket.socket, _socket.socket], pipe: tuple[int, int]) -> None:
    """Where nobody has the other end any more, what was sent is still received, and then there is an EOFError."""
    handoff.send(channel[0], handoff.encode(1), pipe[0])
    channel[0].close()
    receiver = handoff.Receiver(channel[1])
    frame = receiver.receive()
    assert frame is not None
    os.close(frame.descriptor)
    with pytest.raises(EOFError):
        receiver.receive()


@pytest.mark.usefixtures("_no_collection")
def test_full_channel(channel: tuple[_socket.socket, _socket.socket], pipe: tuple[int, int]) -> None:
    """A full channel is a BlockingIOError; it takes the frame once there is room again."""
    before = open_descriptors()
    message = handoff.encode(0)
    sent = fill(channel[0], message, pipe[0])
    assert sent > 10
    with pytest.raises(BlockingIOError):
        handoff.send(channel[0], message, pipe[0])
    receiver = handoff.Receiver(channel[1])
    for _ in range(sent):
        frame = receiver.receive()
        assert frame is not None
        os.close(frame.descriptor)
    handoff.send(channel[0], message, pipe[0])
    frame = receiver.receive()
    assert frame is not None
    os.close(frame.descriptor)
    assert open_descriptors() == before


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize(
    ("message", "count"),
    [
        (b"", 1),
        (b"short", 1),
        (handoff.encode(0) + b"more than it says", 1),
        (handoff.encode(0), 0),
        (handoff.encode(0), 2),
        (b"short", 2),
    ],
)
def test_malformed_message_leaks_nothing(
    channel: tuple[_socket.socket, _socket.socket], pipe: tuple[int, int], message: bytes, count: int
) -> None:
    """A message that is no frame is a FrameError, and every descriptor it brought is closed."""
    channel[0].sendmsg([message], rights(*[pipe[0]] * count) if count else [])
    before = open_descriptors()
    with pytest.raises(handoff.FrameError):
        handoff.Receiver(channel[1]).receive()
    assert open_descriptors() == before


@pytest.mark.usefixtures("_no_collection")
def test_too_many_descriptors_leak_nothing(
    channel: tuple[_socket.socket, _socket.socket], pipe: tuple[int, int]
) -> None:
    """Of more descriptors than there is room for, those that do arrive are closed."""
    channel[0].sendmsg([handoff.encode(0)], rights(*[pipe[0]] * 9))
    before = open_descriptors()
    assert handoff.Receiver(channel[1]).receive() is None
    assert open_descriptors() == before


NO_DESCRIPTORS_LEFT = """
import _socket, os, resource
from socket import AF_UNIX, SOCK_SEQPACKET
from sticky_session import handoff

sender, taker = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
receiver = handoff.Receiver(taker)
for bind in (1, 2):
    handoff.send(sender, handoff.encode(bind), 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
print(receiver.receive())
os.close(taken.pop())
print(receiver.receive().bind)
"""


def test_no_descriptors_left() -> None:
    """A frame whose descriptor the kernel had to drop is None, and the next one arrives when there is room again."""
    finished = subprocess.run([sys.executable, "-c", NO_DESCRIPTORS_LEFT], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["None", "2"]
