"""Kept-alive connections of proxies: every request is answered by its own client's worker, whole and in order."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness import ADDRESS, Server, descriptors, wait_until
from upstream import (
    CLIENTS,
    PROXY,
    Upstream,
    digest,
    holders,
    home,
    inode_of,
    request,
    strangers,
)
from wire import Answer, Wire

KIB = 1024
LIMIT = 48 * KIB
# What a worker reads at once.
BUFFER = 8 * KIB

CONFIG = """
import sys

def note(what, worker, req):
    path = req.uri
    if "?hook" in path:
        # In one piece: print() writes the line's end by itself, and other workers' lines could come between.
        sys.stderr.write(f"{what} {path} {worker.pid}\\n")

def pre_request(worker, req):
    note("before", worker, req)

def post_request(worker, req, environ, resp):
    note("after", worker, req)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Four workers, at a port and at a Unix socket."""
    place = tmp_path_factory.mktemp("rehoming")
    (place / "config.py").write_text(CONFIG)
    arguments = ["-c", os.fspath(place / "config.py"), "--keep-alive", "60"]
    arguments += ["--access-logfile", "-", "--access-logformat", '%({x-forwarded-for}i)s %(p)s "%(r)s" %(s)s']
    bind = ("127.0.0.1:0", f"unix:{place / 'socket'}")
    with Server("homes:app", workers=4, args=arguments, bind=bind) as server:
        server.path = place / "socket"  # type: ignore[attr-defined]
        yield server


@pytest.fixture(params=["tcp", "unix"])
def place(server: Server, request: pytest.FixtureRequest) -> Any:
    """Where a proxy connects."""
    return server.port if request.param == "tcp" else server.path  # type: ignore[attr-defined]


@pytest.fixture
def upstream(server: Server) -> Iterator[Upstream]:
    """A proxy's connection."""
    with Upstream(server.port) as upstream:
        yield upstream


@pytest.fixture(autouse=True)
def _no_traceback(server: Server) -> Iterator[None]:
    """Nothing goes wrong inside."""
    mark = server.mark()
    yield
    assert not server.find("Traceback", after=mark)


def assert_home(server: Server, answer: Answer, client: str) -> Any:
    """The answer came from the client's own worker, and the connection stays."""
    who = answer.json()
    assert who["slot"] == home(client), f"{client} belongs to {home(client)}"
    assert who["pid"] == server.worker_pids[who["slot"]]
    assert not answer.closes
    return who


def test_many_clients(server: Server, place: Any) -> None:
    """400 requests of 40 clients over one connection."""
    plan = CLIENTS * 10
    random.Random(1).shuffle(plan)
    with Upstream(place) as upstream:
        for client in plan:
            who = assert_home(server, upstream.ask(client), client)
            assert who["remote_addr"] == (PROXY if isinstance(place, int) else "")


def test_many_clients_over_many_connections(server: Server, place: Any) -> None:
    """8 connections at once, each with 150 requests of 40 clients."""

    def run(seed: int) -> None:
        plan = random.Random(seed).choices(CLIENTS, k=150)
        with Upstream(place) as upstream:
            for client in plan:
                assert_home(server, upstream.ask(client), client)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(run, seed) for seed in range(8)]:
            done.result()


# --- bodies


SIZES = [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 100 * KIB, 5_000_000]


def content(size: int) -> bytes:
    """Bytes that are nowhere the same."""
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_body_in_the_same_packet(server: Server, upstream: Upstream, kind: str, size: int) -> None:
    """Head and body are sent at once, and a worker may have read some of the body already."""
    body = content(size)
    chunks = () if kind == "length" else (1, 5, BUFFER)
    for client in strangers(8):
        upstream.sock.sendall(request(client, "/digest", body, chunks=chunks))
        assert assert_home(server, upstream.answer(), client)["digest"] == digest(body)


