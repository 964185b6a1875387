"""Request bodies: every byte once, none of the next request's, and nothing taken on trust."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session.body import MAX_LINE_BYTES, MAX_TRAILER_FIELDS, PIECE_BYTES, Body, BodyError, BodyTimeoutError

NEXT = b"GET /next HTTP/1.1\r\n"
INFINITE = float("inf")

SIZES = st.one_of(st.none(), st.integers(-1, 40))
READS = st.lists(st.tuples(st.sampled_from(["read", "readline"]), SIZES), max_size=30)
PIECES = st.lists(st.sampled_from([b"a", b"bc\n", b"\n", b"\r\n", b"def", b"x" * 30]), max_size=12)


def chunks(pieces: list[bytes], *, trailer: bytes = b"") -> bytes:
    """The pieces as chunks, and the end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def plain(data: bytes) -> tuple[Body, io.BytesIO]:
    """A body with a length, and the connection it is on, with another request behind it."""
    reader = io.BytesIO(data + NEXT)
    return Body(reader, len(data)), reader


def chunked(data: bytes) -> tuple[Body, io.BytesIO]:
    """A chunked body of these bytes, and the connection."""
    reader = io.BytesIO(data + NEXT)
    return Body(reader, 0, chunked=True), reader


# --- reading


@given(pieces=PIECES, reads=READS, in_chunks=st.booleans())
def test_like_a_file(pieces: list[bytes], reads: list[tuple[str, int | None]], in_chunks: bool) -> None:
    """Whatever is read in whatever order, it is what a file would give; nothing of the next request is touched."""
    data = b"".join(pieces)
    body, reader = chunked(chunks(pieces)) if in_chunks else plain(data)
    file = io.BytesIO(data)
    for name, size in reads:
        assert getattr(body, name)(size) == getattr(file, name)(size)
    assert body.read() == file.read()
    assert body.left == 0
    assert reader.read() == NEXT


@given(pieces=PIECES, hint=SIZES, in_chunks=st.booleans())
def test_lines(pieces: list[bytes], hint: int | None, in_chunks: bool) -> None:
    """Lines are those of a file, over the borders of chunks too."""
    data = b"".join(pieces)

    def body() -> Body:
        return chunked(chunks(pieces))[0] if in_chunks else plain(data)[0]

    assert list(body()) == io.BytesIO(data).readlines()
    assert next(body(), b"") == io.BytesIO(data).readline()
    assert body().readlines(hint) == io.BytesIO(data).readlines(hint)


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES])
def test_large(size: int) -> None:
    """A body, a chunk and a line may be longer than what is read at once."""
    data = bytes(size)
    assert plain(data)[0].read() == data
    assert plain(data)[0].readline() == data
    assert chunked(chunks([data]))[0].read() == data


def test_no_body() -> None:
    """A request without a body has an empty one."""
    body, reader = plain(b"")
    assert (body.read(), body.readline(), body.readlines(), list(body), body.left) == (b"", b"", [], [], 0)
    assert reader.read() == NEXT


def test_left() -> None:
    """What nobody has read is known for a length; for chunks only once the last one has been seen."""
    body, _ = plain(b"abcdef")
    body.read(2)
    assert body.left == 4
    body, _ = chunked(chunks([b"abc"]))
    assert body.left == INFINITE
    body.read(3)
    assert body.left == INFINITE
    assert body.read(1) == b""
    assert body.left == 0


@given(pieces=PIECES, in_chunks=st.booleans())
def test_discard(pieces: list[bytes], in_chunks: bool) -> None:
    """Discarding leads to the next request."""
    body, reader = chunked(chunks(pieces)) if in_chunks else plain(b"".join(pieces))
    body.read(3)
    body.discard()
    assert body.left == 0
    assert reader.read() == NEXT


# --- chunks


