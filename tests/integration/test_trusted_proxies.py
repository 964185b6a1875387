"""Whose headers tell the client, which header does, and what becomes of those that tell nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP

import pytest

from harness import HOST, Server, addresses, wait_until
from proxying import CLIENTS, CLIENTS6, elsewhere, home, proxied, served_by, unix
from upstream import holders, inode_of

WORKERS = 4
UNTRUSTED = "127.0.0.4"
NETWORK = "127.9.0.0/16"
ACCESS_LOG = '%(h)s "%(r)s" %({x-forwarded-for}i)s'
TLS_COMPLAINT = r"certfile with a client header of trusted proxies: .* End TLS in the proxy, .*PROXY protocol"
OFF = ("--client-header", "off")
REAL_IP = ("--client-header", "X-Real-IP")
UNIX_COMPLAINT = "the peers of a Unix socket have no addresses, so all connections go to one worker"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Unix socket that the server listens on, too."""
    return tmp_path_factory.mktemp("trusted") / "socket"


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    """Four workers that trust one address and a network."""
    args = ("--forwarded-allow-ips", f"127.0.0.1,{NETWORK}", "--access-logfile", "-", "--access-logformat", ACCESS_LOG)
    binds = ("127.0.0.1:0", "[::]:0", f"unix:{path}")
    with Server(workers=WORKERS, args=args, bind=binds, env={"STICKY_SESSION_HEAD_TIMEOUT": "600"}) as server:
        yield server
        assert not server.find("Traceback")


def test_clients_of_a_proxy(server: Server) -> None:
    """Each client of a proxy is on its own worker, all workers are in use, and the app sees the proxy as its peer."""
    slots = set()
    for client in [*CLIENTS[:20], *CLIENTS6[:20]]:
        with proxied(server.port) as proxy:
            env = proxy.get("/env", f"X-Forwarded-For: {client}, 10.0.0.1").json()
            assert env["sticky_session.slot"] == home(client, WORKERS)
            assert (env["REMOTE_ADDR"], env["REMOTE_PORT"]) == (HOST, str(proxy.sock.getsockname()[1]))
            assert env["HTTP_X_FORWARDED_FOR"] == f"{client}, 10.0.0.1"
            slots.add(env["sticky_session.slot"])
    assert slots == set(range(WORKERS))


def test_access_log(server: Server) -> None:
    """The access log's host is the peer, as gunicorn's is."""
    with proxied(server.port) as proxy:
        proxy.get("/?logged", "X-Forwarded-For: 192.0.2.9")
    server.wait_for(r'127\.0\.0\.1 "GET /\?logged HTTP/1\.1" 192\.0\.2\.9')


@pytest.mark.parametrize(
    ("peer", "trusted"), [(HOST, True), ("127.9.3.4", True), ("127.10.0.1", False), (UNTRUSTED, False)]
)
@pytest.mark.parametrize("dual", [False, True], ids=["IPv4", "mapped"])
def test_peer(server: Server, peer: str, trusted: bool, dual: bool) -> None:
    """Addresses and networks are trusted, also where IPv4 peers look like IPv6; of others no header is read."""
    client = elsewhere(peer, WORKERS)
    with proxied(server.ports[dual], peer) as proxy:
        who = served_by(proxy, f"X-Forwarded-For: {client}")
    assert who["slot"] == home(client if trusted else peer, WORKERS)
    assert who["remote_addr"] == ("::ffff:" if dual else "") + peer


@pytest.mark.usefixtures("server")
def test_peer_of_a_unix_socket(path: Path) -> None:
    """A Unix socket's peer is trusted; without a header all go to the same place."""
    for client in CLIENTS[:10]:
        with unix(path) as proxy:
            env = proxy.get("/env", f"X-Forwarded-For: {client}").json()
            assert (env["sticky_session.slot"], env["REMOTE_ADDR"]) == (home(client, WORKERS), "")
    for _ in range(3):
        with unix(path) as proxy:
            assert proxy.get("/env").json()["sticky_session.slot"] == home("", WORKERS)


@pytest.mark.usefixtures("server")
def test_peer_of_a_unix_socket_in_pieces(path: Path) -> None:
    """Its head may come in pieces."""
    client = elsewhere("", WORKERS)
    with unix(path) as proxy:
        head = f"GET /env HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\r\n".encode()
        for start in range(0, len(head), 5):
            proxy.sock.sendall(head[start : start + 5])
        assert proxy.answer().json()["sticky_session.slot"] == home(client, WORKERS)


