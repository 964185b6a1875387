"""``--router kernel``: no listener process, and the same slots; what is special to it.

What holds whoever routes is tested for both routers where it is tested: reloads, resizing, upgrades, failover.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import sys
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR2

import pytest

from groups import loopback_addresses
from harness import (
    APPS,
    Client,
    Load,
    Script,
    Server,
    addresses,
    alive,
    children,
    command_line,
    connect,
    descriptors,
    free_port,
    get,
    wait_until,
)
from members import members
from midway import clients_of, kill_while_clients_wait
from node_clients import assert_answered, assert_at_home, node
from pending import Gate, client_of, is_refused, receive, send, stopped, take_turn
from proxying import CLIENTS, home, proxied, served_by
from sticky_session import ClusterManager, Ring
from sticky_session.address import Masks
from test_kernel_ring import by_itself
from test_upgrade_usr2 import end, upgrade, wait_for_listener_of

LISTEN = """
from gevent import monkey; monkey.patch_all()
import sticky_session
import whoami
sticky_session.listen(whoami.app, ("127.0.0.1", 0), workers=2, control_socket_disable=True, sticky_router="kernel")
"""


AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all")


def slot_of(address: str, workers: int) -> int:
    return Ring(workers).slot(Masks().key(address))


def titles(server: Server) -> list[str]:
    """The command lines of the arbiter's children."""
    return [command_line(pid) for pid in children(server.arbiter_pid)]


def waiting_at(port: int) -> int:
    """How many connections wait in the kernel to be accepted at a port: the queues of listening sockets (proc(5))."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return sum(int(row[4].split(":")[1], 16) for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}"))


# --- the slot of each client


def test_slots() -> None:
    """Thousands of clients at several addresses, of IPv4 and of both kinds, are where the ring says; nobody listens
    but the workers.
    """
    with Server(workers=6, router="kernel", bind=("127.0.0.1:0", "[::]:0", "127.0.0.1:0")) as server:
        for number, port in enumerate(server.ports):
            for address in loopback_addresses(600, seed=number):
                assert get(port, "/", address).json()["slot"] == slot_of(address, 6)
        with Client(server.ports[1], "::1", host="::1") as client:
            assert client.get("/").json()["slot"] == slot_of("::1", 6)
        assert len(children(server.pid)) == 6
        assert not any("listener" in title for title in titles(server))
        assert not server.find("Listener ready")


def test_slots_ipv6() -> None:
    """Clients from many IPv6 networks are where the ring says."""
    by_itself("server")


def test_unprivileged() -> None:
    """A user without any rights can have the kernel route."""
    with Server(workers=3, router="kernel", prefix=AS_NOBODY if os.getuid() == 0 else ()) as server:
        for address in addresses(60):
            assert get(server.port, "/", address).json()["slot"] == slot_of(address, 3)


def test_clients_of_a_proxy() -> None:
    """A trusted proxy's connections come to one worker, and go on to that of their client with the first request."""
    with Server(workers=4, router="kernel") as server:
        for client in CLIENTS[:20]:
            with proxied(server.port) as proxy:
                for _ in range(2):
                    assert served_by(proxy, f"X-Forwarded-For: {client}")["slot"] == home(client, 4)
        with proxied(server.port) as proxy:
            for client in CLIENTS[:20]:
                assert served_by(proxy, f"X-Forwarded-For: {client}")["slot"] == home(client, 4)


def test_socket_io() -> None:
    """Real Socket.IO clients, which begin with long-polling and go on with a WebSocket, each on its slot's worker."""
    with Server("sio:app", workers=4, router="kernel") as server:
        results = node(server.port, "socket.io", "upgrade", addresses(12))
        assert_answered(results, "upgrade")
        assert_at_home(results, server)


def test_listen() -> None:
    """listen() takes it, too."""
    with Script(LISTEN, workers=2) as server:
        for address in addresses(40):
            assert get(server.port, "/", address).json()["slot"] == slot_of(address, 2)
        assert not server.find("Listener ready")


