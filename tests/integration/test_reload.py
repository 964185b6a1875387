"""SIGHUP: new configuration and code with no request lost, and the old ones where the new can't be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGKILL

import pytest
import websocket

from harness import APPS, ROUTERS, Load, Server, addresses, descriptors, get, wait_until
from midway import Sessions, ask, children_and_zombies, clients_of, websocket_to
from pending import Gate, stopped, take_turn
from wire import Wire

APP = """
import os
{extra}
import survivor
from gevent.monkey import get_original

def app(environ, start_response):
    if environ["PATH_INFO"] == "/hang":
        get_original("time", "sleep")(4)
    elif environ["PATH_INFO"] != "/version":
        return survivor.app(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"{version} " + os.environ.get("FLAVOUR", "-").encode()]
"""


# A configuration whose workers boot when the site's gate is open.
GATED = "def post_fork(server, worker):\n import gated\n"


class Site:
    """An app and a configuration file, which a test writes anew, and a server of them.

    :param place: an empty directory
    :param door: see :class:`harness.Server`
    :param router: the same
    """

    def __init__(self, place: Path, door: str = "gunicorn", router: str = "listener") -> None:
        self._place = place
        self.gate = Gate(place)
        self.write(1)
        self.configure()
        self.server = Server(
            "site_app:app",
            workers=None,
            door=door,
            args=("-c", "site_config.py"),
            env={
                "PYTHONPATH": os.fspath(APPS),
                "WEB_CONCURRENCY": "2",
                **self.gate.env,
            },
            cwd=place,
            router=router,
        )

    def write(self, version: int, extra: str = "") -> None:
        """Write the app, which tells its version."""
        (self._place / "site_app.py").write_text(APP.format(version=version, extra=extra))

    def configure(self, text: str = "keepalive = 60") -> None:
        """Write the configuration file."""
        (self._place / "site_config.py").write_text(text)

    def hang_up(self) -> int:
        """Send SIGHUP.

        :returns: a mark in the log before it
        """
        mark = self.server.mark()
        self.server.signal(SIGHUP)
        return mark

    def reload(self, workers: int = 2) -> None:
        """Send SIGHUP and wait until only new workers are left."""
        former = set(self.server.worker_pids.values())
        mark = self.hang_up()
        for slot in range(workers):
            self.server.wait_for_worker(slot, after=mark)
        for pid in former:
            self.server.wait_for(rf"Worker exiting \(pid: {pid}\)", after=mark)

    def version(self, address: str = "127.0.0.7") -> str:
        """What the app says of itself and of its environment."""
        return get(self.server.port, "/version", address).body.decode()

    def census(self) -> tuple[int, int]:
        """What the arbiter holds: descriptors, and children."""
        pid = self.server.arbiter_pid
        return descriptors(pid), children_and_zombies(pid)


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A running server with two workers; its parameter is the router."""
    site = Site(tmp_path, router=getattr(request, "param", "listener"))
    with site.server:
        yield site


with_both_routers = pytest.mark.parametrize("site", ROUTERS, indirect=True)


@with_both_routers
def test_reload_under_load(site: Site) -> None:
    """No request fails; new code and configuration are in force; clients keep their slots; nothing is leaked."""
    clients = addresses(40)
    census = site.census()
    with Load(site.server.port, clients) as load:
        for version in (2, 3, 4):
            load.wait_for(100)
            site.write(version)
            site.configure(f"raw_env = ['FLAVOUR={version}']\nkeepalive = 0\n")
            site.reload()
            assert {site.version(address) for address in clients} == {f"{version} {version}"}
        load.wait_for(100)
    assert load.failures == []
    for address in clients:
        assert len(load.slots(address)) <= 1
    assert get(site.server.port, "/", headers={"Connection": "keep-alive"}).headers["Connection"] == "close"
    wait_until(lambda: site.census() == census, what=f"the arbiter has {census} again")


@with_both_routers
def test_memory_of_the_former_generation(site: Site) -> None:
    """New workers, which are forked while the former generation is there, keep nothing of its table."""
    assert {shared_memories(pid) for pid in site.server.worker_pids.values()} == {1}
    site.reload()
    assert {shared_memories(pid) for pid in site.server.worker_pids.values()} == {1}


def shared_memories(pid: int) -> int:
    """How many pieces of memory without a file the process shares with others."""
    return Path(f"/proc/{pid}/maps").read_text().count(" /dev/zero (deleted)\n")