@pytest.mark.parametrize(
    "value",
    [
        *("", "unknown", "_hidden", "192.0.2", "999.1.1.1", "192.0.2.1:99999", '"', "[2001:db8::1", "é", "a" * 5000),
        *("unknown, {client}", "for={client}"),
    ],
)
def test_unusable_entry(server: Server, value: str) -> None:
    """What is no address means the peer, and no neighbour takes its place."""
    value = value.format(client=elsewhere(HOST, WORKERS))
    with proxied(server.port) as proxy:
        assert served_by(proxy, f"X-Forwarded-For: {value}")["slot"] == home(HOST, WORKERS)


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.3:80", "192.0.2.3"),
        ("[2001:db8:3::1]:80", "2001:db8:3::1"),
        ("2001:db8:3::1%eth0", "2001:db8:3::1"),
        ('"192.0.2.3"', "192.0.2.3"),
        ("::ffff:192.0.2.3", "192.0.2.3"),
        (",, \t192.0.2.3 , unknown", "192.0.2.3"),
    ],
)
def test_usable_entry(server: Server, value: str, client: str) -> None:
    """Ports, brackets, zone ids, quotes and space are no part of an address."""
    with proxied(server.port) as proxy:
        assert served_by(proxy, f"x-FORWARDED-for:{value}")["slot"] == home(client, WORKERS)


@pytest.mark.parametrize("first", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n"])
def test_untrusted_head_is_not_waited_for(server: Server, first: bytes) -> None:
    """Connections of an untrusted peer are with its worker before anything, or half a head, has come."""
    listener, worker = server.listener_pid, server.worker_pids[home(UNTRUSTED, WORKERS)]
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(proxied(server.port, UNTRUSTED)) for _ in range(5)]
        for wire in wires:
            wire.sock.sendall(first)
        for wire in wires:
            ends = server.port, wire.sock.getsockname()
            # 0 until it is accepted.
            inode = wait_until(lambda ends=ends: inode_of(*ends), what="it is accepted")
            wait_until(lambda inode=inode: holders(inode, [listener, worker]) == [worker], what="the worker has it")


@pytest.mark.parametrize("peer", [HOST, UNTRUSTED])
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\0\x01\0", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For : 192.0.2.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    ],
    ids=["TLS", "no HTTP", "space before colon", "bare LF", "long field"],
)
def test_malformed_head(server: Server, peer: str, sent: bytes, status: int) -> None:
    """What can't be served is refused by the peer's worker, whoever sends it."""
    mark = server.mark()
    with proxied(server.port, peer) as proxy:
        proxy.sock.sendall(sent)
        assert proxy.answer().status == status
        assert proxy.ended()
    pid = server.worker_pids[home(peer, WORKERS)]
    server.wait_for(rf"\[{pid}\] \[WARNING\] Invalid request from ip={peer}: ", after=mark)


def test_large_head_of_an_untrusted_peer(server: Server) -> None:
    """A head of 60 KB that is within gunicorn's limits: an untrusted peer's is served as ever."""
    fields = [f"X-{number}: {'x' * 1000}" for number in range(60)]
    with proxied(server.port, UNTRUSTED) as proxy:
        assert served_by(proxy, *fields)["slot"] == home(UNTRUSTED, WORKERS)