def test_messages_from_outside(tmp_path: Path) -> None:
    """The bus socket has no listener before it; a worker takes what comes."""
    path = tmp_path / "bus"
    args = ("--bus-socket", os.fspath(path))
    with Server("cluster:app", workers=2, door="serve", router="kernel", args=args) as server:
        with members(server.port, [clients_of(slot, 1, workers=2)[0] for slot in (0, 1)], "websocket") as both:
            for number in range(3):
                # Each confirmed by the worker that has taken it.
                ClusterManager(write_only=True, path=path).emit("e", number)
            ClusterManager(write_only=True, path=path).emit("fence", None)
            for member in both:
                assert [arguments for _, arguments in member.until("fence")] == [(0,), (1,), (2,)]


# --- who routes


@pytest.mark.parametrize(
    ("args", "router"),
    [
        (("--router", "auto", "--client-header", "off"), "Kernel router"),
        (("--router", "auto"), "Listener"),
    ],
)
def test_auto(args: tuple[str, ...], router: str) -> None:
    """The kernel where it can serve all alike; otherwise the listener, and one line why."""
    with Server(workers=2, door="serve", args=args) as server:
        server.wait_for(f"{router} ready")
        assert get(server.port).status == 200
        assert len(server.find(r"The listener routes, not the kernel \(router=auto\): ")) == (router == "Listener")


def test_cannot_serve(tmp_path: Path) -> None:
    """Where the kernel can't route, who asks for it gets one line and no server."""
    args = ("--pythonpath", os.fspath(APPS), "--bind", "unix:socket")
    with Server(workers=2, door="serve", args=args, cwd=tmp_path, ready=False, router="kernel") as server:
        assert server.wait() == 1
        assert server.find(
            "router=kernel: bind=unix:socket: the kernel knows nothing of its peers; .* use the listener"
        )
        assert not server.find("Traceback")


# Runs its arguments with a listening socket, as systemd does.
ACTIVATE = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs sockets of two users")
@pytest.mark.parametrize("router", ["kernel", "auto"])
def test_socket_of_another_user(router: str) -> None:
    """A socket that another user has opened can have no siblings: one line and no server, or the listener."""
    prefix = (sys.executable, "-c", ACTIVATE, *AS_NOBODY)
    args = ("--client-header", "off")
    with Server(workers=2, door="serve", router=router, args=args, prefix=prefix, ready=router == "auto") as server:
        if router == "auto":
            server.wait_for(r"The listener routes, not the kernel \(router=auto\): .*Address already in use")
            assert get(server.port).status == 200
        else:
            assert server.wait() == 1
            assert server.find("router=kernel: .*Address already in use")


def test_port_in_use() -> None:
    """The port of a server is in use for the next one, also if both have the kernel route."""
    with Server(workers=2, router="kernel") as first:
        bind = (f"127.0.0.1:{first.port}",)
        with Server(workers=2, router="kernel", bind=bind, ready=False) as second:
            assert second.wait() == 1
            assert second.find("Connection in use|Address already in use")
        assert get(first.port).status == 200


def test_router_changes_with_a_reload(tmp_path: Path) -> None:
    """SIGHUP from the kernel to the listener and back: no request fails, nobody moves, nothing is leaked."""
    config = tmp_path / "config.py"
    clients = addresses(40)

    def reload(router: str) -> None:
        config.write_text(f"sticky_router = {router!r}\nworkers = 3\n")
        mark = server.mark()
        former = dict(server.worker_pids)
        server.signal(SIGHUP)
        server.wait_for_ring(after=mark)
        for pid in former.values():
            server.wait_for(rf"Worker exiting \(pid: {pid}\)", after=mark)

    config.write_text("sticky_router = 'kernel'\nworkers = 3\n")
    with Server(workers=None, door="serve", args=("-c", os.fspath(config)), ready=False) as server:
        server.wait_for("Worker ready", count=3)
        server.wait_for("Kernel router ready")
        census = descriptors(server.pid)
        with Load(server.port, clients) as load:
            for router in ("listener", "kernel"):
                load.wait_for(100)
                reload(router)
                load.wait_for(100)
                assert any("listener" in title for title in titles(server)) is (router == "listener")
        assert load.failures == []
        assert all(load.slots(address) == {slot_of(address, 3)} for address in clients)
        wait_until(lambda: descriptors(server.pid) == census, what=f"the arbiter has {census} descriptors again")