@with_both_routers
def test_reload_with_one_more_worker(site: Site) -> None:
    """The ring grows with the new configuration: only the new slot's clients move, and no request fails."""
    clients = addresses(40)
    movers = clients_of(2, 40, workers=3)
    with Load(site.server.port, [*clients, *movers[:10]]) as load:
        load.wait_for(100)
        site.configure("workers = 3")
        site.reload(workers=3)
        load.wait_for(100)
        assert {get(site.server.port, "/", address).json()["slot"] for address in movers} == {2}
    assert load.failures == []
    for address in load.history:
        assert len(load.slots(address) - {2}) <= 1
        assert address in movers or 2 not in load.slots(address)


def umask_of(pid: int) -> str:
    """See proc(5)."""
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("Umask")]
    return line


@with_both_routers
def test_app_that_fails_to_import(site: Site) -> None:
    """The old workers go on serving; one line says why; the arbiter listens, and a good SIGHUP works at once."""
    with Load(site.server.port, addresses(20)) as load:
        census = site.census()
        with Sessions(site.server.port, addresses(2, 50)) as sessions:
            for module in ("no_such_module", "nor_this"):
                site.write(2, extra=f"import {module}")
                mark = site.hang_up()
                site.server.wait_for(module, after=mark)
                # Another signal has its effect now, not when some time is over.
                wait_until(lambda: site.census() == census, what=f"the arbiter has {census} again")
                assert len(site.server.find(rf"\[ERROR\] Can't load the app: .*{module}", after=mark)) == 1
                sessions.assert_unmoved()
            assert site.version() == "1 -"
        site.write(3)
        site.reload()
        assert site.version() == "3 -"
    assert load.failures == []


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("workers = (", "SyntaxError"),
        ("raise RuntimeError('no such luck')", "no such luck"),
        ("workers = 'several'", "several"),
        ("workers = 0", "workers=0"),
        ("workers = 2000", "workers=2000"),
        ("worker_class = 'no.such.Worker'", "no.such.Worker"),
        ("worker_class = 'gevent'", "worker_class=gevent"),
        ("sticky_seed = -1", "-1"),
        ("raw_env = ['FLAVOUR']", "FLAVOUR"),
        ("pidfile = '/no/such/place/pid'", "/no/such/place"),
        ("worker_tmp_dir = '/no/such/place'", "/no/such/place"),
        ("def pre_fork(server, worker): raise OSError('no such luck')", "no such luck"),
    ],
)
def test_configuration_with_an_error(tmp_path: Path, config: str, complaint: str) -> None:
    """The same processes go on serving; one line says why; a good SIGHUP works afterwards."""
    site = Site(tmp_path, door="serve")
    with site.server, Load(site.server.port, addresses(20)) as load:
        before = dict(site.server.worker_pids)
        listener = site.server.listener_pid
        umask = umask_of(site.server.pid)
        site.configure(config)
        mark = site.hang_up()
        site.server.wait_for("Reload failed", after=mark)
        assert len(site.server.find(r"\[ERROR\]", after=mark)) == 1
        assert site.server.find(complaint, after=mark)
        load.wait_for(50)
        assert site.server.worker_pids == before
        assert site.server.listener_pid == listener
        assert umask_of(site.server.pid) == umask
        site.configure("raw_env = ['FLAVOUR=s']")
        site.reload()
        assert site.version() == "1 s"
    assert load.failures == []


@pytest.mark.parametrize("certificate", ["no/such/file", "conf.py"])
def test_certificate_that_cannot_be_used(tmp_path: Path, certificate: str) -> None:
    """The same processes go on serving; one line says why; a good SIGHUP works afterwards."""
    site = Site(tmp_path)
    with site.server, Load(site.server.port, addresses(20)) as load:
        census = site.census()
        site.configure(f"certfile = keyfile = {certificate!r}")
        mark = site.hang_up()
        site.server.wait_for("The others go on serving", after=mark)
        wait_until(lambda: site.census() == census, what=f"the arbiter has {census} again")
        assert len(site.server.find(rf"Can't load the app: .*certfile='{certificate}'", after=mark)) == 1
        assert not site.server.find("Traceback", after=mark)
        site.configure("")
        site.reload()
    assert load.failures == []


def test_hook_with_an_error(tmp_path: Path) -> None:
    """What on_reload raises is in the log, and the reload goes on."""
    site = Site(tmp_path)
    with site.server:
        site.configure("raw_env = ['FLAVOUR=s']\ndef on_reload(server): raise RuntimeError('no such luck')")
        mark = site.server.mark()
        site.reload()
        assert site.version() == "1 s"
        assert site.server.find("RuntimeError: no such luck", after=mark)