@pytest.mark.parametrize(
    ("door", "name", "hop", "field", "client"),
    [
        ("gunicorn", "X-Real-IP", "first", "x-real-ip: 192.0.2.8", "192.0.2.8"),
        ("gunicorn", "X-Forwarded-For", "2", "X-Forwarded-For: 192.0.2.7, 192.0.2.8, 192.0.2.10", "192.0.2.8"),
        ("serve", "Forwarded", "last", 'Forwarded: for=192.0.2.7;by=1.1.1.1, For="[2001:db8:9::1]"', "2001:db8:9::1"),
        ("serve", "X-Forwarded-For", "last", "X-Forwarded-For: 192.0.2.7, 192.0.2.8", "192.0.2.8"),
    ],
)
def test_header_and_hop(door: str, name: str, hop: str, field: str, client: str) -> None:
    """The header and the entry are chosen with variables and flags; with * everybody is trusted."""
    env, args = {"STICKY_SESSION_CLIENT_HEADER": name, "STICKY_SESSION_CLIENT_HOP": hop}, []
    if door == "serve":
        env, args = {}, ["--client-header", name, "--client-hop", hop]
    with Server(workers=WORKERS, door=door, env=env, args=[*args, "--forwarded-allow-ips", "*"]) as server:
        for peer in [HOST, *addresses(6)]:
            with proxied(server.port, peer) as proxy:
                assert served_by(proxy, field)["slot"] == home(client, WORKERS)
            with proxied(server.port, peer) as proxy:
                assert served_by(proxy, "X-Other: 192.0.2.8")["slot"] == home(peer, WORKERS)


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_off(door: str, tmp_path: Path) -> None:
    """off: no header is read; where a Unix socket is listened on, one line says at start what that means."""
    path = tmp_path / "socket"
    env, args = ({"STICKY_SESSION_CLIENT_HEADER": "off"}, ()) if door == "gunicorn" else ({}, OFF)
    with Server(workers=WORKERS, door=door, env=env, args=args, bind=("127.0.0.1:0", f"unix:{path}")) as server:
        for client in CLIENTS[:10]:
            with proxied(server.port) as proxy:
                assert served_by(proxy, f"X-Forwarded-For: {client}")["slot"] == home(HOST, WORKERS)
            with unix(path) as proxy:
                slot = proxy.get("/env", f"X-Forwarded-For: {client}").json()["sticky_session.slot"]
                assert slot == home("", WORKERS)
        (warning,) = server.find(UNIX_COMPLAINT)
        assert f"[WARNING] unix:{path}: " in warning.string


def test_no_warning(server: Server) -> None:
    """A Unix socket whose peers' headers count needs no warning."""
    assert not server.find(UNIX_COMPLAINT)


# --- settings that don't go together


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_tls_with_header(door: str, certificate: tuple[Path, Path]) -> None:
    """Over TLS no header can be read: one line names the ways out, and nothing is started."""
    cert, key = map(str, certificate)
    env, args = ({"STICKY_SESSION_CLIENT_HEADER": "X-Real-IP"}, ()) if door == "gunicorn" else ({}, REAL_IP)
    args = ("--certfile", cert, "--keyfile", key, *args)
    with Server(workers=WORKERS, door=door, env=env, args=args, ready=False) as server:
        assert server.wait() == 1
        server.assert_nothing_left()
        assert len(server.find(TLS_COMPLAINT)) == 1
        assert not server.find("Traceback|Booting|Listener ready")


@pytest.mark.parametrize("door", ["gunicorn", "serve"])
def test_reload(door: str, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """What can't go together is refused by a reload as well, in one line; what is to be known is said again."""
    path = tmp_path / "socket"
    config = tmp_path / "conf.py"
    allowed = f"forwarded_allow_ips = '127.0.0.1,{NETWORK}'\n"
    tls = f"certfile, keyfile = {tuple(map(str, certificate))!r}\n"
    config.write_text(allowed)
    bind = ("127.0.0.1:0", f"unix:{path}")
    with Server(workers=2, door=door, args=("-c", str(config)), bind=bind) as server:
        clients = [CLIENTS[0], elsewhere(CLIENTS[0], 2)]

        def assert_routed() -> None:
            for client in clients:
                with proxied(server.port, "127.9.0.1") as proxy:
                    assert served_by(proxy, f"X-Forwarded-For: {client}")["slot"] == home(client, 2)

        assert_routed()
        mark = server.mark()
        config.write_text(allowed + tls)
        server.signal(SIGHUP)
        server.wait_for("Reload failed, the old configuration stays in force", after=mark)
        assert_routed()
        assert len(server.find(TLS_COMPLAINT)) == 1
        assert not server.find(UNIX_COMPLAINT)

        # All of it is TLS now, and nobody has asked for a header.
        config.write_text(tls)
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for_listener(after=mark)
        assert len(server.find(UNIX_COMPLAINT)) == 1

        config.write_text(allowed)
        mark = server.mark()
        server.signal(SIGHUP)
        server.wait_for_listener(after=mark)
        assert_routed()
        assert len(server.find(UNIX_COMPLAINT)) == 1
        assert not server.find("Traceback")
        os.stat(path)