def test_address_that_goes_while_a_worker_hangs(tmp_path: Path) -> None:
    """An address that a reload takes away is refused at once, also where a former worker has it open for long."""
    config = tmp_path / "config.py"
    stays, goes = free_port(), free_port()
    config.write_text(f"bind = ['127.0.0.1:{stays}', '127.0.0.1:{goes}']\n")
    args = ("-c", os.fspath(config))
    with Server(workers=2, door="serve", args=args, bind=(), ready=False, router="kernel") as server:
        server.wait_for("Worker ready", count=2)
        client = clients_of(1, 1, workers=2)[0]
        with stopped(server.worker_pids[1]):
            waiting = send(goes, "/", client)
            config.write_text(f"bind = ['127.0.0.1:{stays}']\n")
            mark = server.mark()
            server.signal(SIGHUP)
            server.wait_for_ring(after=mark)
            take_turn(server, server.pid)
            assert receive(waiting).json()["slot"] == 1
            with pytest.raises(ConnectionRefusedError):
                connect(goes, client)
        assert get(stays).status == 200


# --- what survives


def test_killed_workers_under_load() -> None:
    """A killed worker's replacement serves what waited in the queue; other clients don't notice; nothing is leaked."""
    victim = 1
    own = clients_of(victim, 20, workers=4)
    others = [address for slot in (0, 2, 3) for address in clients_of(slot, 8, workers=4)]
    with Server(workers=4, router="kernel") as server:

        def wait_until_queued() -> None:
            wait_until(lambda: waiting_at(server.port) >= len(own), what="all wait")

        census = descriptors(server.pid)
        with Load(server.port, others, threads=2) as load:
            for _ in range(2):
                kill_while_clients_wait(server, victim, own, wait_until_queued)
            load.wait_for(50)
        assert load.failures == []
        assert all(len(load.pids(address)) == 1 for address in others)
        wait_until(lambda: descriptors(server.pid) == census, what=f"the arbiter has {census} descriptors again")


def limit_of(pid: int) -> int:
    """How many descriptors a process may have."""
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 1024, reason="needs a higher hard limit")
def test_burst_with_few_descriptors() -> None:
    """A soft limit on open files makes no queue shorter, and holds for workers and for the next arbiter."""
    prefix = ("prlimit", "--nofile=1024:")
    with Server(workers=8, router="kernel", prefix=prefix) as server:
        with stopped(server.worker_pids[3]):
            # Many for a worker that is away for a moment, and few for `--queue-size`.
            waiting = [send(server.port, "/", address) for address in clients_of(3, 400, workers=8)]
            take_turn(server, server.pid)
        assert {receive(it).status for it in waiting} == {200}
        assert {limit_of(pid) for pid in server.worker_pids.values()} == {1024}
        new = upgrade(server)
        assert {limit_of(pid) for pid in children(new)} == {1024}
        end(new)


