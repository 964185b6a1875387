"""The PROXY protocol: consumed exactly, believed of those who may send it, and in the peer's place afterwards."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGHUP, SIGTERM

import pytest

from harness import HOST, Server, descriptors, get, wait_until
from pending import stopped
from proxying import CLIENTS, CLIENTS6, LOCAL, SIGNATURE, elsewhere, home, over, proxied, unix, v1, v2
from wire import Wire

WORKERS = 4
# May send the protocol; its forwarding headers count, those of HOST don't.
FORWARDER = "127.9.3.4"
UNTRUSTED = "127.0.0.4"
ALLOWED = ("--proxy-allow-from", "127.0.0.1,127.9.0.0/16", "--forwarded-allow-ips", "127.9.0.0/16")
ACCESS_LOG = '%(h)s:%({REMOTE_PORT}e)s "%(r)s"'
CLIENT = elsewhere(HOST, WORKERS)
BODY = b"PROXY TCP4 203.0.113.7 203.0.113.8 1 2\r\n"
REQUEST = b"POST /env HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
NEXT = b"GET /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nnext"
COMPLAINT = r"Malformed PROXY header from (\S+): "

Header = Callable[..., bytes]
each_version = pytest.mark.parametrize("header", [v1, v2], ids=["v1", "v2"])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Unix socket that the server listens on, too."""
    return tmp_path_factory.mktemp("proxy") / "socket"


@pytest.fixture(scope="module")
def running(path: Path) -> Iterator[tuple[Server, int]]:
    """Four workers that take both versions, and how many descriptors their listener has at rest."""
    args = ("--proxy-protocol", "auto", *ALLOWED, "--access-logfile", "-", "--access-logformat", ACCESS_LOG)
    with Server(workers=WORKERS, args=args, bind=("127.0.0.1:0", "[::]:0", f"unix:{path}")) as server:
        listener, before = server.listener_pid, descriptors(server.listener_pid)
        yield server, before
        assert not server.find("Traceback|The listener failed|was lost")
        assert server.listener_pid == listener
        wait_until(lambda: descriptors(listener) <= before, what="the listener has closed everything")


@pytest.fixture
def server(running: tuple[Server, int]) -> Server:
    return running[0]


@pytest.fixture
def at_rest(running: tuple[Server, int]) -> int:
    """How many descriptors the listener has, when it has closed what it handed off in the tests before."""
    server, count = running
    wait_until(lambda: descriptors(server.listener_pid) <= count, what="the listener has closed everything")
    return count


def assert_client(wire: Wire, client: str, port: str, *, server_port: int) -> None:
    """A request is the client's, and so are the body and the next one."""
    env = wire.answer().json()
    assert env["sticky_session.slot"] == home(client, WORKERS)
    assert (env["REMOTE_ADDR"], env["REMOTE_PORT"]) == (client, port)
    assert (env["SERVER_NAME"], env["SERVER_PORT"]) == (HOST, str(server_port))
    assert wire.answer().body == b"next"


@each_version
def test_clients(server: Server, header: Header) -> None:
    """Each client is on its own worker, and the app sees it as its peer; all workers are in use."""
    clients = [*CLIENTS[:15], *CLIENTS6[:15]]
    for number, client in enumerate(clients):
        with proxied(server.port) as wire:
            wire.sock.sendall(header(client, 5000 + number) + REQUEST + NEXT)
            assert_client(wire, client, str(5000 + number), server_port=server.port)
    assert {home(client, WORKERS) for client in clients} == set(range(WORKERS))


