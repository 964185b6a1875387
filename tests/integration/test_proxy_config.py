"""What ``sticky-session proxy-config`` prints, as the real proxies take it: each of them reads it and serves by it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from harness import ADDRESS, APPS, COMMANDS, HOST, Client, Process, Server, addresses, free_port, get
from proxies import NEWER, PROXIES, Apache, Caddy, Haproxy, Nginx, Proxy, open_folder, version
from sticky_session import proxyconfig
from sticky_session.proxyconfig import HEADER, PROXY_PROTOCOL
from websocket_wire import CLOSE, TEXT, WebSocketWire, frame

ALL = pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
SERVERS = [
    (),
    ("192.0.2.11:8000", "192.0.2.12:8000"),
    ("unix:/run/a.sock",),
    ("unix:/run/a.sock", "unix:/run/b.sock"),
    ("[::1]:8000", "localhost:8000"),
]


def configurations(proxy: type[Proxy]) -> Iterator[str]:
    """Every configuration of a proxy that differs in more than a number or a name."""
    known = proxyconfig.PROXIES[proxy.name]
    for via in known.templates:
        names = [None, "www.example.com"] if via in known.named else [None]
        listens = [f"{HOST}:{free_port()}", str(free_port())]
        for stickiness, servers, name, listen in product([None, *known.stickiness[via]], SERVERS, names, listens):
            yield proxyconfig.configure(
                proxy.name, via=via, stickiness=stickiness, servers=servers, server_name=name, listen=listen
            )


@ALL
def test_read(proxy: type[Proxy], tmp_path: Path) -> None:
    """The proxy itself finds no fault with any configuration, but for what its version is too old for."""
    line, since, refusal = NEWER.get(proxy, ("nothing of this", (0,), ""))
    for configuration in configurations(proxy):
        finished = proxy.check(tmp_path, configuration)
        too_old = line in re.sub(r"#.*", "", configuration) and version(proxy) < since
        assert (finished.returncode != 0) == too_old, f"{configuration}\n{finished.stdout}"
        if too_old:
            assert refusal in finished.stdout
            without = "\n".join(text for text in configuration.splitlines() if line not in text)
            finished = proxy.check(tmp_path, without)
            assert finished.returncode == 0, f"{without}\n{finished.stdout}"


@pytest.fixture(scope="module")
def unix() -> Iterator[str]:
    """Where a Unix socket can be."""
    with open_folder("socket-") as folder:
        yield f"unix:{folder}/s"


@pytest.fixture(scope="module")
def server(unix: str) -> Iterator[Server]:
    """One of us for all proxies; on a Unix socket, too."""
    bind = (f"{HOST}:0", unix)
    with Server("echo_websocket:app", workers=1, args=("--keep-alive", "75"), bind=bind) as server:
        yield server


@pytest.fixture(scope="module", params=PROXIES, ids=lambda proxy: proxy.name)
def front(request: pytest.FixtureRequest, server: Server) -> Iterator[Proxy]:
    """Each proxy, before it."""
    with request.param(f"--server={HOST}:{server.port}") as proxy:
        yield proxy


def environ(port: int, address: str = ADDRESS, **headers: str) -> dict[str, str]:
    """The environ that the app sees."""
    return get(port, "/env", address, headers={name.replace("_", "-"): value for name, value in headers.items()}).json()


def test_headers(front: Proxy) -> None:
    """The app sees the client's address and no other, whatever the client says; its Host with the port; the scheme."""
    seen = environ(front.port, "127.0.0.23")
    assert seen["HTTP_X_FORWARDED_FOR"] == "127.0.0.23"
    assert seen["HTTP_X_FORWARDED_PROTO"] == "http"
    assert seen["HTTP_HOST"] == f"{HOST}:{front.port}"
    forged = environ(front.port, X_Forwarded_For="192.0.2.7, 192.0.2.8", X_Forwarded_Proto="https")
    assert forged["HTTP_X_FORWARDED_FOR"] == ADDRESS
    assert forged["HTTP_X_FORWARDED_PROTO"] == "http"
    assert forged["wsgi.url_scheme"] == "http"


def test_kept_alive(front: Proxy) -> None:
    """The proxy keeps its connections to us alive: requests of one client come over fewer than there are."""
    with Client(front.port) as client:
        ports = {client.get("/env").json()["REMOTE_PORT"] for _ in range(10)}
        assert len(ports) < 5


