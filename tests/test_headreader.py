"""Reading heads: the head's bytes as they were sent, and none of what follows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session.headreader import arrived_head, read_head
from sticky_session.reader import Reader
from sticky_session.request import BadRequest, Limits

LIMITS = Limits(100, 5, 50)
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Pieces:
    """A connection on which bytes arrive in pieces of these sizes, then all that is left."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data = data
        self._sizes = list(sizes)

    def receive(self, most: int) -> bytes:
        size = min(self._sizes.pop(0) if self._sizes else most, most, len(self._data))
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def reader(data: bytes, sizes: tuple[int, ...] | list[int] = ()) -> Reader:
    return Reader(Pieces(data, list(sizes)))


def head(stream: Reader) -> bytes | None:
    """Read as a connection does."""
    return arrived_head(stream) or read_head(stream, LIMITS)


@given(sizes=st.lists(st.integers(1, 10)), empty_lines=st.integers(0, 3), behind=st.binary(max_size=30))
def test_any_pieces(sizes: list[int], empty_lines: int, behind: bytes) -> None:
    """In however many pieces it comes, the head is the same bytes, and what is behind it stays to be read."""
    stream = reader(b"\r\n" * empty_lines + HEAD + behind, sizes)
    assert head(stream) == HEAD
    assert stream.read(100) == behind


@pytest.mark.parametrize("size", range(1, len(HEAD)))
def test_breaks_off(size: int) -> None:
    """A connection that ends in the middle of a head brings none."""
    assert head(reader(HEAD[:size])) is None


@pytest.mark.parametrize(
    "data", [b"HEAD / HTTP/1.1\r\nX: " + b"x" * 60, b"HEAD / HTTP/1.1\n\n", b"HEAD /" + b"a" * 100]
)
def test_refused_with_its_beginning(data: bytes) -> None:
    """What is refused is still known by its method: the answer to HEAD has no body."""
    with pytest.raises(BadRequest) as caught:
        read_head(reader(data * 2, [3, 5]), LIMITS)
    assert caught.value.begun.startswith(b"HEAD ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"G" * 103, 414),
        (b"GET / HTTP/1.1\r\n" + b"x" * 53, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 10, 431),
        (b"\r\n" * 500, 431),
        (b"GET / HTTP/1.1\n\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
    ],
)
def test_refused(data: bytes, status: int) -> None:
    """What can't become a head within the limits is refused before its end has come."""
    with pytest.raises(BadRequest) as caught:
        head(reader(data))
    assert caught.value.status == status


def test_only_what_is_whole_has_arrived() -> None:
    """What has not arrived whole stays to be read, and is not waited for."""
    stream = reader(HEAD, [len(HEAD) - 1])
    assert arrived_head(stream) is None
    assert stream.left == HEAD[:-1]
    assert read_head(stream, LIMITS) == HEAD
