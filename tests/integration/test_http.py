"""The worker's HTTP side, byte by byte."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Iterator

import pytest

from harness import ADDRESS, Server, addresses, connect, descriptors, get, rss, wait_until
from wire import Answer, Wire

# Several tests want an answer before this time is up; it is long enough for a busy machine.
HEAD_SECONDS = 4
KEEP_ALIVE_SECONDS = 2
TRUSTED = "127.8.0.1"
ACCESS_LOG = '%(h)s:%({REMOTE_PORT}e)s "%(r)s" %(s)s %(B)s %({user-agent}i)s'

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two workers with an app that answers in every way."""
    arguments = ["--access-logfile", "-", "--access-logformat", ACCESS_LOG]
    arguments += ["--keep-alive", str(KEEP_ALIVE_SECONDS), "--forwarded-allow-ips", "127.8.0.0/16"]
    environment = {"STICKY_SESSION_HEAD_TIMEOUT": str(HEAD_SECONDS)}
    with Server("answers:app", workers=2, args=arguments, env=environment) as server:
        yield server


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    """A connection to it."""
    with Wire(server.port) as wire:
        yield wire


@pytest.fixture
def _unharmed(server: Server) -> Iterator[None]:
    """Whatever clients do: the same processes go on, give back memory and descriptors, and log no traceback."""
    pids = [server.arbiter_pid, server.listener_pid, *server.worker_pids.values()]
    for address in addresses(8):
        with Wire(server.port, address) as wire:
            wire.get()
    used = [descriptors(pid) for pid in pids]
    size = [rss(pid) for pid in pids]
    mark = server.mark()
    yield
    wait_until(lambda: all(descriptors(pid) <= count for pid, count in zip(pids, used, strict=True)), 20)
    for pid, before in zip(pids, size, strict=True):
        assert rss(pid) < before + 60 * MEGABYTE
    assert not server.find("Traceback", after=mark)
    assert [server.arbiter_pid, server.listener_pid, *server.worker_pids.values()] == pids


def assert_kept(wire: Wire, answer: Answer) -> None:
    """The connection stays, the answer doesn't say otherwise, and the next request gets its own answer."""
    assert not answer.closes
    assert wire.get("/list").body == b"onetwo"


def assert_closed(wire: Wire, answer: Answer) -> None:
    """The answer says that the connection closes, and it does."""
    assert answer.closes
    assert wire.ended()


# --- connections


def test_keep_alive(wire: Wire) -> None:
    """One connection serves many requests."""
    for _ in range(20):
        answer = wire.get()
        assert answer.json()["remote_addr"] == ADDRESS
        assert not answer.closes