def test_body_that_just_fills_the_buffer(server: Server, upstream: Upstream) -> None:
    """Head and body together are a little less or more than what is read at once."""
    for number, client in enumerate(strangers(24)):
        empty = len(request(client, "/digest", b"1000")) - 4
        body = content(BUFFER - empty - 12 + number)
        upstream.sock.sendall(request(client, "/digest", body))
        assert assert_home(server, upstream.answer(), client)["digest"] == digest(body)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_body_after_the_head(server: Server, upstream: Upstream, kind: str, size: int) -> None:
    """The body begins to arrive only when the client's own worker has the request, and comes in pieces."""
    body = content(size)
    for number, client in enumerate(strangers(5)):
        name = f"{kind}-{size}-{number}"
        whole = request(client, f"/begin?{name}", body, chunks=() if kind == "length" else (1, 5, BUFFER))
        end = whole.index(b"\r\n\r\n") + 4
        upstream.sock.sendall(whole[:end])
        server.wait_for(f"^begun {name}$")
        for start in range(end, len(whole), max(1, (len(whole) - end) // 3)):
            upstream.sock.sendall(whole[start : start + max(1, (len(whole) - end) // 3)])
        assert assert_home(server, upstream.answer(), client)["digest"] == digest(body)


@pytest.mark.parametrize("size", SIZES)
def test_body_that_is_asked_for(server: Server, upstream: Upstream, size: int) -> None:
    """Expect: 100-continue is answered once, by the client's own worker."""
    body = content(size)
    for client in strangers(5):
        upstream.send(
            "POST /digest HTTP/1.1",
            "Host: test",
            f"X-Forwarded-For: {client}",
            f"Content-Length: {size}",
            "Expect: 100-continue",
        )
        if size:
            assert upstream.answer().status == 100
        upstream.sock.sendall(body)
        assert assert_home(server, upstream.answer(), client)["digest"] == digest(body)


def test_body_that_nobody_reads(server: Server, upstream: Upstream) -> None:
    """What the app leaves is thrown away by the worker that has it; a large one ends the connection."""
    for size in (1, BUFFER, 60_000):
        for client in strangers(5):
            upstream.sock.sendall(request(client, "/unread", content(size)) + request(client))
            assert_home(server, upstream.answer(), client)
            assert_home(server, upstream.answer(), client)
    client = strangers(9)[-2]
    upstream.sock.sendall(request(client, "/unread", content(100_000)))
    answer = upstream.answer()
    assert answer.json()["slot"] == home(client)
    assert answer.closes
    assert upstream.ended()


# --- several requests in one packet


def exchange(upstream: Upstream, sent: bytes, count: int) -> list[Answer]:
    """Send all at once, and read so many responses meanwhile."""
    thread = threading.Thread(target=upstream.sock.sendall, args=(sent,))
    thread.start()
    try:
        return [upstream.answer() for _ in range(count)]
    finally:
        thread.join()


def test_pipelined_requests(server: Server, place: Any) -> None:
    """100 requests of different clients in one packet are answered in their order, each by its own worker."""
    plan = random.Random(2).choices(CLIENTS, k=100)
    with Upstream(place) as upstream:
        sent = b"".join(request(client, f"/digest?{number}") for number, client in enumerate(plan))
        for number, answer in enumerate(exchange(upstream, sent, len(plan))):
            assert assert_home(server, answer, plan[number])["query"] == str(number)
        assert_home(server, upstream.ask(CLIENTS[0]), CLIENTS[0])


@pytest.mark.parametrize("seed", range(6))
def test_pipelined_requests_of_all_sizes(server: Server, place: Any, seed: int) -> None:
    """The same with large heads and bodies, so that what has been read already is more than one read brings."""
    chance = random.Random(seed)
    plan = []
    sent = b""
    for number, client in enumerate(strangers(30)):
        body = content(chance.choice([0, 1, 100, 5000, 9000, 20_000, 70_000])) if chance.random() < 0.6 else None
        chunks = (3, 1000) if body and chance.random() < 0.3 else ()
        size = chance.choice([0, 0, 500, 4000, 8191, 8192, 8193, 12_000, 20_000, 40_000, LIMIT])
        sent += request(client, f"/digest?{number}", body, chunks=chunks, size=size)
        plan.append((client, digest(body or b"")))
    with Upstream(place) as upstream:
        answers = exchange(upstream, sent, len(plan))
    for number, (answer, (client, expected)) in enumerate(zip(answers, plan, strict=True)):
        who = assert_home(server, answer, client)
        assert (who["query"], who["digest"]) == (str(number), expected)


# --- heads


def wait_until_read(upstream: Upstream) -> None:
    """Wait until a server at a Unix socket has read everything; SIOCOUTQ in unix(7)."""

    def unread() -> int:
        answer = fcntl.ioctl(upstream.sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", answer)[0])

    # Mostly at once: wait_until() would sleep in between.
    while unread():
        os.sched_yield()


def test_head_split_at_every_byte(server: Server) -> None:
    """However a head is cut in two, the worker that reads the halves sends the connection on whole."""
    clients = strangers(400)
    size = len(request(clients[0], "/digest", b"body"))
    with Upstream(server.path) as upstream:  # type: ignore[attr-defined]
        upstream.ask(clients[-1])
        for split in range(1, size):
            whole = request(clients[split], "/digest", b"body")
            upstream.sock.sendall(whole[:split])
            wait_until_read(upstream)
            upstream.sock.sendall(whole[split:])
            assert assert_home(server, upstream.answer(), clients[split])["digest"] == digest(b"body")


def test_head_byte_by_byte(server: Server) -> None:
    """A head of which every byte is read alone moves whole, first and later requests alike."""
    with Upstream(server.path) as upstream:  # type: ignore[attr-defined]
        for client in strangers(4):
            for byte in request(client):
                upstream.sock.sendall(bytes([byte]))
                if client != strangers(1)[0]:
                    wait_until_read(upstream)
            assert_home(server, upstream.answer(), client)


@pytest.mark.parametrize("size", [BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER, 40_000, LIMIT - 1, LIMIT])
def test_large_head(server: Server, upstream: Upstream, size: int) -> None:
    """Heads up to 48 KiB move, with what comes behind them."""
    body = content(20_000)
    for client in strangers(5):
        whole = request(client, "/digest", body, size=size)
        assert whole.index(b"\r\n\r\n") + 4 == size
        upstream.sock.sendall(whole + request(client))
        assert assert_home(server, upstream.answer(), client)["digest"] == digest(body)
        assert_home(server, upstream.answer(), client)


@pytest.mark.parametrize("behind", [0, 30_000])
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 10_000, LIMIT + 100_000])
def test_too_large_head(server: Server, size: int, behind: int) -> None:
    """A larger one gets 431, whether it is a connection's first or would have to move."""
    first, second = strangers(2)
    sent = request(second, "/digest", content(behind), size=size)
    with Upstream(server.port) as upstream:
        upstream.sock.sendall(sent)
        assert upstream.answer().status == 431
        assert upstream.ended()
    with Upstream(server.port) as upstream:
        assert_home(server, upstream.ask(first), first)
        upstream.sock.sendall(sent)
        answer = upstream.answer()
        assert answer.status == 431
        assert answer.closes
        assert upstream.ended()


def test_no_usable_header(server: Server, place: Any) -> None:
    """Where the header is missing or says no address the peer's own worker answers."""
    peer = PROXY if isinstance(place, int) else ""
    stranger = next(client for client in CLIENTS if home(client) != home(peer))
    with Upstream(place) as upstream:
        assert_home(server, upstream.get(), peer)
        for value in ("unknown", "_hidden", "", " , ,", "999.1.1.1", "1.2.3", "\xff", '"', "host.example, 203.0.113.1"):
            assert_home(server, upstream.ask(stranger), stranger)
            assert_home(server, upstream.ask(value), peer)
        assert_home(server, upstream.ask(stranger), stranger)
        assert_home(server, upstream.get(), peer)


def test_header_in_other_words(server: Server, upstream: Upstream) -> None:
    """The header in any case, repeated, with several entries, quotes and ports: the first entry counts."""
    forms = (
        ["x-forwarded-for: {}"],
        ["X-FORWARDED-FOR:{}"],
        ["X-Forwarded-For: {}, 198.51.100.1"],
        ["X-Forwarded-For: {}", "X-Forwarded-For: 198.51.100.1"],
        ["X-Forwarded-For: ", "X-Forwarded-For: , {}"],
        ['X-Forwarded-For: "{}:4711"'],
        ["X-Forwarded-For: {}:80, unknown"],
        ["X-Forwarded-For: ::ffff:{}"],
        ['X-Forwarded-For: {}, "', 'X-Forwarded-For: 198.51.100.1"'],
    )
    for form in forms:
        for client in strangers(4):
            answer = upstream.get("/", *(line.format(client) for line in form))
            assert_home(server, answer, client)


def test_repeated_header_with_half_quotes(server: Server) -> None:
    """The fields are taken apart one by one, as the listener does: a first request is answered where it came."""
    fields = ('X-Forwarded-For: "203.0.113.1', 'X-Forwarded-For: ", 203.0.113.2')
    with Upstream(server.port) as upstream:
        upstream.ask(next(client for client in CLIENTS if home(client) != home(PROXY)))
        assert_home(server, upstream.get("/", *fields), PROXY)


def test_untrusted_peer(server: Server) -> None:
    """A peer that nobody trusts stays at its own worker, whatever it says."""
    with Wire(server.port, ADDRESS) as wire:
        for client in strangers(8):
            assert_home(server, wire.get("/", f"X-Forwarded-For: {client}"), ADDRESS)


def test_http_1_0(server: Server, upstream: Upstream) -> None:
    """HTTP/1.0 with Connection: keep-alive, and without."""
    for client in strangers(8):
        answer = upstream.ask(client, "/", "Connection: keep-alive", version="1.0")
        assert_home(server, answer, client)
        assert answer["Connection"] == "keep-alive"
    client = strangers(10)[-1]
    answer = upstream.ask(client, "/", version="1.0")
    assert answer.json()["slot"] == home(client)
    assert upstream.ended()


def test_head_method(server: Server, upstream: Upstream) -> None:
    """HEAD moves like GET and brings no body."""
    mark = server.mark()
    for client in strangers(8):
        assert upstream.ask(client, "/?head", method="HEAD").status == 200
    found = [server.wait_for(r'^(\S+) <(\d+)> "HEAD /\?head', after=mark, count=count) for count in range(1, 9)]
    assert [(line[1], int(line[2])) for line in found] == [
        (client, server.worker_pids[home(client)]) for client in strangers(8)
    ]


def test_malformed_request(server: Server, upstream: Upstream) -> None:
    """What is no request gets its 400 from the worker that has the connection."""
    first, second = strangers(2)
    assert_home(server, upstream.ask(first), first)
    upstream.send("GET / HTTP/1.1", "Host: test", f"X-Forwarded-For: {second}", "Space : before the colon")
    answer = upstream.answer()
    assert answer.status == 400
    assert answer.closes
    assert upstream.ended()


def test_client_says_close(server: Server, upstream: Upstream) -> None:
    """Connection: close is honoured by the worker that the connection came to."""
    first, second = strangers(2)
    assert_home(server, upstream.ask(first), first)
    answer = upstream.ask(second, "/", "Connection: close")
    assert answer.json()["slot"] == home(second)
    assert answer.closes
    assert upstream.ended()


def test_client_half_closes(server: Server, upstream: Upstream) -> None:
    """Requests of a client that has closed its own half already are answered, moves and all."""
    plan = strangers(6)
    upstream.sock.sendall(b"".join(map(request, plan)))
    upstream.sock.shutdown(socket.SHUT_WR)
    for client in plan:
        assert_home(server, upstream.answer(), client)
    assert upstream.ended()


def test_client_goes_away(server: Server) -> None:
    """Clients that reset or close in the middle of everything cost nothing."""
    pids = list(server.worker_pids.values())
    before = [descriptors(pid) for pid in pids]
    for number in range(60):
        upstream = Upstream(server.port)
        upstream.ask(CLIENTS[number % 40])
        whole = b"".join(map(request, strangers(10)))
        upstream.sock.sendall(whole[: len(whole) * number // 60])
        if number % 2:
            upstream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        upstream.close()
    wait_until(lambda: all(descriptors(pid) <= count for pid, count in zip(pids, before, strict=True)))
    with Upstream(server.port) as upstream:
        for client in strangers(8):
            assert_home(server, upstream.ask(client), client)


# --- once and nowhere else


def test_log_and_hooks(server: Server, upstream: Upstream) -> None:
    """The access log and the hooks know of each request once, in the worker that answered it."""
    mark = server.mark()
    plan = random.Random(3).choices(CLIENTS, k=60)
    sent = b"".join(request(client, f"/?hook={number}") for number, client in enumerate(plan))
    for client, answer in zip(plan, exchange(upstream, sent, len(plan)), strict=True):
        assert_home(server, answer, client)
    for regex in (r"^after /\?hook=(\d+) (\d+)$", r"^before /\?hook=(\d+) (\d+)$"):
        server.wait_for(regex, after=mark, count=len(plan))
    server.wait_for(r'<\d+> "GET /\?hook=', after=mark, count=len(plan))
    for number, client in enumerate(plan):
        pid = server.worker_pids[home(client)]
        for what in ("before", "after"):
            assert [int(found[1]) for found in server.find(rf"^{what} /\?hook={number} (\d+)$", after=mark)] == [pid]
        lines = server.find(rf'^(\S+) <(\d+)> "GET /\?hook={number} HTTP/1.1" 200$', after=mark)
        assert [(found[1], int(found[2])) for found in lines] == [(client, pid)]


def test_one_worker_has_it(server: Server) -> None:
    """After a move nobody but the client's worker has the connection open."""
    pids = [server.arbiter_pid, server.listener_pid, *server.worker_pids.values()]
    with Upstream(server.port) as upstream:
        for client in strangers(12):
            upstream.ask(client)
            inode = inode_of(server.port, upstream.sock.getsockname())
            # The worker that sent it closes its own a moment after the other one has it.
            wait_until(lambda: holders(inode, pids) == [server.worker_pids[home(client)]])  # noqa: B023