def test_failed_reload_leaves_the_ring(tmp_path: Path) -> None:
    """After a reload that failed a new listener routes as the old one did, and a killed worker comes back at once."""
    site = Site(tmp_path, door="serve")
    clients = addresses(20)
    with site.server, Load(site.server.port, clients) as load:
        load.wait_for(50)
        census = site.census()
        site.write(2, extra="import no_such_module")
        site.configure("sticky_seed = 1\nworkers = 3")
        for _ in range(4):
            mark = site.hang_up()
            site.server.wait_for("Can't load the app", after=mark)
            wait_until(lambda: site.census() == census, what=f"the arbiter has {census} again")
        site.write(3)
        mark = site.server.mark()
        os.kill(site.server.worker_pids[0], SIGKILL)
        # That others could not boot is no reason to wait: after so many failures it would be four seconds.
        site.server.wait_for_worker(0, after=mark, timeout=3.5)
        for _ in range(2):
            mark = site.server.mark()
            os.kill(site.server.listener_pid, SIGKILL)
            site.server.wait_for_listener(after=mark)
            load.wait_for(50)
        assert all(len(load.slots(address)) <= 1 for address in clients)
        # What a killed process has in its hands: the worker those of four threads, a listener one connection.
        assert len(load.failures) <= 6, load.failures


@pytest.mark.parametrize(
    ("extra", "config"), [("", "workers = ("), ("import no_such_module", "preload_app = True")], ids=["config", "app"]
)
def test_good_reload_before_a_bad_one(tmp_path: Path, extra: str, config: str) -> None:
    """What can't even begin doesn't take back the reload before it, which was still under way."""
    site = Site(tmp_path)
    with site.server, Load(site.server.port, addresses(20)) as load:
        site.write(2)
        site.gate.close()
        site.configure(f"workers = 3\n{GATED}")
        mark = site.hang_up()
        site.server.wait_for("Booting worker", count=3, after=mark)
        site.write(3, extra=extra)
        site.configure(config)
        site.hang_up()
        site.server.wait_for("Reload failed", after=mark)
        site.write(2)
        site.gate.open()
        for slot in range(3):
            site.server.wait_for_worker(slot, after=mark)
        third = clients_of(2, 1, workers=3)[0]
        wait_until(lambda: site.version(third) == "2 -")
        take_turn(site.server, site.server.pid)
        assert get(site.server.port, "/", third).json()["slot"] == 2
        assert len(site.server.find("Booting worker", after=mark)) == 3
    assert load.failures == []


def test_reload_with_open_websockets(site: Site) -> None:
    """Old workers close them with 1012, service restart; a client that comes back has the same slot, new code."""
    with websocket_to(site.server.port, "127.0.0.7") as opened:
        before = ask(opened)
        site.write(2)
        mark = site.hang_up()
        opcode, payload = opened.recv_data()
        assert (opcode, payload[:2]) == (websocket.ABNF.OPCODE_CLOSE, (1012).to_bytes(2, "big"))
        site.server.wait_for(rf"Worker exiting \(pid: {before['pid']}\)", after=mark)
    with websocket_to(site.server.port, "127.0.0.7") as opened:
        after = ask(opened)
    assert after["slot"] == before["slot"]
    assert after["pid"] == site.server.worker_pids[after["slot"]] != before["pid"]
    assert site.version() == "2 -"


def test_reloads_in_quick_succession(site: Site) -> None:
    """Ten at once, and one that finds the former half done, end with the last code everywhere and no request lost."""
    clients = addresses(20)
    census = site.census()
    with Load(site.server.port, clients, threads=2) as load:
        for version in range(2, 8):
            site.write(version)
            mark = site.hang_up()
            site.server.wait_for("Booting worker", after=mark)
        site.write(8)
        for _ in range(4):
            site.server.signal(SIGHUP)
        wait_until(lambda: {site.version(address) for address in clients} == {"8 -"}, timeout=30)
        wait_until(lambda: site.census() == census, timeout=30, what=f"the arbiter has {census} again")
    assert load.failures == []
    assert all(len(load.slots(address)) <= 1 for address in clients)


