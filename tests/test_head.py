"""The beginning of a request: whose it is, told from the head and from nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from properties import check_head
from sticky_session.forwarded import ClientHeader
from sticky_session.head import AddressFinder, Answer, Verdict

LINE = b"GET / HTTP/1.1\r\n"
HOST = b"Host: a\r\n"
CLIENT = b"X-Forwarded-For: 192.0.2.1\r\n"
OTHER = b"X-Forwarded-For: 198.51.100.9\r\n"
# What heads, and what is none, are made of.
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [LINE, b"GET / HTTP/1.0\n", b"POST /X-Forwarded-For:1.1.1.1 HTTP/1.1\r\n", HOST, CLIENT, OTHER]
        ),
        st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b'"', b"\r\n\r\n", b"\n\n", b"\r\n ", b"\0"]),
        st.sampled_from([b"X-Forwarded-For", b"x-forwarded-for:", b"192.0.2.7", b"Forwarded:for=192.0.2.5"]),
        st.binary(max_size=3),
    ),
    max_size=10,
).map(b"".join)


def find(data: bytes, name: str = "X-Forwarded-For", hop: str | int = "first", limit: int = 1 << 16) -> Answer:
    """The answer to bytes that arrive at once; and how they are cut must make no difference."""
    check_head(data, range(len(data)), limit, name)
    return AddressFinder(ClientHeader(name, hop), limit).reader().feed(data)


# --- the address


@pytest.mark.parametrize(
    "fields",
    [
        CLIENT,
        HOST + CLIENT,
        CLIENT + HOST,
        b"x-forwarded-for:192.0.2.1\r\n",
        b"X-FORWARDED-FOR:\t 192.0.2.1:80 \t\r\n",
        b"X-Forwarded-For: 192.0.2.1, 198.51.100.9\r\n",
        CLIENT + HOST + OTHER,
        CLIENT + OTHER,
        b"X-Forwarded-For:\r\n" + CLIENT,
        b"X-Forwarded-For: ,\r\n" + HOST + CLIENT,
        b"X-Forwarded-For:\r\n 192.0.2.1\r\n",
        b"X-Forwarded-For: \r\n\t\r\n  192.0.2.1,\r\n 198.51.100.9\r\n",
        b"A: b\r\n c\r\n" + CLIENT,
        b"A:\r\n" + CLIENT,
        b'X-Forwarded-For: "192.0.2.1"\r\n',
        # Fields that the worker refuses, and that are not this header.
        b"no colon\r\n" + CLIENT,
        b": no name\r\n" + CLIENT,
        b"A: \xff\0\r\n" + CLIENT,
        b"\r\r\r\n" + CLIENT,
        b" \r\n" + CLIENT,
    ],
)
@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n\r\n\n"])
def test_found(fields: bytes, newline: bytes, before: bytes) -> None:
    """The header is found wherever it is in the head, however it is written."""
    data = before + (LINE + fields + b"\r\n").replace(b"\r\n", newline)
    assert find(data) == "192.0.2.1"
    assert find(data + b"body") == "192.0.2.1"


@pytest.mark.parametrize(
    "head",
    [
        LINE + HOST,
        b"GET /?X-Forwarded-For:192.0.2.1 HTTP/1.1\r\n" + HOST,
        b"GET X-Forwarded-For:192.0.2.1 HTTP/1.1\r\n" + HOST,
        LINE + b"Cookie: X-Forwarded-For: 192.0.2.1; X-Forwarded-For=192.0.2.1\r\n",
        LINE + b"A: \rX-Forwarded-For: 192.0.2.1\r\n",
        LINE + b"A:\r\n X-Forwarded-For: 192.0.2.1\r\n",
        LINE + b"A: b\r\n\tX-Forwarded-For: 192.0.2.1\r\n",
        LINE + b" X-Forwarded-For: 192.0.2.1\r\n",
        LINE + b"X-Forwarded-For : 192.0.2.1\r\n",
        LINE + b"X-Forwarded-For\t: 192.0.2.1\r\n",
        LINE + b"X-Forwarded-For\r\n : 192.0.2.1\r\n",
        LINE + b"X-Forwarded-For\r\n",
        LINE + b"X-Forwarded-For 192.0.2.1\r\n",
        LINE + b"X-Forwarded-For=192.0.2.1\r\n",
        LINE + b"X-Forwarded-For-Foo: 192.0.2.1\r\n",
        LINE + b"My-X-Forwarded-For: 192.0.2.1\r\n",
        LINE + b"\0X-Forwarded-For: 192.0.2.1\r\n",
        LINE + b"X_Forwarded_For: 192.0.2.1\r\n",
        LINE + b"X-Forwarded_For: 192.0.2.1\r\n",
        LINE + b"X.Forwarded.For: 192.0.2.1\r\n",
        LINE + b"Forwarded: for=192.0.2.1\r\n",
        LINE + b"X-Forwarded-For:\r\n",
        LINE + b"X-Forwarded-For: unknown, 192.0.2.1\r\n",
        LINE + b"X-Forwarded-For: _hidden\r\n" + CLIENT,
        LINE + b"X-Forwarded-For: caf\xe9.example\r\n",
        LINE + b"X-Forwarded-For: 192.0.\r\n 2.1\r\n",
        LINE,
        LINE + LINE + HOST,
    ],
)
@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
@pytest.mark.parametrize("body", [b"", OTHER + b"\r\n", OTHER + b"\n", LINE + OTHER + b"\r\n"])
def test_not_found(head: bytes, newline: bytes, body: bytes) -> None:
    """The name means nothing in a target, a cookie, another name, another field or the body."""
    assert find((head + b"\r\n").replace(b"\r\n", newline) + body) is Verdict.PEER


@pytest.mark.parametrize("empty", [b"\r\n", b"\n"])
@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
def test_first_empty_line(newline: bytes, empty: bytes) -> None:
    """The first empty line ends the head, whichever line end it has."""
    after = OTHER + b"\r\n\r\n"
    assert find(b"GET / HTTP/1.1" + newline + b"A: b" + newline + empty + after) is Verdict.PEER
    assert find(b"GET / HTTP/1.1" + newline + empty + after) is Verdict.PEER


def test_other_headers() -> None:
    """Any header can be the one, and Forwarded has its own syntax."""
    head = LINE + CLIENT + b"CF-Connecting-IP: 203.0.113.1\r\nforwarded: for=203.0.113.2\r\nX.Y: 203.0.113.3\r\n\r\n"
    assert find(head, name="cf-connecting-ip") == "203.0.113.1"
    assert find(head, name="Forwarded") == "203.0.113.2"
    assert find(head, name="X.Y") == "203.0.113.3"
    assert find(head, name="XaY") is Verdict.PEER
    assert find(head.replace(b"X.Y", b"XaY"), name="X.Y") is Verdict.PEER


def test_hop() -> None:
    """The entries of repeated fields are one list, in order."""
    head = LINE + CLIENT + HOST + b"X-Forwarded-For: 203.0.113.1, 203.0.113.2\r\n\r\n"
    assert [find(head, hop=hop) for hop in ("last", 1, 2, 3, 4)] == [
        "203.0.113.2",
        "203.0.113.2",
        "203.0.113.1",
        "192.0.2.1",
        Verdict.PEER,
    ]


# --- when


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
def test_no_answer_before_the_end(newline: bytes) -> None:
    """The header may come again, so nothing is said before the empty line, and then at once."""
    data = b"\r\n" + (LINE + CLIENT + HOST + b"\r\n").replace(b"\r\n", newline)
    reader = AddressFinder(ClientHeader("X-Forwarded-For", "first"), 1 << 16).reader()
    for cut in range(len(data)):
        assert reader.feed(data[:cut]) is Verdict.MORE
    assert reader.feed(data) == "192.0.2.1"
    # It stays, whatever else comes.
    assert reader.feed(data + OTHER + b"\r\n") == reader.answer == "192.0.2.1"


@pytest.mark.parametrize(
    ("garbage", "decided"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 1),  # a TLS ClientHello
        (b"\x80\x2e\x01\x03\x01", 1),  # of SSL 2
        (b"\0", 1),
        (b"\xff\xff", 1),
        (b" GET / HTTP/1.1\r\n", 1),
        (b"{", 1),
        (b"\r\n\r\n\0\r\nQUIT\n", 5),  # PROXY protocol version 2
        (b"\rGET / HTTP/1.1", 2),
        (b"GET\0", 4),
        (b"GET /\t", 6),
        (b"GET /\x7f", 6),
        (b"GET / \r ", 8),
        (b"GET / HTTP/1.1\r\r\n", 16),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 21),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\n", 37),
        (b"GET /\r\n", 7),  # HTTP/0.9
        (b"GET  / HTTP/1.1\n", 16),
        (b"GET / HTTP/1.1 \n", 16),
        (b"GET / HTTP/11\n", 14),
        (b"GET / FTP/1.1\n", 14),
        (b"G(T / HTTP/1.1\n", 15),
        (b"X-Forwarded-For: 192.0.2.1\r\n", 28),
    ],
)
def test_garbage(garbage: bytes, decided: int) -> None:
    """What is no HTTP is the worker's to refuse, by the peer's address, as soon as that is clear."""
    reader = AddressFinder(ClientHeader("X-Forwarded-For", "first"), 1 << 16).reader()
    for cut in range(decided):
        assert reader.feed(garbage[:cut]) is Verdict.MORE
    assert reader.feed(garbage[:decided]) is Verdict.PEER
    assert find(garbage + b"\r\n" + CLIENT + b"\r\n") is Verdict.PEER


@pytest.mark.parametrize("line", [b"GET / HTTP/1.0\r\n", b"M-SEARCH * HTTP/1.1\r\n", b"GET /\xe9 HTTP/2.0\r\n"])
def test_not_garbage(line: bytes) -> None:
    """A request line needn't be one that the worker serves."""
    assert find(line + CLIENT + b"\r\n") == "192.0.2.1"