@each_version
def test_every_position(server: Server, at_rest: int, header: Header) -> None:
    """Cut at any position, or alone in front of its request, a header is taken out, and not a byte more."""
    head = header(CLIENT, 5001)
    sent = head + REQUEST + NEXT
    listener = server.listener_pid
    with stopped(server.worker_pids[home(HOST, WORKERS)]), contextlib.ExitStack() as stack:
        wires = [stack.enter_context(proxied(server.port)) for _ in head]
        for cut, wire in enumerate(wires):
            wire.sock.sendall(sent[:cut])
        wait_until(lambda: descriptors(listener) == at_rest + len(head), what="the listener waits for all")
        wires.append(stack.enter_context(proxied(server.port)))
        wires[-1].sock.sendall(head)
        for cut, wire in enumerate(wires):
            wire.sock.sendall(sent[cut:])
        for wire in wires:
            assert_client(wire, CLIENT, "5001", server_port=server.port)


@each_version
def test_byte_by_byte(server: Server, header: Header) -> None:
    """One byte after the other, header and request."""
    with proxied(server.port) as wire:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header(CLIENT, 5001) + REQUEST + NEXT:
            wire.sock.sendall(bytes((byte,)))
        assert_client(wire, CLIENT, "5001", server_port=server.port)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        v2(CLIENT, command=LOCAL),
        v2(command=LOCAL),
        v2(),
        v2(extensions=b"\x04\0\x02ab"),
        SIGNATURE + b"\x21\x31\0\xd8" + b"/run/client.sock".ljust(108, b"\0") * 2,
        b"",
    ],
    ids=["UNKNOWN", "UNKNOWN with more", "LOCAL", "LOCAL alone", "UNSPEC", "UNSPEC with extensions", "Unix", "none"],
)
@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "in pieces"])
def test_no_client(server: Server, header: bytes, pieces: bool) -> None:
    """A header that names nobody, and a connection without one: the peer is the client."""
    with proxied(server.port) as wire:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if pieces:
            for byte in header:
                wire.sock.sendall(bytes((byte,)))
        wire.sock.sendall((b"" if pieces else header) + REQUEST + NEXT)
        assert_client(wire, HOST, str(wire.sock.getsockname()[1]), server_port=server.port)


@pytest.mark.parametrize("size", [1, 300, 5000, 40_000])
def test_extensions(server: Server, size: int) -> None:
    """Extensions of version 2 are skipped, however long."""
    with proxied(server.port) as wire:
        wire.sock.sendall(v2(CLIENT, 5001, extensions=os.urandom(size)) + REQUEST + NEXT)
        assert_client(wire, CLIENT, "5001", server_port=server.port)


@each_version
def test_mapped(server: Server, header: Header) -> None:
    """A peer that looks like IPv6 to a dual-stack socket may send it as well; a mapped client is the IPv4 one."""
    client = CLIENT if header is v1 else f"::ffff:{CLIENT}"
    with proxied(server.ports[1]) as wire:
        wire.sock.sendall(header(client, 5001) + REQUEST)
        env = wire.answer().json()
        assert (env["sticky_session.slot"], env["REMOTE_ADDR"]) == (home(CLIENT, WORKERS), CLIENT)


@pytest.mark.usefixtures("server")
@each_version
def test_unix_socket(path: Path, header: Header) -> None:
    """A Unix socket's peer may send it."""
    for client in (CLIENT, CLIENTS6[0]):
        with unix(path) as wire:
            wire.sock.sendall(header(client, 5001) + REQUEST)
            env = wire.answer().json()
            assert env["sticky_session.slot"] == home(client, WORKERS)
            assert (env["REMOTE_ADDR"], env["REMOTE_PORT"]) == (client, "5001")


@each_version
def test_untrusted(server: Server, header: Header) -> None:
    """A header of anybody else is not read: its worker refuses it as what it is, no request."""
    mark = server.mark()
    with proxied(server.port, UNTRUSTED) as wire:
        wire.sock.sendall(header(CLIENT) + REQUEST)
        assert wire.answer().status == 400
        assert wire.ended()
    pid = server.worker_pids[home(UNTRUSTED, WORKERS)]
    server.wait_for(rf"\[{pid}\] \[WARNING\] Invalid request from ip={UNTRUSTED}: ", after=mark)


