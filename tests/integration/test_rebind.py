"""SIGHUP that changes what is listened on: addresses come and go, and no client of those that stay notices."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR2

import pytest

from harness import APPS, Load, Server, addresses, descriptors, free_port, get, wait_until
from midway import children_and_zombies
from pending import Gate, UnixClient, is_refused
from test_upgrade_usr2 import end, upgrade, wait_for_listener_of

APP = """
{extra}
from whoami import app
"""


class Site:
    """A server whose addresses are in a configuration file.

    :param binds: the first ones
    """

    def __init__(self, place: Path, *binds: str, router: str = "listener") -> None:
        self._place = place
        self.gate = Gate(place)
        self.write()
        self.configure(*binds)
        self.server = Server(
            "site_app:app",
            workers=2,
            bind=(),
            args=("-c", "site_config.py"),
            env={"PYTHONPATH": os.fspath(APPS), **self.gate.env},
            cwd=place,
            router=router,
        )

    def write(self, extra: str = "") -> None:
        """Write the app."""
        (self._place / "site_app.py").write_text(APP.format(extra=extra))

    def configure(self, *binds: str) -> None:
        """Write the configuration file."""
        (self._place / "site_config.py").write_text(f"bind = {list(binds)}")

    def hang_up(self) -> int:
        """Send SIGHUP.

        :returns: a mark in the log before it
        """
        mark = self.server.mark()
        self.server.signal(SIGHUP)
        return mark

    def reload(self, *binds: str) -> None:
        """Reload with other addresses, and wait until only new workers are left."""
        self.configure(*binds)
        former = set(self.server.worker_pids.values())
        mark = self.hang_up()
        for slot in range(2):
            self.server.wait_for_worker(slot, after=mark)
        for pid in former:
            self.server.wait_for(rf"Worker exiting \(pid: {pid}\)", after=mark)

    def fail(self, complaint: str) -> None:
        """Reload with an app or addresses that can't be used, and wait until the server has given up."""
        mark = self.hang_up()
        self.server.wait_for(complaint, after=mark)
        wait_until(lambda: children_and_zombies(self.server.arbiter_pid) == 3, what="two workers, one listener")


def server_port(port: int) -> str:
    """What the app is told of its port."""
    return str(get(port, "/env").json()["SERVER_PORT"])


def test_more_and_fewer_addresses(tmp_path: Path) -> None:
    """An address that stays serves everybody all the while; new ones are served, dropped ones refuse."""
    stays, comes = free_port(), free_port()
    path = tmp_path / "socket"
    site = Site(tmp_path, f"127.0.0.1:{stays}")
    with site.server, Load(stays, addresses(20)) as load:
        for _ in range(2):
            # Before the one that stays: its index changes, too.
            site.reload(f"127.0.0.1:{comes}", f"unix:{path}", f"127.0.0.1:{stays}")
            assert server_port(comes) == str(comes)
            assert server_port(stays) == str(stays)
            with contextlib.closing(UnixClient(path)) as client:
                client.request("GET", "/env")
                assert client.getresponse().status == 200
            site.reload(f"127.0.0.1:{stays}")
            assert is_refused(comes)
            assert not path.exists()
            load.wait_for(50)
    assert load.failures == []


def test_more_and_fewer_addresses_of_the_kernel(tmp_path: Path) -> None:
    """The same where the kernel routes: sockets that stay keep their queues, and new clients find their slots."""
    stays, comes = free_port(), free_port()
    site = Site(tmp_path, f"127.0.0.1:{stays}", router="kernel")
    with site.server, Load(stays, addresses(20)) as load:
        held = descriptors(site.server.pid)
        site.reload(f"127.0.0.1:{comes}", f"127.0.0.1:{stays}")
        assert server_port(comes) == str(comes)
        assert server_port(stays) == str(stays)
        site.reload(f"127.0.0.1:{stays}")
        # The arbiter leaves it at its next turn, when what waits there has been taken.
        wait_until(lambda: is_refused(comes), what="nobody listens there any more")
        load.wait_for(50)
        wait_until(lambda: descriptors(site.server.pid) == held, what=f"the arbiter has {held} descriptors again")
    assert load.failures == []
    assert all(len(load.slots(address)) == 1 for address in addresses(20))