def test_ring_changes_while_clients_wait() -> None:
    """Who waits in a queue when the ring grows, or shrinks, is served by the slot where he belongs then."""
    with Server(workers=3, router="kernel") as server:
        all_clients = addresses(60)
        for number, workers in ((SIGTTIN, 4), (SIGTTOU, 3)):
            mark = server.mark()
            with stopped(*server.worker_pids.values()):
                waiting = [send(server.port, "/", address) for address in all_clients]
                server.signal(number)
                if number == SIGTTOU:
                    server.wait_for_ring(after=mark)
                else:
                    server.wait_for_worker(3, after=mark)
                    server.wait_for_ring(after=mark)
            found = {address: receive(it).json()["slot"] for address, it in zip(all_clients, waiting, strict=True)}
            assert found == {address: slot_of(address, workers) for address in all_clients}


def test_term_while_clients_wait() -> None:
    """TERM: what waits in the queues is served, and then nobody listens any more."""
    with Server(workers=2, router="kernel") as server:
        with stopped(*server.worker_pids.values()):
            waiting = [send(server.port, "/", address) for address in addresses(40)]
            server.signal(SIGTERM)
            server.wait_for("Handling signal: term")
        assert {receive(it).json()["slot"] for it in waiting} == {0, 1}
        assert server.wait() == 0
        assert is_refused(server.port)


def test_term_after_a_worker_was_killed() -> None:
    """TERM right after a worker's death: what waited for it is served all the same."""
    with Server(workers=2, router="kernel") as server:
        client = clients_of(1, 1, workers=2)[0]
        killed = server.worker_pids[1]
        with stopped(killed, server.pid):
            waiting = [send(server.port, "/", client) for _ in range(8)]
            os.kill(killed, SIGKILL)
            wait_until(lambda: not alive(killed), what="the worker is dead")
            server.signal(SIGTERM)
        assert {receive(it).json()["slot"] for it in waiting} == {1}
        assert server.wait() == 0


def test_term_while_booting(tmp_path: Path) -> None:
    """TERM while the app is being imported: what waits is served when it is done."""
    gate = Gate(tmp_path)
    gate.close()
    with Server("gated:app", workers=2, env=gate.env, ready=False, router="kernel") as server:
        server.wait_for("Kernel router ready")
        waiting = [send(server.port, "/", address) for address in addresses(10)]
        server.signal(SIGTERM)
        server.wait_for("Handling signal: term")
        gate.open()
        assert {receive(it).json()["slot"] for it in waiting} == {0, 1}
        assert server.wait() == 0


def test_killed_arbiter() -> None:
    """When the arbiter is killed, everybody ends, and the port is free."""
    with Server(workers=2, router="kernel") as server:
        port = server.port
        os.kill(server.pid, SIGKILL)
        server.wait()
        server.assert_nothing_left()
        assert is_refused(port)


# --- two arbiters


@pytest.mark.parametrize(("first", "other"), [("kernel", "listener"), ("listener", "kernel")])
def test_upgrade_to_another_router(first: str, other: str, tmp_path: Path) -> None:
    """USR2 to an arbiter with the other router, back, and once more for good: no request fails, nobody moves."""
    config = tmp_path / "config.py"
    config.write_text(f"sticky_router = {first!r}\n")
    clients = addresses(20)
    with Server(workers=2, door="serve", args=("-c", os.fspath(config))) as server:
        with Load(server.port, clients, threads=2) as load:
            config.write_text(f"sticky_router = {other!r}\n")
            new = upgrade(server)
            load.wait_for(40)
            mark = server.mark()
            end(new)
            wait_for_listener_of(server, server.pid, mark)
            load.wait_for(40)
            new = upgrade(server)
            server.signal(SIGTERM)
            assert server.wait() == 0
            load.wait_for(40)
        end(new)
    assert load.failures == []
    assert all(load.slots(address) == {slot_of(address, 2)} for address in clients)


