"""Request heads: what is taken, what it means, and what is refused with which status."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import corpus
from sticky_session.headreader import read_head
from sticky_session.request import REASONS, BadRequest, Head, Limits, error_response, parse

LIMITS = Limits(line=4094, fields=100, field_size=8190)
UNLIMITED = Limits(line=0, fields=32768, field_size=0)


def parse_lines(*lines: str, limits: Limits = LIMITS, underscores: str = "drop") -> Head:
    return parse("\r\n".join(lines), limits, underscores)


def get(*fields: str, underscores: str = "drop") -> Head:
    """The head of a GET with these fields after its Host."""
    return parse_lines("GET / HTTP/1.1", "Host: a", *fields, underscores=underscores)


def status_of(head: str, limits: Limits = LIMITS, underscores: str = "drop") -> int:
    """The status that a head is refused with; 200 if it is taken."""
    try:
        parse(head, limits, underscores)
    except BadRequest as error:
        return error.status
    return 200


# --- the request line


def test_head() -> None:
    """A head is taken apart into what an app and the logs need."""
    head = parse_lines(
        "POST /caf%C3%A9/a%2Fb?q=1&r=%20?# HTTP/1.1", "Host: a.example:80", "content-length:3", "X-A:\t b c \t"
    )
    assert (head.method, head.version) == ("POST", "HTTP/1.1")
    assert head.target == "/caf%C3%A9/a%2Fb?q=1&r=%20?#"
    assert (head.path, head.query) == ("/caf%C3%A9/a%2Fb", "q=1&r=%20?#")
    assert head.fields == [("Host", "a.example:80"), ("content-length", "3"), ("X-A", "b c")]
    assert head.environ == {"HTTP_HOST": "a.example:80", "CONTENT_LENGTH": "3", "HTTP_X_A": "b c"}
    assert (head.content_length, head.chunked, head.keep_alive, head.expects_continue) == (3, False, True, False)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET / HTTP/1.1", 200),
        ("GET / HTTP/1.0", 200),
        ("get / HTTP/1.1", 200),  # another method, and not ours to judge (RFC 9110 section 9.1)
        ("M-SEARCH /* HTTP/1.1", 200),
        ("!#$%&'*+-.^_`|~ / HTTP/1.1", 200),
        ("OPTIONS * HTTP/1.1", 200),
        ("GET //a//b HTTP/1.1", 200),
        ("GET /\xe9 HTTP/1.1", 200),
        ('GET /{}|\\^"<> HTTP/1.1', 200),  # not in RFC 3986, and sent by browsers
        ("", 400),
        ("GET", 400),
        ("GET /", 400),  # HTTP/0.9
        ("GET  / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        (" GET / HTTP/1.1", 400),
        ("GET\t/\tHTTP/1.1", 400),
        ("GET / a HTTP/1.1", 400),
        ("GET /\0 HTTP/1.1", 400),
        ("GET /\x7f HTTP/1.1", 400),
        ("GET /\t HTTP/1.1", 400),
        ("GET /\r HTTP/1.1", 400),
        ("GET /\n HTTP/1.1", 400),
        ("GET / HTTP/1.1\n", 400),
        ("GET / HTTP/1.1\r", 400),
        ("G\xc9T / HTTP/1.1", 400),
        ("GET: / HTTP/1.1", 400),
        ("(GET) / HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET ?a HTTP/1.1", 400),
        ("GET *a HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),  # only OPTIONS has the asterisk form (RFC 9112 section 3.2.4)
        ("CONNECT a:443 HTTP/1.1", 501),
        ("CONNECT / HTTP/1.1", 501),
        ("connect / HTTP/1.1", 200),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/1.2", 200),
        ("GET / HTTP/0.9", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/1.10", 400),
        ("GET / HTTP/11", 400),
        ("GET / http/1.1", 400),
        ("GET / HTTP/1.1x", 400),
        ("GET / HTTP/1.\N{SUPERSCRIPT ONE}", 400),
        ("GET / HTTPS/1.1", 400),
        ("GET / RTSP/1.0", 400),
    ],
)
def test_request_line(line: str, status: int) -> None:
    """RFC 9112 section 3: one method, one target, one version, one space between them."""
    assert status_of(f"{line}\r\nHost: a") == status


@pytest.mark.parametrize("version", ["HTTP/1.2", "HTTP/1.9"])
def test_higher_minor_version(version: str) -> None:
    """RFC 9110 section 6.2: a higher minor version is read as the highest one known, its duties included."""
    head = parse_lines(f"POST / {version}", "Host: a", "Transfer-Encoding: chunked", "Expect: 100-continue")
    assert (head.version, head.keep_alive, head.chunked, head.expects_continue) == ("HTTP/1.1", True, True, True)
    assert status_of(f"GET / {version}") == 400


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("http://b/c?d", "b", "/c", "d"),
        ("http://b", "b", "/", ""),
        ("http://b?d", "b", "/", "d"),
        ("HTTPS://b:8443/", "b:8443", "/", ""),
        ("http://[::1]:80//c", "[::1]:80", "//c", ""),
        ("http://b/http://c/", "b", "/http://c/", ""),
    ],
)
def test_absolute_form(target: str, host: str, path: str, query: str) -> None:
    """RFC 9112 section 3.2.2: the host in the target stands above the Host field; the target is kept as sent."""
    head = parse_lines(f"GET {target} HTTP/1.1", "Host: a")
    assert (head.environ["HTTP_HOST"], head.path, head.query) == (host, path, query)
    assert (head.target, head.scheme) == (target, target.partition(":")[0].lower())


@pytest.mark.parametrize(
    "target",
    [
        "http:///",
        "http://",
        "http://?a",
        "http:/b/c",
        "http:b",
        "//",
        "1http://b/",
        "://b/",
        "http://u@b/",
        "http://:80/",
    ],
)
def test_bad_absolute_form(target: str) -> None:
    """A target in absolute form has a scheme and a host (RFC 9110 section 4.2), and no password in it."""
    expected = 200 if target.startswith("/") else 400
    assert status_of(f"GET {target} HTTP/1.1\r\nHost: a") == expected


# --- Host


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: a", 200),
        ("GET / HTTP/1.1\r\nhost:a:80", 200),
        ("GET / HTTP/1.1\r\nHost:", 200),  # empty where the target has no authority (RFC 9110 section 7.2)
        ("GET / HTTP/1.1\r\nHost: [::1]:80", 200),
        ("GET / HTTP/1.1\r\nHost: a_b.example", 200),
        ("GET / HTTP/1.1\r\nHost: a:", 200),
        ("GET / HTTP/1.1\r\nHost: :80", 200),
        ("GET / HTTP/1.1\r\nHost: a%2Db", 200),
        ("GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]", 200),
        ("GET / HTTP/1.1\r\nHost: a:b", 400),
        ("GET / HTTP/1.1\r\nHost: a:80:90", 400),
        ("GET / HTTP/1.1\r\nHost: ::1", 400),
        ("GET / HTTP/1.1\r\nHost: [::1", 400),
        ("GET / HTTP/1.1\r\nHost: []", 400),
        ("GET / HTTP/1.1\r\nHost: [::1]a", 400),
        ("GET / HTTP/1.1\r\nHost: a%2", 400),
        ("GET / HTTP/1.1", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nhOST: b", 400),
        ("GET / HTTP/1.1\r\nHost: a b", 400),
        ("GET / HTTP/1.1\r\nHost: a/b", 400),
        ("GET / HTTP/1.1\r\nHost: u@a", 400),
        ("GET / HTTP/1.1\r\nHost: a\x80", 400),
        ("GET / HTTP/1.0", 200),
        ("GET / HTTP/1.0\r\nHost: a", 200),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: a", 400),
        ("GET http://b/ HTTP/1.1\r\nHost: a", 200),
        ("GET http://b/ HTTP/1.1", 400),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        ("OPTIONS * HTTP/1.1", 400),
    ],
)
def test_host(head: str, status: int) -> None:
    """RFC 9112 section 3.2: one valid Host field, which only HTTP/1.0 may lack, whatever the target's form."""
    assert status_of(head) == status