def test_limit() -> None:
    """A head may have as many bytes as the limit says, its empty line and those before it included."""
    head = b"\r\n" + LINE + CLIENT + b"\r\n"
    for data in (head, head + b"body"):
        assert find(data, limit=len(head)) == "192.0.2.1"
        assert find(data, limit=len(head) - 1) is Verdict.TOO_LARGE
    for limit in range(3, len(head)):
        assert find(head, limit=limit) is Verdict.TOO_LARGE
        assert find(head[:limit], limit=limit) is Verdict.TOO_LARGE
        assert find(head[: limit - 1], limit=limit) is Verdict.MORE
    assert find(b"\r\n" * 50, limit=100) is Verdict.TOO_LARGE
    assert find(b"G" * 100, limit=100) is Verdict.TOO_LARGE
    # Garbage that is told in time is garbage.
    assert find(b"G" * 99 + b"\0", limit=100) is Verdict.PEER
    assert find(b"G" * 100 + b"\0", limit=100) is Verdict.TOO_LARGE


def test_large() -> None:
    """16 KiB of other headers are no obstacle."""
    fields = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 120) for number in range(128))
    data = LINE + fields + CLIENT + b"\r\n"
    assert len(data) > 16384
    reader = AddressFinder(ClientHeader("X-Forwarded-For", "first"), 1 << 16).reader()
    for cut in range(1, len(data)):
        assert reader.feed(data[:cut]) is Verdict.MORE
    assert reader.feed(data) == "192.0.2.1"


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        *((b"", piece) for piece in (b"\r\n", b"\n", b"G")),
        *((LINE, piece) for piece in (b"A:b\r\n", b" \r\n", b"X-Forwarded-For:\r\n", b",", b"\r")),
        *((LINE + b"X-Forwarded-For: ", piece) for piece in (b",", b" ", b"1")),
    ],
)
def test_linear(beginning: bytes, piece: bytes) -> None:
    """What has been looked at is not looked at again: byte by byte, a head would cost the square of its length."""
    data = beginning + piece * 1000
    reader = AddressFinder(ClientHeader("X-Forwarded-For", "first"), len(data) + 1).reader()
    assert reader.feed(data[:-100]) is Verdict.MORE
    # Control characters and empty lines, which would be noticed.
    changed = data[:1] + b"\0\n\n" * (len(data) // 3)
    for cut in range(len(data) - 100, len(data)):
        assert reader.feed(changed[: len(data) - 104] + data[len(data) - 104 : cut]) is Verdict.MORE


def test_among_others() -> None:
    """A head is read without what is around it."""
    finder = AddressFinder(ClientHeader("X-Forwarded-For", "first"), 1 << 16)
    head = (LINE + HOST + CLIENT).removesuffix(b"\r\n")
    pipelined = LINE + OTHER + b"\r\n" + head + b"\r\n\r\n" + LINE + OTHER + b"\r\n"
    start = pipelined.index(head)
    assert finder.find(pipelined, start, start + len(head)) == "192.0.2.1"
    assert finder.find(pipelined, start, start + len(LINE + HOST)) is None


# --- any bytes


@given(
    data=PIECES, cuts=st.lists(st.integers(0, 200), max_size=20), limit=st.one_of(st.integers(1, 120), st.just(9999))
)
@example(data=b"\r", cuts=[0], limit=1)
@example(data=b"\r\r\n", cuts=[1, 2], limit=9)
@example(data=LINE + b"\r", cuts=[1, 2], limit=9999)
def test_any_bytes(data: bytes, cuts: list[int], limit: int) -> None:
    """The answer is that of a simple model, however the bytes are cut and whatever follows the head."""
    check_head(data, cuts, limit)
    check_head(LINE + data + b"\r\n\r\n", cuts, limit)
    check_head(LINE + data + b"\n\n", cuts, limit, name="Forwarded")