def test_pipelining(wire: Wire) -> None:
    """Several requests in one write are answered in order, with bodies and without."""
    requests = []
    for number in range(30):
        body = b"%d" % number * number
        requests.append(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        requests.append(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
    wire.sock.sendall(b"".join(requests))
    for number in range(30):
        assert wire.answer().body == b"%d" % number * number
        assert wire.answer().body == b"/%d" % number


def test_pieces(wire: Wire) -> None:
    """A request that comes byte by byte is the same request."""
    wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc":
        wire.sock.sendall(bytes((byte,)))
    answer = wire.answer()
    assert answer.body == b"abc"
    assert_kept(wire, answer)


def test_empty_lines_before_request(wire: Wire) -> None:
    """RFC 9112 section 2.2: empty lines before a request line are ignored, also between requests."""
    for _ in range(2):
        wire.sock.sendall(b"\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.answer().body == b"/a"


def test_http_1_0(wire: Wire) -> None:
    """HTTP/1.0 closes unless asked to keep alive."""
    wire.send("GET / HTTP/1.0")
    assert_closed(wire, wire.answer())


def test_http_1_0_keep_alive(wire: Wire) -> None:
    """Asked to keep alive, it says that it does, as long as the client can tell where a body ends."""
    for path in ("/", "/list", "/echo", "/304"):
        wire.send(f"GET {path} HTTP/1.0", "Connection: keep-alive")
        assert wire.answer()["Connection"].lower() == "keep-alive"
    wire.send("GET /generator HTTP/1.0", "Connection: keep-alive")
    answer = wire.answer()
    assert answer["Transfer-Encoding"] is None
    assert answer.body == b"onetwo"
    assert_closed(wire, answer)


def test_websocket_that_nobody_uses(server: Server) -> None:
    """An app that is offered a WebSocket and neither uses it nor answers is an error, which the client is told."""
    key = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: " + "A" * 22 + "==",
    )
    with Wire(server.port) as wire:
        wire.send("GET /no-start-empty HTTP/1.1", "Host: test", *key)
        answer = wire.answer()
        assert answer.status == 500
        assert_closed(wire, answer)


@pytest.mark.parametrize("path", ["/", "/generator", "/list", "/unread", "/204", "/304", "/nowhere", "/write", "/echo"])
def test_connection_close(wire: Wire, path: str) -> None:
    """A client that says close gets its answer, the same word, and the end."""
    assert_closed(wire, wire.get(path, "Connection: close"))


@pytest.mark.parametrize("path", ["/says-close", "/says-close-in-other-words"])
def test_app_says_close(wire: Wire, path: str) -> None:
    """An app's own Connection: close is true, in capitals and among others too."""
    assert_closed(wire, wire.get(path))


def test_app_says_keep_alive(wire: Wire) -> None:
    """An app's own Connection: keep-alive is not, when the connection closes."""
    answer = wire.get("/says-keep-alive", "Connection: close")
    assert answer["Connection"].lower() == "close"
    assert wire.ended()


def test_idle_close(server: Server) -> None:
    """A kept-alive connection that stays idle for --keep-alive seconds is closed without a word; not before."""
    with Wire(server.port) as wire:
        # Before the response, from which the time runs: when it is read here it may be old.
        began = time.monotonic()
        wire.get()
        assert wire.sock.recv(1) == b""
        assert KEEP_ALIVE_SECONDS * 0.9 < time.monotonic() - began < KEEP_ALIVE_SECONDS + 10


def test_keep_alive_off() -> None:
    """--keep-alive 0 closes after every response, and says so."""
    with Server("answers:app", workers=1, args=["--keep-alive", "0"]) as server:
        for path in ("/", "/generator", "/204"):
            with Wire(server.port) as wire:
                assert_closed(wire, wire.get(path))


# --- responses


@pytest.mark.parametrize(
    ("path", "length", "body"),
    [
        ("/generator", None, b"onetwo"),
        ("/list", "6", b"onetwo"),
        ("/empty", "0", b""),
        ("/sized-generator", "6", b"onetwo"),
        ("/write", "6", b"onetwo"),
        ("/long", "4", b"long"),
        ("/big?bytes=3000000", "3000000", b"x" * 3_000_000),
        ("/nowhere", "8", b"/nowhere"),
        ("/204", None, b""),
        ("/304", None, b""),
        ("/204-body", None, b""),
        ("/304-body", None, b""),
    ],
)
def test_response(wire: Wire, path: str, length: str | None, body: bytes) -> None:
    """A response is framed so that the client knows its end, and the connection goes on."""
    answer = wire.get(path)
    assert (answer["Content-Length"], answer.body) == (length, body)
    assert answer["Date"]
    assert_kept(wire, answer)


@pytest.mark.parametrize(
    "path", ["/", "/list", "/generator", "/sized-generator", "/short", "/big?bytes=100000", "/204"]
)
def test_head(wire: Wire, path: str) -> None:
    """HEAD has no body, whatever the app returns, and the connection goes on."""
    assert_kept(wire, wire.get(path, method="HEAD"))


def test_too_little(wire: Wire) -> None:
    """An app that gives less than its Content-Length can't be told in time: the connection ends, so the client sees."""
    answer = wire.get("/short")
    assert (answer.body, answer.whole) == (b"short", False)


@pytest.mark.parametrize(
    "path",
    ["/boom", "/early", "/no-start", "/no-start-empty", "/text", "/split", "/time-limit", "/cancelled", "/reset"],
)
def test_raise_before_first_byte(server: Server, wire: Wire, path: str) -> None:
    """An app that fails before it has said anything is a 500, and its traceback is in the log."""
    mark = server.mark()
    answer = wire.get(path)
    assert answer.status == 500
    assert answer["X-B"] is None
    assert_closed(wire, answer)
    server.wait_for(f"Error handling request {path}", after=mark)
    server.wait_for("Traceback", after=mark)


@pytest.mark.parametrize(("path", "coding"), [("/passes-on", "chunked"), ("/passes-on-list", None)])
def test_app_says_transfer_encoding(wire: Wire, path: str, coding: str | None) -> None:
    """How a body is framed is the server's business: an app that names a transfer coding is not heard."""
    answer = wire.get(path)
    assert (answer["Transfer-Encoding"], answer.body) == (coding, b"one")
    assert_kept(wire, answer)


@pytest.mark.parametrize("path", ["/late", "/late-sized"])
def test_raise_after_first_byte(server: Server, wire: Wire, path: str) -> None:
    """An app that fails later breaks its response off, so that the client does not take it for a whole one."""
    mark = server.mark()
    answer = wire.get(path)
    assert (answer.status, answer.body, answer.whole) == (200, b"first", False)
    server.wait_for(f"Error handling request {path}", after=mark)


# --- request bodies


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 1_000_000])
def test_body(wire: Wire, size: int) -> None:
    """A body arrives as it was sent, and the next request is found behind it."""
    body = os.urandom(size)
    answer = wire.post("/echo", body)
    assert answer.body == body
    assert_kept(wire, answer)