def test_kept_alive(server: Server) -> None:
    """All requests of a connection are the client's, whatever their headers say, and stay on its worker."""
    mark = server.mark()
    with proxied(server.port, FORWARDER) as wire:
        wire.sock.sendall(v2(CLIENT, 5002))
        slots = {wire.get("/", f"X-Forwarded-For: {client}").json()["slot"] for client in CLIENTS[:20]}
        assert slots == {home(CLIENT, WORKERS)}
    server.wait_for(rf'{CLIENT}:5002 "GET / HTTP/1\.1"', after=mark, count=20)


@pytest.mark.parametrize(("peer", "client", "scheme"), [(FORWARDER, CLIENT, "https"), (HOST, FORWARDER, "http")])
def test_trust_in_headers(server: Server, peer: str, client: str, scheme: str) -> None:
    """Whether forwarding headers count depends on who is at the other end, not on whom the header names."""
    with proxied(server.port, peer) as wire:
        wire.sock.sendall(v1(client))
        who = wire.get("/", "X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.7").json()
    assert (who["scheme"], who["remote_addr"], who["slot"]) == (scheme, client, home(client, WORKERS))


MALFORMED = [
    b"PROXY TCP5 ",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n",
    b"PROXY TCP4 ::1 ::1 1 2\r\n" + REQUEST,
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
    b"PROXY UNKNOWN " + b"x" * 100,
    SIGNATURE + b"\x31\x11\0\x0c",
    SIGNATURE + b"\x22\x11\0\x0c",
    SIGNATURE + b"\x21\x41\0\x0c",
    SIGNATURE + b"\x21\x11\0\x0b" + REQUEST,
]


def test_malformed() -> None:
    """It is closed without a word; one line in a minute tells what is wrong, and the metric counts each."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(20)
        args = ("--proxy-protocol", "auto", *ALLOWED, "--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}")
        with Server(workers=1, args=args) as server:
            before = descriptors(server.listener_pid)
            for sent in MALFORMED:
                with proxied(server.port, FORWARDER) as wire:
                    wire.sock.sendall(sent)
                    with contextlib.suppress(ConnectionResetError):
                        assert wire.ended()
            counted = 0
            while counted < len(MALFORMED):
                counted += statsd.recv(1000).startswith(b"sticky_session.malformed:1|c")
            assert get(server.port).status == 200
            server.wait_for(COMPLAINT)
            (found,) = server.find(COMPLAINT)
            assert found[1] == FORWARDER
            assert "b'TCP5' where TCP4" in found.string
            assert "(1 since the listener started)" in found.string
            wait_until(lambda: descriptors(server.listener_pid) <= before)
            assert not server.find("Traceback|Invalid request")


@pytest.mark.parametrize(("mode", "good", "bad"), [("v1", v1, v2), ("v2", v2, v1)])
@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_modes(door: str, mode: str, good: Header, bad: Header) -> None:
    """v1 or v2 alone: the other version is malformed; what is neither is a request of the peer's."""
    with Server(workers=WORKERS, door=door, args=("--proxy-protocol", mode)) as server:
        for header, client in [(good(CLIENT), CLIENT), (b"", HOST)]:
            with proxied(server.port) as wire:
                wire.sock.sendall(header + REQUEST)
                env = wire.answer().json()
                assert (env["sticky_session.slot"], env["REMOTE_ADDR"]) == (home(client, WORKERS), client)
        with proxied(server.port) as wire:
            wire.sock.sendall(bad(CLIENT) + REQUEST)
            with contextlib.suppress(ConnectionResetError):
                assert wire.ended()
        server.wait_for(COMPLAINT)


