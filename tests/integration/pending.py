"""What tests of switches between processes need: requests under way, a gate for booting workers, the loop's turns."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGUSR1

from harness import ADDRESS, Client, Load, Process, Response, Server, addresses, connect, wait_until
from sticky_session import Ring
from sticky_session.address import pack


def client_of(slot: int, workers: int) -> str:
    """An address whose slot it is in a ring of that size, found without asking a server that may not answer."""
    ring = Ring(workers)
    return next(address for address in addresses(1000) if ring.slot(pack(address)) == slot)


def send(port: int, path: str = "/", address: str = ADDRESS) -> Client:
    """Send a request over a connection of its own, and don't wait for the response."""
    client = Client(port, address)
    client.connect()
    client.request("GET", path, headers={"Connection": "close"})
    return client


def receive(client: http.client.HTTPConnection) -> Response:
    """The response to what :func:`send` has sent."""
    with contextlib.closing(client):
        response = client.getresponse()
        return Response(response.status, response.headers, response.read())


def is_refused(port: int) -> bool:
    """Whether nobody listens at the port any more."""
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return True
    return False


class UnixClient(http.client.HTTPConnection):
    """A client of a server at a Unix socket."""

    def __init__(self, path: os.PathLike[str]) -> None:
        super().__init__("localhost", timeout=20)
        self._path = os.fspath(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def unix_send(path: os.PathLike[str]) -> UnixClient:
    """Send a request for the environ over a Unix socket, and don't wait for the response."""
    client = UnixClient(path)
    client.request("GET", "/env", headers={"Connection": "close"})
    return client


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that don't run within the block."""
    for pid in pids:
        os.kill(pid, SIGSTOP)
    wait_until(lambda: all(map(is_stopped, pids)), what=f"{pids} have stopped")
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGCONT)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect."""
    return "\nState:\tT" in Path(f"/proc/{pid}/status").read_text()


def take_turn(server: Process, arbiter: int) -> None:
    """Wait until the arbiter's loop has made one whole turn that began after this call."""
    for _ in range(2):
        mark = server.mark()
        os.kill(arbiter, SIGUSR1)
        server.wait_for(rf"\[{arbiter}\] \[INFO\] Handling signal: usr1", after=mark)


class Gate:
    """Decides when a worker may import ``gated:app``.

    :param place: an empty directory
    """

    def __init__(self, place: Path) -> None:
        self._place = place

    @property
    def env(self) -> dict[str, str]:
        """The environment variable that the app finds the gate by."""
        return {"GATE": os.fspath(self._place)}

    def close(self) -> None:
        """From now on let none in."""
        (self._place / "closed").touch()

    def open(self) -> None:
        """Let all in, except the one that is held."""
        (self._place / "closed").unlink()

    def hold_next(self) -> None:
        """Hold the next worker that comes, and only that one."""
        (self._place / "hold-next").touch()

    def held(self) -> int:
        """Wait until a worker is held, and return its pid."""
        found = wait_until(lambda: list(self._place.glob("held-*")), what="a worker is held")
        return int(found[0].name.removeprefix("held-"))

    def release(self) -> None:
        """Let the held worker in."""
        for held in self._place.glob("held-*"):
            held.unlink()


class History(Load):
    """A :class:`Load` that knows in what order a client was served by which arbiter's workers."""

    def __init__(self, server: Server, clients: Sequence[str], *, threads: int = 4) -> None:
        super().__init__(server.port, clients, threads=threads)
        self._server = server

    def arbiters(self) -> dict[str, list[int]]:
        """Address -> the arbiters that served it, in order, one entry for any number of requests in a row."""
        arbiter_of = {
            int(found[2]): int(found[1])
            for found in self._server.find(r"\[(\d+)\] \[INFO\] Worker ready \(slot:\d+, pid:(\d+)\)")
        }
        found: dict[str, list[int]] = defaultdict(list)
        for address, pids in self.history.items():
            for pid in pids:
                if found[address][-1:] != [arbiter_of[pid]]:
                    found[address].append(arbiter_of[pid])
        return found


def is_child(pid: int, parent: int) -> bool:
    """Whether a process runs and is the child of another."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return f"\nPPid:\t{parent}\n" in status and "\nState:\tZ" not in status


def wait_for_workers(server: Server, arbiter: int, pids: Iterable[int]) -> None:
    """Wait until exactly these are the arbiter's workers."""
    expected = set(pids)

    def workers() -> bool:
        started = {int(found[1]) for found in server.find(r"Booting worker with pid: (\d+)")}
        return {pid for pid in started if is_child(pid, arbiter)} == expected

    wait_until(workers, what=f"the workers of {arbiter} are {sorted(expected)}")