# --- fields


@pytest.mark.parametrize(
    "field",
    [
        "NoColon",
        "",
        ":",
        ": value",
        "Name : value",
        "Name\t: value",
        " Name: value",  # obs-fold, of the field before (RFC 9112 section 5.2)
        "\tName: value",
        " ",
        "Na me: value",
        "Na\0me: value",
        "Na\xefme: value",
        "Na(me: value",
        "N\nb: value",
        "Name: a\nb",
        "Name: a\rb",
        "Name: a\0b",
        "Name: a\x7f",
        "Name: a\x1b",
        "Name: a\n",
        "Name: \r",
        "Name: a\n b",
        "X: a\nTransfer-Encoding: chunked",
        "X: a\rTransfer-Encoding: chunked",
    ],
)
def test_bad_field(field: str) -> None:
    """RFC 9112 section 5, RFC 9110 section 5: a field is a token, a colon, and text without control characters."""
    assert status_of(f"GET / HTTP/1.1\r\nHost: a\r\n{field}\r\nAccept: b") == 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("X:a", "a"),
        ("X:", ""),
        ("X: \t ", ""),
        ("X:  a  b\t", "a  b"),
        ("X: a:b", "a:b"),
        ("X: \xe9\xff", "\xe9\xff"),
        ("X: a\tb", "a\tb"),
        ("x: a", "a"),
    ],
)
def test_field_value(field: str, value: str) -> None:
    """The space around a value is none of it; inside, everything is as sent, bytes beyond ASCII as latin-1."""
    assert get(field).environ["HTTP_X"] == value