@pytest.mark.parametrize("first", ["listener", "kernel"])
def test_end_of_one_of_two(first: str, tmp_path: Path) -> None:
    """TERM to a new arbiter: its workers serve those who waited, and leave those who come then to the former one."""
    config = tmp_path / "config.py"
    config.write_text(f"sticky_router = {first!r}\n")
    early, late = clients_of(1, 2, workers=2)
    with Server(workers=2, door="serve", args=("-c", os.fspath(config))) as server:
        config.write_text("sticky_router = 'kernel'\n")
        former = dict(server.worker_pids)
        new = upgrade(server)
        slow, quick = (get(server.port, "/", client_of(slot, 2)).json()["pid"] for slot in (0, 1))
        with stopped(server.pid):
            with stopped(slow):
                with stopped(quick):
                    waited = send(server.port, "/", early)
                    os.kill(new, SIGTERM)
                    server.wait_for(rf"\[{new}\] \[INFO\] Handling signal: term")
                assert receive(waited).json()["pid"] == quick
                wait_until(lambda: not alive(quick), what="the quick worker is gone")
                left = send(server.port, "/", late)
            wait_until(lambda: not alive(slow), what="the slow worker is gone")
        assert receive(left).json()["pid"] == former[1]
        wait_until(lambda: not alive(new), what="the new arbiter is gone")


def test_upgrade_after_an_upgrade_to_the_listener(tmp_path: Path) -> None:
    """USR2 from the kernel to the listener, and from there to a third arbiter: it is offered no groups, and serves."""
    config = tmp_path / "config.py"
    config.write_text("sticky_router = 'kernel'\n")
    with Server(workers=2, door="serve", args=("-c", os.fspath(config))) as server:
        config.write_text("sticky_router = 'listener'\n")
        second = upgrade(server)
        server.signal(SIGTERM)
        assert server.wait() == 0
        server.wait_for(rf"\[{second}\] \[INFO\] Master has been promoted")
        mark = server.mark()
        os.kill(second, SIGUSR2)
        third = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
        wait_for_listener_of(server, third, mark)
        end(second)
        assert get(server.port).status == 200
        end(third)


def test_upgrade_with_more_workers(tmp_path: Path) -> None:
    """USR2 to a larger ring that is killed, and to one for good; the ring can't grow while there are two arbiters."""
    config = tmp_path / "config.py"
    config.write_text("workers = 2\n")
    clients = addresses(20)

    def assert_ring(workers: int) -> None:
        for address in clients:
            assert get(server.port, "/", address).json()["slot"] == slot_of(address, workers)

    with Server(workers=None, door="serve", args=("-c", os.fspath(config)), ready=False, router="kernel") as server:
        server.wait_for("Worker ready", count=2)
        config.write_text("workers = 3\n")
        with Load(server.port, clients, threads=2) as load:
            new = upgrade(server)
            load.wait_for(40)
        assert load.failures == []
        assert_ring(3)
        mark = server.mark()
        server.signal(SIGTTIN)
        server.wait_for("workers=3: expected at most 2 while another arbiter listens on the same addresses", after=mark)
        mark = server.mark()
        orphans = children(new)
        os.kill(new, SIGKILL)
        wait_for_listener_of(server, server.pid, mark)
        assert_ring(2)
        # Its workers have its sockets, by which the kernel numbers the next one's, until they find out.
        wait_until(lambda: not any(map(alive, (new, *orphans))), what="the new arbiter and its workers are gone")
        with Load(server.port, clients, threads=2) as load:
            new = upgrade(server)
            server.signal(SIGTERM)
            assert server.wait() == 0
            server.wait_for(rf"\[{new}\] \[INFO\] Master has been promoted")
            mark = server.mark()
            os.kill(new, SIGTTIN)
            server.wait_for_ring(after=mark)
            load.wait_for(40)
        assert load.failures == []
        assert_ring(4)
        end(new)


def test_connections_that_are_reset_leave_nothing() -> None:
    """Clients that are gone before they are accepted are no matter."""
    with Server(workers=2, router="kernel") as server:
        with stopped(*server.worker_pids.values()):
            for address in addresses(50):
                gone = connect(server.port, address)
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                gone.close()
        take_turn(server, server.pid)
        assert get(server.port).status == 200
        assert not server.find("Traceback")