@pytest.mark.parametrize(
    "data",
    [
        b"3\r\nabc\r\n0\r\n\r\n",
        b"03\r\nabc\r\n000\r\n\r\n",
        b"3;a\r\nabc\r\n0;b=c\r\n\r\n",
        b'3;a="b;c"\r\nabc\r\n0\r\n\r\n',
        b"3 \t;a\r\nabc\r\n0\t;b\r\n\r\n",
        b"3;\r\nabc\r\n0\r\n\r\n",
        b"1\r\na\r\n2\r\nbc\r\n0\r\nX: y\r\nZ:\r\n\r\n",
        b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * (MAX_TRAILER_FIELDS - 1) + b"\r\n",
    ],
)
def test_good_chunks(data: bytes) -> None:
    """RFC 9112 section 7.1: sizes in hexadecimal; extensions and trailer fields are skipped."""
    body, reader = chunked(data)
    assert body.read() == b"abc"
    assert reader.read() == NEXT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"3",
        b"3\r\n",
        b"3\r\nab",
        b"3\r\nabc",
        b"3\r\nabc\r",
        b"3\r\nabc\r\n",
        b"3\r\nabc\r\n0\r\n",
        b"3\r\nabc\r\n0\r\nX: y\r\n",
        b"x\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"1_0\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3 a\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n0\r\n\r\n",
        b"3;a\rb\r\nabc\r\n0\r\n\r\n",
        b"3;\0\r\nabc\r\n0\r\n\r\n",
        b"3;" + b"a" * MAX_LINE_BYTES + b"\r\nabc\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"3\r\nabc\r\n0\r\n\n",
        b"3\r\nabc\r\n0\r\nX y: z\r\n\r\n",
        b"3\r\nabc\r\n0\r\nno colon\r\n\r\n",
        b"3\r\nabc\r\n0\r\n X: folded\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX: a\nGET / HTTP/1.1\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX: " + b"a" * MAX_LINE_BYTES + b"\r\n\r\n",
        b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * (MAX_TRAILER_FIELDS + 1) + b"\r\n",
    ],
)
@pytest.mark.parametrize("read", [Body.read, Body.readlines, Body.discard])
def test_bad_chunks(data: bytes, read: Callable[[Body], object]) -> None:
    """Chunks that don't add up are an error, now and at every later try; the connection can't be used any more."""
    body = Body(io.BytesIO(data), 0, chunked=True)
    for _ in range(2):
        with pytest.raises(BodyError):
            read(body)
        assert body.left == INFINITE


@given(data=st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    """Whatever a client sends as chunks, there is a body, or a BodyError."""
    body = Body(io.BytesIO(data), 0, chunked=True)
    try:
        read = body.read()
    except BodyError:
        assert body.left == INFINITE
    else:
        assert read in data or len(read) < len(data)


def test_breaks_off() -> None:
    """A client that goes away before the end is an error, of the kind that frameworks expect."""
    body = Body(io.BytesIO(b"abc"), 5)
    with pytest.raises(OSError, match="went away"):
        body.read()
    assert body.left == INFINITE


@pytest.mark.parametrize("claimed", [1 << 40, 1 << 62, 10**18 - 1])
def test_claimed_length(claimed: int) -> None:
    """A length that is only claimed takes no memory."""
    for body in (
        Body(io.BytesIO(b"abc"), claimed),
        Body(io.BytesIO(b"%x\r\nabc" % (claimed & (1 << 60) - 1)), 0, chunked=True),
    ):
        with pytest.raises(BodyError):
            body.read()


# --- 100 Continue


@pytest.mark.parametrize("in_chunks", [False, True])
def test_invite(in_chunks: bool) -> None:
    """A client that waits for 100 gets it before the first byte is read, and once."""
    sent: list[str] = []
    data = chunks([b"abc"]) if in_chunks else b"abc"
    body = Body(io.BytesIO(data), 0 if in_chunks else 3, chunked=in_chunks, invite=lambda: sent.append("100"))
    assert body.awaited
    assert body.read(0) == b""
    assert sent == []
    assert body.read(1) + body.read() == b"abc"
    assert sent == ["100"]
    assert not body.awaited


def test_invite_to_nothing() -> None:
    """Where there is no body, there is nothing to wait for."""
    sent: list[str] = []
    assert Body(io.BytesIO(), 0, invite=lambda: sent.append("100")).read() == b""
    assert sent == []


@pytest.mark.parametrize("sent", [b"", b"5\r\nab"])
def test_pause(sent: bytes) -> None:
    """A client that stops sending in the middle of its body is told that it took too long."""

    class Pausing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            piece = super().read(size)
            if len(piece) < (size or 0):
                raise TimeoutError
            return piece

    body = Body(Pausing(sent), 0 if sent else 5, chunked=bool(sent))
    with pytest.raises(BodyTimeoutError) as raised:
        body.read()
    assert raised.value.status == 408
    with pytest.raises(BodyError):
        body.read()
