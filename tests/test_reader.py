"""Reading a connection: each byte once, in however many pieces it arrives, and no more memory than has arrived."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session.handoff import MAX_DATA_BYTES
from sticky_session.identify import MAX_HEAD_BYTES
from sticky_session.reader import BUFFER_BYTES, PIECE_BYTES, Reader

PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
READS = st.lists(st.tuples(st.sampled_from(["read", "readline"]), st.integers(1, 30)))


class Connection:
    """A connection on which bytes arrive in pieces.

    :ivar asked: how much was wanted at a time
    """

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = list(pieces)
        self.asked: list[int] = []

    def receive(self, size: int) -> bytes:
        self.asked.append(size)
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if piece[size:]:
            self._pieces.insert(0, piece[size:])
        return piece[:size]


@given(data=st.binary(max_size=50), pieces=PIECES, reads=READS)
def test_everything_is_read_once(data: bytes, pieces: list[bytes], reads: list[tuple[str, int]]) -> None:
    """However it is read: first what was received before, then the connection, each byte once, and lines end at LF."""
    reader = Reader(Connection(pieces), data)
    everything = data + b"".join(pieces)
    for how, size in reads:
        want = everything[:size]
        if how == "readline":
            want = want[: want.find(b"\n") + 1 or None]
        assert getattr(reader, how)(size) == want
        everything = everything[len(want) :]
    assert reader.read(1000) == everything
    assert not reader


@given(data=st.binary(max_size=50), pieces=PIECES, sizes=st.lists(st.integers(1, 30)), hops=st.integers(1, 4))
def test_nothing_is_left_behind(data: bytes, pieces: list[bytes], sizes: list[int], hops: int) -> None:
    """A connection that goes on from worker to worker, each of which reads a little, arrives with every byte."""
    connection = Connection(pieces)
    everything = data + b"".join(pieces)
    found = b""
    for hop in range(hops):
        here = Reader(connection, data)
        for size in sizes[hop::hops]:
            found += here.read(size)
        data = here.left
        assert bool(here) == bool(data)
    assert found + Reader(connection, data).read(1000) == everything


def test_peek() -> None:
    """What has been received is not waited for, and stays; at the end there is nothing."""
    connection = Connection([b"ab", b"cd"])
    reader = Reader(connection)
    assert not reader
    assert reader.peek() == b"ab" == reader.peek()
    reader.read(1)
    assert reader.peek() == b"b"
    reader.feed(b"x")
    assert reader.read(2) == b"bx"
    assert reader.peek() == b"cd"
    assert reader.read(2) == b"cd"
    assert reader.peek() == b""


@pytest.mark.parametrize("how", ["peek", "read", "readline"])
def test_a_frame_has_room_for_the_largest_head(how: str) -> None:
    """The head, and what was received with its last byte."""
    assert MAX_HEAD_BYTES + BUFFER_BYTES <= MAX_DATA_BYTES
    reader = Reader(Connection([os.urandom(BUFFER_BYTES // 2) + b"\n", b"x" * 10 * BUFFER_BYTES]))
    for _ in range(2):
        getattr(reader, how)(*([] if how == "peek" else [BUFFER_BYTES]))
    assert len(reader.left) <= BUFFER_BYTES


def test_a_claim_takes_no_memory() -> None:
    """However much is wanted, so much is not asked for at once."""
    connection = Connection([b"abc"])
    assert Reader(connection).read(1 << 30) == b"abc"
    assert max(connection.asked) == PIECE_BYTES