# --- over TLS


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_tls(door: str, certificate: tuple[Path, Path]) -> None:
    """The header is in front of the handshake; the address is the client's, and the slot."""
    cert, key = map(str, certificate)
    args = ("--proxy-protocol", "auto", "--certfile", cert, "--keyfile", key, *ALLOWED)
    tls = ssl.create_default_context(cafile=cert)
    with Server(workers=WORKERS, door=door, args=args) as server:
        before = descriptors(server.listener_pid)
        for client, header in [(CLIENT, v1), (CLIENTS6[3], v2), (CLIENTS[5], v2), (HOST, lambda _, __: b"")]:
            for size in (1, 1000):
                with contextlib.ExitStack() as stack:
                    wire = stack.enter_context(proxied(server.port))
                    port = wire.sock.getsockname()[1] if client == HOST else 5003
                    head = header(client, 5003)
                    for start in range(0, len(head), size):
                        wire.sock.sendall(head[start : start + size])
                    sock = stack.enter_context(tls.wrap_socket(wire.sock, server_hostname=HOST))
                    secure = stack.enter_context(over(sock))
                    for _ in range(3):
                        env = secure.get("/env").json()
                        assert env["sticky_session.slot"] == home(client, WORKERS)
                        assert (env["REMOTE_ADDR"], env["REMOTE_PORT"]) == (client, str(port))
                        assert (env["wsgi.url_scheme"], env["SERVER_PORT"]) == ("https", str(server.port))
        # Nothing can be said to this one.
        with proxied(server.port) as wire:
            wire.sock.sendall(v1("1.2.3.4")[:-20] + b"nonsense\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert wire.ended()
        wait_until(lambda: descriptors(server.listener_pid) <= before)
        assert not server.find("Traceback")


# --- headers that are half there


@each_version
def test_late(header: Header) -> None:
    """A header that isn't whole in time: 408; a connection that has sent nothing is closed."""
    args = ("--proxy-protocol", "auto", "--head-timeout", "0.5")
    with Server(workers=1, door="serve", args=args) as server, contextlib.ExitStack() as stack:
        # The time begins when they are accepted.
        with stopped(server.listener_pid):
            late, silent = (stack.enter_context(proxied(server.port)) for _ in range(2))
            late.sock.sendall(header(CLIENT)[:-1])
        assert late.answer().status == 408
        assert late.ended()
        assert silent.ended()


def test_gone_in_the_middle(server: Server, at_rest: int) -> None:
    """Clients that go in the middle of a header leave nothing behind."""
    listener = server.listener_pid
    heads = [*(v1(CLIENT)[:cut] for cut in range(40)), *(v2(CLIENT)[:cut] for cut in range(28))]
    with contextlib.ExitStack() as stack:
        for head in heads:
            stack.enter_context(proxied(server.port)).sock.sendall(head)
        wait_until(lambda: descriptors(listener) == at_rest + len(heads), what="the listener waits for all")
    wait_until(lambda: descriptors(listener) <= at_rest, what="the listener has closed them")


@pytest.mark.parametrize("number", [SIGTERM, SIGHUP])
def test_signal(number: int) -> None:
    """TERM or HUP while headers are half there: they are waited for, and served."""
    with Server(workers=2, args=("--proxy-protocol", "auto")) as server, contextlib.ExitStack() as stack:
        listener, before = server.listener_pid, descriptors(server.listener_pid)
        head = v2(CLIENT, 5004)
        wires = [stack.enter_context(proxied(server.port)) for _ in head]
        for cut, wire in enumerate(wires):
            wire.sock.sendall(head[:cut])
        wait_until(lambda: descriptors(listener) == before + len(head), what="the listener waits for all")
        mark = server.mark()
        server.signal(number)
        if number == SIGHUP:
            server.wait_for_listener(after=mark)
        else:
            server.wait_for("Handling signal: term")
        for cut, wire in enumerate(wires):
            wire.sock.sendall(head[cut:] + REQUEST)
            env = wire.answer().json()
            assert (env["sticky_session.slot"], env["REMOTE_ADDR"]) == (home(CLIENT, 2), CLIENT)
        stack.close()
        if number == SIGTERM:
            assert server.wait() == 0
        assert not server.find("Traceback")