def test_app_that_fails_to_import_on_other_addresses(tmp_path: Path) -> None:
    """The old addresses go on, also with a new listener and new workers; the next good reload has the new ones."""
    old, new = free_port(), free_port()
    path = tmp_path / "socket"
    site = Site(tmp_path, f"127.0.0.1:{old}")
    with site.server:
        site.write("import no_such_module")
        site.configure(f"unix:{path}", f"127.0.0.1:{new}")
        site.fail("Can't load the app")
        assert is_refused(new)
        assert not path.exists()
        site.write()
        for victim in (site.server.listener_pid, site.server.worker_pids[0], site.server.worker_pids[1]):
            mark = site.server.mark()
            os.kill(victim, SIGKILL)
            site.server.wait_for(r"Listener ready|Worker ready", after=mark)
            assert {get(old, "/env", address).json()["SERVER_PORT"] for address in addresses(8)} == {str(old)}
        site.reload(f"unix:{path}", f"127.0.0.1:{new}")
        assert server_port(new) == str(new)
        assert is_refused(old)
        assert path.exists()
    assert not path.exists()


def test_stop_in_the_middle_of_a_change_of_addresses(tmp_path: Path) -> None:
    """SIGTERM while the new workers still boot removes the old sockets' and the new ones' files."""
    paths = [tmp_path / "old", tmp_path / "new"]
    site = Site(tmp_path, f"unix:{paths[0]}")
    with site.server:
        site.gate.close()
        site.write("import gated")
        site.configure(f"unix:{paths[1]}")
        mark = site.hang_up()
        site.server.wait_for("Booting worker", after=mark)
        assert [path.exists() for path in paths] == [True, True]
        site.server.signal(SIGTERM)
        site.server.wait_for("Handling signal: term", after=mark)
        site.gate.open()
        assert site.server.wait() == 0
        assert [path.exists() for path in paths] == [False, False]


def umask(pid: int) -> str:
    """The file mode creation mask of a process."""
    return re.findall(r"^Umask:\s+(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0]


@pytest.mark.parametrize("other", ["127.0.0.1:{taken}", "fd://0", "unix:/no/such/place/socket"])
def test_address_that_cannot_be_used(tmp_path: Path, other: str) -> None:
    """One line says so, nothing of the new configuration stays, and the old one goes on."""
    old, new = free_port(), free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = other.format(taken=taken.getsockname()[1])
        site = Site(tmp_path, f"127.0.0.1:{old}")
        with site.server, Load(old, addresses(20)) as load:
            before, mask = dict(site.server.worker_pids), umask(site.server.pid)
            site.configure(f"127.0.0.1:{new}", place)
            mark = site.hang_up()
            site.server.wait_for("Reload failed", after=mark)
            assert len(site.server.find(r"\[ERROR\]", after=mark)) == 1
            assert is_refused(new)
            load.wait_for(50)
            assert site.server.worker_pids == before
            assert umask(site.server.pid) == mask
        assert load.failures == []


def test_same_address_twice(tmp_path: Path) -> None:
    """Under any of its names it is one socket."""
    port = free_port()
    site = Site(tmp_path, f"127.0.0.1:{port}")
    with site.server:
        site.reload(f"127.0.0.1:{port}", f"localhost:{port}", f"127.0.0.1:{port}")
        assert server_port(port) == str(port)


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_inherited_address_that_stays(tmp_path: Path, host: str) -> None:
    """A new arbiter after SIGUSR2 knows its sockets' addresses, whatever the configuration calls them."""
    stays, comes = free_port(), free_port()
    site = Site(tmp_path, f"{host}:{stays}")
    with site.server as server:
        new = upgrade(server)
        server.signal(SIGTERM)
        assert server.wait() == 0
        site.configure(f"127.0.0.1:{comes}", f"{host}:{stays}")
        mark = server.mark()
        os.kill(new, SIGHUP)
        for slot in range(2):
            server.wait_for_worker(slot, after=mark)
        assert server_port(comes) == str(comes)
        end(new)


def test_new_arbiter_in_the_middle_of_a_change_of_addresses(tmp_path: Path) -> None:
    """SIGUSR2 while SIGHUP's workers boot: the new arbiter has the new socket, and nothing of the old one."""
    old, new = free_port(), free_port()
    site = Site(tmp_path, f"127.0.0.1:{old}")
    with site.server as server:
        site.gate.close()
        site.write("import gated")
        site.configure(f"127.0.0.1:{new}")
        mark = site.hang_up()
        server.wait_for("Booting worker", after=mark, count=2)
        server.signal(SIGUSR2)
        server.wait_for("Handling signal: usr2", after=mark)
        site.gate.open()
        arbiter = int(server.wait_for(r"Listening at: .* \((\d+)\)", after=mark)[1])
        wait_for_listener_of(server, arbiter, mark)
        server.signal(SIGTERM)
        assert server.wait() == 0
        assert server_port(new) == str(new)
        assert is_refused(old)
        end(arbiter)