def test_repeated_fields() -> None:
    """Repeated fields are joined in order (RFC 9110 section 5.3), cookies as RFC 6265 wants it; the list is as sent."""
    head = get("X-A: 1", "Cookie: a=1", "x-a: 2", "cookie: b=2", "X-A:")
    assert head.environ["HTTP_X_A"] == "1,2,"
    assert head.environ["HTTP_COOKIE"] == "a=1; b=2"
    assert head.fields[1:] == [("X-A", "1"), ("Cookie", "a=1"), ("x-a", "2"), ("cookie", "b=2"), ("X-A", "")]


def test_content_type_and_length() -> None:
    """The two fields that have no HTTP_ in the environ (PEP 3333)."""
    environ = get("Content-Type: text/plain", "Content-Length: 0").environ
    assert environ == {"HTTP_HOST": "a", "CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "0"}


def test_proxy() -> None:
    """A Proxy field becomes HTTP_PROXY in the environ of the app, and nothing else's (CVE-2016-5385)."""
    assert get("Proxy: http://evil").environ["HTTP_PROXY"] == "http://evil"


# --- underscores


def test_underscores_dropped() -> None:
    """By default a name with an underscore can't pose as the one with a hyphen, and stays in the list for the logs."""
    head = get("X_Forwarded_For: evil", "X-Forwarded-For: good", "Host_: x")
    assert head.environ == {"HTTP_HOST": "a", "HTTP_X_FORWARDED_FOR": "good"}
    assert ("X_Forwarded_For", "evil") in head.fields


def test_underscores_refused() -> None:
    """header_map=refuse answers them with 400."""
    assert status_of("GET / HTTP/1.1\r\nHost: a\r\nX_A: b", underscores="refuse") == 400
    assert status_of("GET / HTTP/1.1\r\nHost: a\r\nX-A: b_c", underscores="refuse") == 200


def test_underscores_dangerous() -> None:
    """header_map=dangerous takes them for hyphens."""
    assert get("X_A: 1", "X-A: 2", underscores="dangerous").environ["HTTP_X_A"] == "1,2"


@pytest.mark.parametrize("underscores", ["drop", "refuse"])
@pytest.mark.parametrize("allowed", ["SCRIPT_NAME", "*"])
def test_underscores_allowed(underscores: str, allowed: str) -> None:
    """A trusted peer may send the names of forwarder_headers, in any case."""
    head = parse("GET / HTTP/1.1\r\nHost: a\r\nScript_Name: /b", LIMITS, underscores, frozenset({allowed}))
    assert head.environ["HTTP_SCRIPT_NAME"] == "/b"


@pytest.mark.parametrize(
    "field", ["Transfer_Encoding: chunked", "Content_Length: 5", "Transfer-Encoding_: x", "Content-_Length: 5"]
)
@pytest.mark.parametrize("underscores", ["drop", "dangerous"])
def test_underscores_never_frame(field: str, underscores: str) -> None:
    """No other server takes a name with an underscore for the body's length, so we never do."""
    with contextlib.suppress(BadRequest):
        head = get(field, underscores=underscores)
        assert (head.content_length, head.chunked) == (None, False)


@pytest.mark.parametrize("field", ["Host_: b", "Ho_st: b", "_Host: b"])
def test_underscores_never_host(field: str) -> None:
    """An underscore makes no second Host."""
    assert get(field, underscores="dangerous").environ["HTTP_HOST"] == "a"


# --- the body's length


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", 400),
        ("Content-Length: 5\r\nContent-Length: 5", 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("Content-Length: 5, 5", 400),
        ("Content-Length: 5,6", 400),
        ("Content-Length:", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: -5", 400),
        ("Content-Length: 5.0", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length: 5 5", 400),
        ("Content-Length: 5_0", 400),
        ("Content-Length: \xb2", 400),
        ("Content-Length: 5;", 400),
        ("Content-Length: 1e3", 400),
        ("Content-Length: 18446744073709551616", 400),
        ("Content-Length : 5", 400),
        ("Content-Length\t: 5", 400),
        ("\tContent-Length: 5", 400),
        ("Transfer-Encoding: identity", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", 501),
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: chunked, chunked", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400),
        ("Transfer-Encoding: xchunked", 400),
        ("Transfer-Encoding: chunked;q=1", 400),
        ('Transfer-Encoding: "chunked"', 400),
        ("Transfer-Encoding: 'chunked'", 400),
        ("Transfer-Encoding:", 400),
        ("Transfer-Encoding: ,chunked", 400),
        ("Transfer-Encoding: \x0bchunked", 400),
        ("Transfer-Encoding : chunked", 400),
        ("Transfer-Encoding\0: chunked", 400),
        (" Transfer-Encoding: chunked", 400),
        ("X: a\n Transfer-Encoding: chunked", 400),
        ("Transfer-Encoding:\r\n chunked", 400),
    ],
)
def test_smuggling(fields: str, status: int) -> None:
    """RFC 9112 sections 6.3 and 11.2: a length that another server might read differently is refused."""
    assert status_of(f"POST / HTTP/1.1\r\nHost: a\r\n{fields}") == status


@pytest.mark.parametrize(
    ("field", "length", "chunked"),
    [
        ("Accept: b", None, False),
        ("Content-Length: 0", 0, False),
        ("Content-Length: 5", 5, False),
        ("Content-Length:\t005 ", 5, False),
        ("Content-Length: 999999999999999999", 10**18 - 1, False),
        ("Transfer-Encoding: chunked", None, True),
        ("Transfer-Encoding: CHUNKED", None, True),
        ("transfer-encoding:chunked\t", None, True),
    ],
)
def test_body_length(field: str, length: int | None, chunked: bool) -> None:
    """The two ways to tell a body's length."""
    head = parse_lines("POST / HTTP/1.1", "Host: a", field)
    assert (head.content_length, head.chunked) == (length, chunked)


def test_chunked_in_http_1_0() -> None:
    """RFC 9112 section 6.1: Transfer-Encoding in HTTP/1.0 is a faulty message."""
    assert status_of("POST / HTTP/1.0\r\nTransfer-Encoding: chunked") == 400


# --- the connection


@pytest.mark.parametrize(
    ("version", "fields", "keep_alive"),
    [
        ("1.1", (), True),
        ("1.1", ("Connection: close",), False),
        ("1.1", ("Connection: Close",), False),
        ("1.1", ("Connection: upgrade , close",), False),
        ("1.1", ("Connection: upgrade", "Connection: close"), False),
        ("1.1", ("Connection: keep-alive, close",), False),
        ("1.1", ("Connection: closed",), True),
        ("1.1", ("Connection:",), True),
        ("1.0", (), False),
        ("1.0", ("Connection: keep-alive",), True),
        ("1.0", ("Connection: Keep-Alive",), True),
        ("1.0", ("Connection: keep-alive, close",), False),
        ("1.0", ("Connection: upgrade",), False),
    ],
)
def test_keep_alive(version: str, fields: tuple[str, ...], keep_alive: bool) -> None:
    """RFC 9112 section 9.3: close is stronger than everything, then comes the version."""
    assert parse_lines(f"GET / HTTP/{version}", "Host: a", *fields).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("version", "value", "expected"),
    [
        ("1.1", "100-continue", True),
        ("1.1", "100-Continue", True),
        ("1.1", "100-continue, 100-continue,", True),
        ("1.1", "", False),
        ("1.0", "100-continue", False),  # RFC 9110 section 10.1.1
        ("1.0", "nonsense", False),
    ],
)
def test_expect(version: str, value: str, expected: bool) -> None:
    """A client of HTTP/1.1 can wait for 100; one of HTTP/1.0 can't."""
    head = parse_lines(f"POST / HTTP/{version}", "Host: a", "Content-Length: 1", f"Expect: {value}")
    assert head.expects_continue is expected


@pytest.mark.parametrize("value", ["200-ok", "100-continue, foo", "100"])
def test_bad_expect(value: str) -> None:
    """An expectation that nobody knows is 417."""
    assert status_of(f"POST / HTTP/1.1\r\nHost: a\r\nExpect: {value}") == 417


# --- limits


@pytest.mark.parametrize(("size", "status"), [(4094, 200), (4095, 414)])
def test_limit_of_line(size: int, status: int) -> None:
    """limit_request_line is the longest request line taken."""
    line = "GET /" + "a" * (size - len("GET / HTTP/1.1")) + " HTTP/1.1"
    assert len(line) == size
    assert status_of(f"{line}\r\nHost: a") == status


@pytest.mark.parametrize(("count", "status"), [(100, 200), (101, 431)])
def test_limit_of_fields(count: int, status: int) -> None:
    """limit_request_fields is the largest number of fields taken."""
    assert status_of("\r\n".join(["GET / HTTP/1.1", "Host: a", *["X: a"] * (count - 1)])) == status


@pytest.mark.parametrize(("size", "status"), [(8190, 200), (8191, 431)])
def test_limit_of_field_size(size: int, status: int) -> None:
    """limit_request_field_size is the longest field taken, its name and all."""
    assert status_of("GET / HTTP/1.1\r\nHost: a\r\nX: " + "a" * (size - 3)) == status


def test_no_limits() -> None:
    """A limit of 0 is none."""
    head = "GET /" + "a" * 100_000 + " HTTP/1.1\r\nHost: a\r\nX: " + "a" * 100_000
    assert status_of(head, UNLIMITED) == 200


@given(line=st.integers(20, 8190), fields=st.integers(1, 200), field_size=st.integers(10, 8190))
def test_head_bytes(line: int, fields: int, field_size: int) -> None:
    """head_bytes is exactly the size of the largest head within the limits."""
    limits = Limits(line, fields, field_size)
    start = "GET /" + "a" * (line - len("GET / HTTP/1.1")) + " HTTP/1.1"
    others = ["X: " + "a" * (field_size - 3)] * (fields - 1)
    head = "\r\n".join([start, "Host: " + "a" * (field_size - 6), *others])
    assert status_of(head, limits) == 200
    assert len(head + "\r\n\r\n") == limits.head_bytes


@pytest.mark.parametrize("limits", [Limits(0, 100, 8190), Limits(4094, 100, 0), UNLIMITED])
def test_head_bytes_without_limits(limits: Limits) -> None:
    """Where there is no limit, a head still has at most a megabyte."""
    assert limits.head_bytes == 1 << 20


# --- errors


@pytest.mark.parametrize("status", sorted(REASONS))
def test_error_response(status: int) -> None:
    """An error is a complete response after which the connection closes."""
    head, _, body = error_response(status).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == f"HTTP/1.1 {status} {REASONS[status]}".encode()
    assert b"Connection: close" in lines
    assert f"Content-Length: {len(body)}".encode() in lines
    assert any(line.startswith(b"Date: ") and line.endswith(b" GMT") for line in lines)
    assert error_response(status, to_head=True).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        "G" * 3000 + "\0 / HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: a\r\n" + "\xff" * 3000 + ": b",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: " + "9" * 3000,
        "GET / HTTP/1.1\r\nHost: a\r\nX: " + "\0" * 3000,
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: " + "x" * 3000,
        "GET / HTTP/1.1\r\nHost: a\r\n" + "x" * 3000,
    ],
)
def test_error_message(head: str) -> None:
    """The log line about a client's mistake is short and printable, whatever the client sent."""
    with pytest.raises(BadRequest) as caught:
        parse(head, LIMITS)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