def test_websocket(front: Proxy) -> None:
    """A WebSocket goes through, both ways, and ends when the app ends it."""
    websocket = WebSocketWire(front.port)
    try:
        for text in (b"first", b"x" * 100_000, b"last"):
            websocket.write(frame(TEXT, text))
            assert websocket.frame().payload == text
    finally:
        websocket.close()
    leaving = WebSocketWire(front.port, "/leave")
    try:
        assert leaving.frame().payload == b"bye"
        last = leaving.frame()
        assert (last.opcode, last.payload[:2]) == (CLOSE, b"\x03\xe8")  # 1000
    finally:
        leaving.close()


@ALL
@pytest.mark.usefixtures("server")
def test_unix_socket(proxy: type[Proxy], unix: str) -> None:
    """A server on a Unix socket is reached."""
    with proxy(f"--server={unix}") as front:
        assert environ(front.port)["HTTP_X_FORWARDED_FOR"] == ADDRESS
        websocket = WebSocketWire(front.port)
        websocket.write(frame(TEXT, b"hello"))
        assert websocket.frame().payload == b"hello"
        websocket.close()


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Server, Server]]:
    """Two of us."""
    with Server(workers=1) as first, Server(workers=1) as second:
        yield first, second


BY_ADDRESS = [(Nginx, "hash"), (Nginx, "ip-hash"), (Haproxy, "hash"), (Haproxy, "ip-hash"), (Caddy, "ip-hash")]


@pytest.mark.parametrize(("proxy", "stickiness"), BY_ADDRESS)
def test_machines_by_address(proxy: type[Proxy], stickiness: str, machines: tuple[Server, Server]) -> None:
    """Of two machines, each address always reaches the same one, and both are used."""
    flags = [f"--server={HOST}:{machine.port}" for machine in machines]
    with proxy(*flags, f"--stickiness={stickiness}") as front:
        served = {}
        for address in addresses(20) + [f"127.{net}.3.1" for net in range(20)]:
            pids = {get(front.port, "/", address).json()["pid"] for _ in range(3)}
            assert len(pids) == 1, address
            served[address] = pids.pop()
    assert set(served.values()) == {machine.worker_pids[0] for machine in machines}


BY_COOKIE = [Nginx, Haproxy, Apache, Caddy]


@pytest.mark.parametrize("proxy", BY_COOKIE, ids=lambda proxy: proxy.name)
def test_machines_by_cookie(proxy: type[Proxy], machines: tuple[Server, Server]) -> None:
    """Of two machines, each client that keeps its cookies always reaches the same one, and both are used."""
    if proxy is Nginx and version(proxy) < NEWER[Nginx][1]:
        pytest.skip("this nginx has no sticky")
    flags = [f"--server={HOST}:{machine.port}" for machine in machines]
    with proxy(*flags, "--stickiness=cookie") as front:
        served = set()
        for _ in range(20):
            greeted = get(front.port)
            cookie = greeted.headers["Set-Cookie"].partition(";")[0]
            pids = {greeted.json()["pid"]}
            pids |= {get(front.port, headers={"Cookie": cookie}).json()["pid"] for _ in range(3)}
            assert len(pids) == 1
            served |= pids
    assert served == {machine.worker_pids[0] for machine in machines}


class Gunicorn(Process):
    """gunicorn with its own gevent worker, which reads the PROXY protocol and nothing else."""

    def __init__(self, protocol: str) -> None:
        super().__init__([
            COMMANDS / "gunicorn", "--no-control-socket", "-k", "gevent", "-w", "1", "--bind", f"{HOST}:0",
            "--proxy-protocol", protocol, "--proxy-allow-from", HOST, "--forwarded-allow-ips", "", "whoami:app",
        ], cwd=APPS)  # fmt: skip

    def _wait_ready(self) -> None:
        self.wait_for("Booting worker")


@pytest.mark.parametrize("proxy", [Nginx, Haproxy, Caddy], ids=lambda proxy: proxy.name)
def test_proxy_protocol(proxy: type[Proxy]) -> None:
    """With the PROXY protocol the app sees the client's address as its peer's."""
    known = proxyconfig.PROXIES[proxy.name]
    if proxy is Caddy and version(proxy) < NEWER[Caddy][1]:
        pytest.skip("this Caddy has no proxy_protocol")
    with Gunicorn(known.protocol) as server:
        with proxy(f"--server={HOST}:{server.port}", f"--via={PROXY_PROTOCOL}") as front:
            for address in addresses(5):
                seen = json.loads(get(front.port, "/env", address).body)
                assert seen["REMOTE_ADDR"] == address


def test_all_are_run() -> None:
    """Every proxy that Debian has is run here."""
    assert {proxy.name for proxy in PROXIES} | {"traefik", "ingress-nginx"} == set(proxyconfig.PROXIES)
    assert all(HEADER in known.templates for known in proxyconfig.PROXIES.values())