@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
        (b"A;ext=1\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
        (b"3\r\nabc\r\n0\r\nX-Trailer: a\r\nX-B: b\r\n\r\n", b"abc"),
        (b"%x\r\n%b\r\n0\r\n\r\n" % (100_000, b"x" * 100_000), b"x" * 100_000),
    ],
)
def test_chunked_body(wire: Wire, chunks: bytes, body: bytes) -> None:
    """A chunked body is put together, and the next request is found behind it."""
    wire.send("POST /echo HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=chunks)
    answer = wire.answer()
    assert answer.body == body
    assert_kept(wire, answer)


@pytest.mark.parametrize(
    "chunks",
    [
        b"\r\n",
        b"x\r\nabc\r\n0\r\n\r\n",
        b"-1\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\nabc",
        b"fffffffffffffffff\r\nabc",
        b"7fffffffffffffff\r\nabc",
        b"0\r\nX y: z\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX-A: a\nGET /smuggled HTTP/1.1\r\n\r\n",
        b"3\r\nab",
        b"3;" + b"x" * 100_000,
    ],
)
@pytest.mark.usefixtures("_unharmed")
def test_bad_chunks(wire: Wire, chunks: bytes) -> None:
    """RFC 9112 section 7.1: chunks that don't add up are 400 and the end, and no error of ours."""
    wire.send("POST /echo HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=chunks)
    wire.sock.shutdown(socket.SHUT_WR)
    answer = wire.answer()
    assert answer.status == 400
    assert_closed(wire, answer)


@pytest.mark.usefixtures("_unharmed")
def test_bad_chunks_in_framework(wire: Wire) -> None:
    """A framework that makes an error of its own of what the body raises (Django does) changes nothing."""
    wire.send("POST /wrapped HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=b"x\r\n")
    answer = wire.answer()
    assert answer.status == 400
    assert_closed(wire, answer)


@pytest.mark.usefixtures("_unharmed")
def test_claimed_length(wire: Wire) -> None:
    """A body that claims to be huge takes no memory before it comes; that it never comes is 400."""
    wire.send("POST /echo HTTP/1.1", "Host: a", f"Content-Length: {10**18 - 1}", body=b"abc")
    wire.sock.shutdown(socket.SHUT_WR)
    answer = wire.answer()
    assert answer.status == 400
    assert_closed(wire, answer)


def test_body_by_lines(wire: Wire) -> None:
    """A body can be read line by line, also over the border of chunks."""
    chunks = b"4\r\na\nb1\r\n5\r\nb2\nc\n\r\n0\r\n\r\n"
    wire.send("POST /lines HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=chunks)
    answer = wire.answer()
    assert answer.body.replace(b"|", b"") == b"a\nb1b2\nc\n"
    assert_kept(wire, answer)
    assert wire.post("/lines", b"a\nb\nc").body == b"a\n|b\n|c"


def test_expect_continue(wire: Wire) -> None:
    """A client that waits for 100 gets it when the app reads, before it has sent anything of the body."""
    wire.send("POST /echo HTTP/1.1", "Host: a", "Content-Length: 3", "Expect: 100-continue")
    assert wire.answer().status == 100
    wire.sock.sendall(b"abc")
    answer = wire.answer()
    assert answer.body == b"abc"
    assert_kept(wire, answer)


def test_expect_continue_chunked(wire: Wire) -> None:
    """The same with a chunked body."""
    wire.send("POST /echo HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Expect: 100-continue")
    assert wire.answer().status == 100
    wire.sock.sendall(b"3\r\nabc\r\n0\r\n\r\n")
    answer = wire.answer()
    assert answer.body == b"abc"
    assert_kept(wire, answer)


def test_expect_continue_late(wire: Wire) -> None:
    """An app that reads after it has begun to answer: no 100 gets into the response."""
    wire.send("POST /read-late HTTP/1.1", "Host: a", "Content-Length: 3", "Expect: 100-continue", body=b"abc")
    answer = wire.answer()
    assert (answer.status, answer.body) == (200, b"firstabc")
    assert_closed(wire, answer)


@pytest.mark.parametrize("path", ["/unread", "/unread-list", "/unread-generator", "/204"])
def test_expect_continue_unread(wire: Wire, path: str) -> None:
    """An app that answers without reading: no 100, and the end, since the client may or may not send its body."""
    wire.send(f"POST {path} HTTP/1.1", "Host: a", "Content-Length: 3", "Expect: 100-continue")
    answer = wire.answer()
    assert answer.status in (200, 204)
    assert_closed(wire, answer)


@pytest.mark.parametrize("path", ["/unread", "/unread-list", "/unread-generator", "/204", "/some?bytes=5"])
@pytest.mark.parametrize("size", [10, 50_000])
def test_small_unread_body(wire: Wire, path: str, size: int) -> None:
    """A small body that the app leaves unread is not taken for the next request."""
    assert_kept(wire, wire.post(path, b"G" * size))


@pytest.mark.parametrize("path", ["/unread", "/unread-list", "/unread-generator", "/some?bytes=5"])
def test_large_unread_body(wire: Wire, path: str) -> None:
    """A large body is not waited for; the client that sends all of it before it reads still gets the answer."""
    answer = wire.post(path, bytes(10 * MEGABYTE))
    assert answer.status == 200
    assert_closed(wire, answer)


@pytest.mark.parametrize("path", ["/unread", "/unread-list", "/unread-generator"])
def test_unread_chunked_body(wire: Wire, path: str) -> None:
    """Where an unread chunked body ends isn't known: the connection ends, after the answer has been received."""
    body = (b"fffff\r\n" + bytes(0xFFFFF) + b"\r\n") * 4 + b"0\r\n\r\n"
    wire.send(f"POST {path} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=body)
    answer = wire.answer()
    assert answer.body == b"unread"
    assert_closed(wire, answer)


@pytest.mark.parametrize("size", [10, MEGABYTE])
def test_unread_body_and_close(wire: Wire, size: int) -> None:
    """A client that says close and sends a body that nobody reads gets its answer and no reset."""
    wire.send("POST /unread HTTP/1.1", "Host: a", f"Content-Length: {size}", "Connection: close")
    answer = wire.answer()
    with contextlib.suppress(BrokenPipeError):
        wire.sock.sendall(bytes(size))
    assert answer.body == b"unread"
    assert_closed(wire, answer)


def test_body_breaks_off(server: Server) -> None:
    """A client that goes away in the middle of its body is no error of the app's, and no traceback."""
    mark = server.mark()
    with Wire(server.port) as wire:
        wire.send("POST /echo HTTP/1.1", "Host: a", "Content-Length: 1000", body=b"x" * 10)
    with Wire(server.port) as wire:
        wire.get()
        wire.get("/env", "User-Agent: afterwards")
    server.wait_for("afterwards", after=mark)
    assert not server.find("Traceback", after=mark)


def test_reset_in_body(server: Server) -> None:
    """A client that resets its connection in the middle of its body is no error of the app's either."""
    mark = server.mark()
    with Wire(server.port) as wire:
        wire.send("POST /echo HTTP/1.1", "Host: a", "Content-Length: 1000", "Expect: 100-continue")
        assert wire.answer().status == 100
        wire.sock.sendall(b"x" * 10)
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.wait_for('"POST /echo HTTP/1.1" 400', after=mark)
    assert not server.find("Traceback", after=mark)


def test_client_leaves_during_response(server: Server) -> None:
    """A client that goes away in the middle of a long response is no error of anybody's."""
    mark = server.mark()
    with Wire(server.port) as wire:
        wire.send("GET /big?bytes=50000000 HTTP/1.1", "Host: a")
        wire.file.read(1000)
    server.wait_for("/big.bytes=50000000", after=mark)
    assert not server.find("Traceback", after=mark)


# --- what is refused


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"a" * MEGABYTE, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * MEGABYTE, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 200_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 8000 + b"\r\n") * 130 + b"\r\n", 431),
        (b"\r\n" * (MEGABYTE // 2), 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n X: a\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
        (b"\0", 400),
        (b"\x80\x81\xff\xfe\r\n\r\n", 400),
        (b"garbage\r\n\r\n", 400),
        (b"garbage\n", 400),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200\r\nContent-Length: 1000000\r\n\r\n" + bytes(MEGABYTE), 417),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + bytes(MEGABYTE), 501),
    ],
)
@pytest.mark.usefixtures("_unharmed")
def test_refused(wire: Wire, request_bytes: bytes, status: int) -> None:
    """What can't be served is answered at once with its status, which the client really receives, and then the end."""
    wire.sock.settimeout(HEAD_SECONDS * 0.9)
    wire.sock.sendall(request_bytes)
    answer = wire.answer()
    assert answer.status == status
    assert_closed(wire, answer)


def test_refused_after_others(wire: Wire) -> None:
    """The good requests before a bad one are answered; nothing behind it is."""
    good = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
    wire.sock.sendall(good * 2 + b"BAD\r\n\r\n" + good)
    assert [wire.answer().status for _ in range(3)] == [404, 404, 400]
    assert wire.ended()


@pytest.mark.usefixtures("_unharmed")
def test_tls_on_plain_port(server: Server) -> None:
    """A client that speaks TLS where there is none gets an error, not a wait."""
    with connect(server.port, timeout=HEAD_SECONDS * 0.9) as connection:
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(connection, server_hostname="test")


def test_head_timeout(server: Server) -> None:
    """A head that does not come in time is 408; a client that says nothing at all is just closed."""
    starts = [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n"]
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.port)) for _ in starts]
        for wire, start in zip(wires, starts, strict=True):
            wire.sock.sendall(start)
        assert wires[0].ended()
        for wire in wires[1:]:
            answer = wire.answer()
            assert answer.status == 408
            assert_closed(wire, answer)


# --- crowds


def assert_others_are_served(server: Server) -> None:
    """Clients of both workers get an answer each, over connections of their own."""
    assert {get(server.port, "/", address).json()["slot"] for address in addresses(4, start=20_000)} == {0, 1}


@pytest.mark.usefixtures("_unharmed")
def test_vanishing_clients(server: Server) -> None:
    """10,000 clients that connect and vanish, half of them by a reset, disturb nobody."""
    sources = addresses(100)
    for number in range(10_000):
        client = connect(server.port, sources[number % 100])
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        if number % 500 == 0:
            assert_others_are_served(server)


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    """Room for the clients of a crowd in the process of the tests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_unharmed", "_many_descriptors")
def test_slow_clients(server: Server) -> None:
    """1,000 clients that send one byte a second get 408, and disturb nobody."""
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = []
    with selectors.DefaultSelector() as selector:
        for address in addresses(1000):
            client = connect(server.port, address)
            client.sendall(request[:1])
            selector.register(client, selectors.EVENT_READ)
        for byte in request[1:]:
            assert_others_are_served(server)
            answers += read_for_a_second(selector)
            if not selector.get_map():
                break
            for key in list(selector.get_map().values()):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    key.fileobj.send(bytes((byte,)))  # type: ignore[union-attr]
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 408"] * 1000


def read_for_a_second(selector: selectors.BaseSelector) -> list[bytes]:
    """Take the answers of a second, and close the clients that have got theirs."""
    answers = []
    deadline = time.monotonic() + 1
    while (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            answers.append(key.fileobj.recv(1000))  # type: ignore[union-attr]
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
    return answers


@pytest.mark.usefixtures("_unharmed")
def test_greedy_client(server: Server) -> None:
    """A client that sends requests without a pause gets no more than its share: the others of its worker go on."""
    unsent = memoryview(b"GET /list HTTP/1.1\r\nHost: a\r\n\r\n" * 200_000)
    with Wire(server.port) as other, connect(server.port) as greedy, selectors.DefaultSelector() as selector:
        other.get()
        greedy.setblocking(False)
        selector.register(greedy, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while not selector.select()[0][1] & selectors.EVENT_READ:
            unsent = unsent[greedy.send(unsent[:MEGABYTE]) :]
        other.send("GET /list HTTP/1.1", "Host: a")
        selector.register(other.sock, selectors.EVENT_READ)
        ready: dict[object, int] = {}
        while other.sock not in ready:
            ready = {key.fileobj: events for key, events in selector.select(20)}
            if ready.get(greedy, 0) & selectors.EVENT_READ:
                greedy.recv(MEGABYTE)
            if ready.get(greedy, 0) & selectors.EVENT_WRITE:
                unsent = unsent[greedy.send(unsent[:MEGABYTE]) :]
        assert other.answer().body == b"onetwo"
        assert unsent, "it was served only after all the requests of the other had been"


# --- what the app and the log are told


def test_environ(server: Server, wire: Wire) -> None:
    """The environ is that of gunicorn, with the client's real address and the slot."""
    target = "/env?a=b%20c&d"
    environ = wire.get(target, "X-A: 1", "User-Agent: test").json()
    host, port = wire.sock.getsockname()
    expected = {
        "REMOTE_ADDR": host,
        "REMOTE_PORT": str(port),
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/env",
        "QUERY_STRING": "a=b%20c&d",
        "RAW_URI": target,
        "HTTP_HOST": "test",
        "HTTP_X_A": "1",
        "HTTP_USER_AGENT": "test",
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    assert {name: environ.get(name) for name in expected} == expected
    assert re.fullmatch(r"gevent/\S+ gunicorn/\S+", environ["SERVER_SOFTWARE"])
    assert environ["sticky_session.slot"] in (0, 1)
    assert "CONTENT_LENGTH" not in environ


def test_path(wire: Wire) -> None:
    """PATH_INFO is decoded once, as latin-1 for bytes (PEP 3333); RAW_URI is as sent."""
    wire.send("GET /a%2Fb%25c%C3%A9 HTTP/1.1", "Host: a")
    assert wire.answer().body.decode() == "/a/b%c\u00c3\u00a9"


def test_absolute_form(wire: Wire) -> None:
    """A target with a host in it: the host counts and the path is the path."""
    wire.send("GET http://other:81/env?q HTTP/1.1", "Host: a")
    environ = wire.answer().json()
    assert (environ["HTTP_HOST"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("other:81", "/env", "q")
    assert environ["RAW_URI"] == "http://other:81/env?q"


@pytest.mark.parametrize(
    ("address", "fields", "scheme"),
    [
        (TRUSTED, ("X-Forwarded-Proto: https",), "https"),
        (TRUSTED, ("X-Forwarded-Ssl: on",), "https"),
        (TRUSTED, ("X-Forwarded-Protocol: ssl",), "https"),
        (TRUSTED, ("X-Forwarded-Proto: http",), "http"),
        (TRUSTED, ("X_Forwarded_Proto: https",), "http"),
        (TRUSTED, (), "http"),
        (ADDRESS, ("X-Forwarded-Proto: https",), "http"),
        ("127.0.0.1", ("X-Forwarded-Proto: https",), "http"),
    ],
)
def test_scheme(server: Server, address: str, fields: tuple[str, ...], scheme: str) -> None:
    """A proxy's word on the scheme counts if it is one of forwarded_allow_ips; REMOTE_ADDR stays the peer's."""
    with Wire(server.port, address) as wire:
        environ = wire.get("/env", "X-Forwarded-For: 192.0.2.1", *fields).json()
    assert environ["wsgi.url_scheme"] == scheme
    assert environ["REMOTE_ADDR"] == address


def test_contradictory_schemes(server: Server) -> None:
    """A trusted proxy that says both is 400; of anybody else it is not even looked at."""
    fields = ("X-Forwarded-Proto: https", "X-Forwarded-Ssl: off")
    with Wire(server.port, TRUSTED) as wire:
        answer = wire.get("/env", *fields)
        assert answer.status == 400
        assert_closed(wire, answer)
    with Wire(server.port) as wire:
        assert wire.get("/env", *fields).json()["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize(
    ("address", "field", "script_name"),
    [(TRUSTED, "SCRIPT_NAME: /app", "/app"), (TRUSTED, "Script-Name: /app", ""), (ADDRESS, "SCRIPT_NAME: /app", "")],
)
def test_script_name(server: Server, address: str, field: str, script_name: str) -> None:
    """A trusted proxy may say where the app is mounted (forwarder_headers); nobody else, and not with a hyphen."""
    with Wire(server.port, address) as wire:
        environ = wire.get(f"{script_name}/env", field).json()
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, "/env")


@pytest.mark.parametrize(
    ("path", "status", "size"), [("/list", 200, 6), ("/generator", 200, 6), ("/204", 204, 0), ("/nowhere", 404, 8)]
)
def test_access_log(server: Server, wire: Wire, path: str, status: int, size: int) -> None:
    """Every request has its line in the access log, with the address and port of the peer, not of a header."""
    mark = server.mark()
    wire.get(path, "User-Agent: reader", "X-Forwarded-For: 192.0.2.1")
    host, port = wire.sock.getsockname()
    line = f'{host}:{port} "GET {path} HTTP/1.1" {status} {size} reader'
    server.wait_for(f"^{re.escape(line)}$", after=mark)
    assert len(server.find(re.escape(line), after=mark)) == 1


def test_access_log_of_failure(server: Server, wire: Wire) -> None:
    """A request whose app failed has its line too."""
    mark = server.mark()
    wire.get("/boom", "User-Agent: unlucky")
    server.wait_for(r'"GET /boom HTTP/1.1" 500 \d+ unlucky$', after=mark)


def test_log_of_invalid_request(server: Server, wire: Wire) -> None:
    """A request that can't be parsed has one line in the error log, with the peer's address."""
    mark = server.mark()
    wire.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nBad field\r\n\r\n")
    assert wire.answer().status == 400
    server.wait_for(rf"Invalid request from ip={re.escape(ADDRESS)}: .*Bad field", after=mark)


def test_worker_id(wire: Wire) -> None:
    """worker_id() in the app is the slot in the environ."""
    who = wire.get("/").json()
    assert who["slot"] == who["worker_id"]