def test_reload_while_a_request_takes_long(site: Site) -> None:
    """The arbiter does its work while an old worker finishes: it replaces what is killed, and reloads again."""
    slow = clients_of(0, 1, workers=2)[0]
    quick = clients_of(1, 1, workers=2)[0]
    with Wire(site.server.port, slow) as under_way:
        # Until the client sends the body.
        under_way.send("POST /echo HTTP/1.1", "Host: a", "Content-Length: 4")
        busy = get(site.server.port, "/", slow).json()["pid"]
        mark = site.hang_up()
        site.server.wait_for_listener(after=mark)
        mark = site.server.mark()
        os.kill(get(site.server.port, "/", quick).json()["pid"], SIGKILL)
        site.server.wait_for_worker(1, after=mark)
        site.write(2)
        site.hang_up()
        wait_until(lambda: site.version(slow) == site.version(quick) == "2 -")
        assert not site.server.find(rf"Worker exiting \(pid: {busy}\)")
        under_way.sock.sendall(b"body")
        assert under_way.answer().body == b"body"


def test_reload_with_a_stopped_listener(tmp_path: Path) -> None:
    """A listener that hangs when it is to be replaced doesn't keep the old workers for ever."""
    site = Site(tmp_path)
    site.configure("timeout = 2")
    with site.server:
        census = site.census()
        hanging = site.server.listener_pid
        site.write(2)
        with stopped(hanging):
            site.reload()
        wait_until(lambda: site.census() == census, timeout=30, what=f"the arbiter has {census} again")
        assert site.version() == "2 -"


@pytest.mark.parametrize("error", ["workers = 0", ""], ids=["config", "app"])
def test_failed_reload_leaves_directory_environment_and_pid_file(tmp_path: Path, error: str) -> None:
    """A worker that replaces a killed one after it finds what the old configuration had made."""
    site, pid_files = Site(tmp_path), [tmp_path / "old.pid", tmp_path / "new.pid"]
    site.configure(f"pidfile = {os.fspath(pid_files[0])!r}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "site_app.py").write_text("import no_such_module")
    with site.server:
        site.configure(
            f"import os; os.environ['FLAVOUR'] = 'new'\nchdir = {os.fspath(elsewhere)!r}\n"
            f"pidfile = {os.fspath(pid_files[1])!r}\n{error}"
        )
        mark = site.hang_up()
        site.server.wait_for("Reload failed" if error else "no_such_module", after=mark)
        wait_until(lambda: children_and_zombies(site.server.pid) == 3)
        for slot in range(2):
            mark = site.server.mark()
            os.kill(site.server.worker_pids[slot], SIGKILL)
            site.server.wait_for_worker(slot, after=mark)
        assert {site.version(address) for address in addresses(8)} == {"1 -"}
        assert [path.exists() for path in pid_files] == [True, False]


def test_killed_worker_while_new_ones_boot(site: Site) -> None:
    """Its replacement has the old environment, too."""
    site.gate.close()
    site.configure(f"raw_env = ['FLAVOUR=new']\n{GATED}")
    mark = site.hang_up()
    site.server.wait_for("Booting worker", after=mark, count=2)
    mark = site.server.mark()
    os.kill(site.server.worker_pids[0], SIGKILL)
    site.server.wait_for_worker(0, after=mark)
    assert {site.version(address) for address in addresses(8)} == {"1 -"}
    site.gate.open()


def test_old_workers_keep_their_timeout(site: Site) -> None:
    """A request that may take its time under the old configuration isn't ended by the new one."""
    # The new workers, whom it does hold for, must not begin to serve before the request is over.
    site.gate.close()
    site.configure(f"timeout = 1\n{GATED}")
    mark = site.hang_up()
    site.server.wait_for("Booting worker", after=mark, count=2)
    assert get(site.server.port, "/hang").status == 200
    assert not site.server.find("WORKER TIMEOUT", after=mark)
    site.gate.open()


OTHERS_REAP = """
import os
def on_reload(server):
    kill = server.kill_worker
    def reap_first(pid, number):
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        kill(pid, number)
        server.log.info("Reaped %s", pid)
        if len(server.WORKERS) == 2:
            del server.kill_worker
    server.kill_worker = reap_first
"""


def test_old_workers_that_somebody_else_reaps(site: Site) -> None:
    """Their end may be found out by the signal that tells them to stop."""
    site.configure(OTHERS_REAP)
    mark = site.hang_up()
    site.server.wait_for("Reaped", after=mark, count=2)
    take_turn(site.server, site.server.pid)
    assert get(site.server.port).status == 200