# --- the corpus


@pytest.mark.parametrize("section", corpus.sections())
def test_corpus(section: str) -> None:
    """What the worker refuses or takes by the corpus, the parser refuses or takes, as far as it depends on the head."""
    wrong = [(case.name, status) for case in corpus.sections()[section] if (status := misjudged(case))]
    assert not wrong


def misjudged(case: corpus.Case) -> str:
    """What the first head of a case is answered with, if that can't be what the corpus expects."""
    expected = case.ours.outcome.split()[0]
    reader = io.BufferedReader(io.BytesIO(b"".join(case.pieces)))
    try:
        raw = read_head(reader, LIMITS) if reader.peek(1) else None
        head = None if raw is None else parse(str(raw[:-4], "latin-1"), LIMITS)
    except BadRequest as error:
        return "" if str(error.status) == expected else str(error.status)
    if head is None:
        return "" if expected == "close" else "close"
    # The body is to be refused, or the handshake of a WebSocket.
    later = expected == "400" and (head.chunked or head.content_length or "HTTP_UPGRADE" in head.environ)
    return "" if later or expected not in {"400", "414", "417", "431", "501", "505", "close"} else "taken"


# --- anything

TOKENS = st.sampled_from(
    [
        "GET", "POST", "/", "*", "?", "#", "%", "http://", "a", "HTTP/1.1", "HTTP/1.0", "HTTP/9.9", " ", "\t", "\r\n",
        "\r", "\n", ":", ",", ";", "_", "Host: a", "Host", "Content-Length: 5", "Content-Length", "Transfer-Encoding",
        "chunked", "Transfer-Encoding: chunked", "Connection: close", "Expect: 100-continue", "\0", "\xff", "X-A: b",
        "X_A: b",
    ]
)  # fmt: skip
HEADS = st.one_of(
    st.lists(TOKENS, max_size=20).map("".join),
    st.lists(TOKENS, max_size=20).map(lambda tokens: "GET / HTTP/1.1\r\nHost: a\r\n" + "".join(tokens)),
    st.binary(max_size=200).map(lambda data: data.decode("latin-1")),
)


@given(head=HEADS, underscores=st.sampled_from(["drop", "refuse", "dangerous"]))
@example(head="", underscores="drop")
def test_any_head(head: str, underscores: str) -> None:
    """Whatever a client sends, it is parsed, or a BadRequest with a status that can be answered."""
    status = status_of(head, LIMITS, underscores)
    if status != 200:
        assert status in REASONS
        return
    parsed = parse(head, LIMITS, underscores)
    assert parsed.path.startswith("/") or parsed.path == "*"
    assert not (parsed.chunked and parsed.content_length is not None)
    # No line break and no NUL gets into the app, the logs, or a proxy's request behind it.
    for text in (parsed.method, parsed.target, *parsed.environ.values(), *sum(parsed.fields, ())):
        assert not set(text) & {"\r", "\n", "\0"}
