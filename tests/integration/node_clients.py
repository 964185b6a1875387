"""Socket.IO's and Engine.IO's own clients in Node, many of them in one process: ``tests/clients/clients.js``."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from harness import Server
from sticky_session import Ring

CLIENTS = Path(__file__).parent.parent / "clients"
EVENTS = 20
# For servers whose clients keep their connections: where one ends just as it is used again, xmlhttprequest-ssl 2.1.2
# repeats the request without its end, and waits for ever.
KEEP = ("--keep-alive", "60")

# What has happened to one client so far: address, answers, errors, transport, reconnects, pids (a worker's each time
# that it wasn't the last one's), connections, requests, statuses.
Result: TypeAlias = dict[str, Any]


class NodeClients:
    """Clients that connect when they are started and ask when they are told to; a context manager.

    :param port: where they connect to
    :param clients: the address of each
    :param library: ``"socket.io"`` or ``"engine.io"``
    :param mode: ``"polling"``, ``"upgrade"`` or ``"websocket"``
    :param plan: what else ``clients.js`` can be told
    """

    def __init__(
        self, port: int, clients: Sequence[str], *, library: str = "socket.io", mode: str = "polling", **plan: Any
    ) -> None:
        self._plan = {"port": port, "library": library, "mode": mode, "addresses": clients, **plan}

    def ask(self, events: int = EVENTS) -> list[Result]:
        """Have each ask for so many events; returns when all have had their last answer, or an error."""
        return self._say(str(events))

    def go_on(self) -> None:
        """Have all ask for one event after the other until :meth:`rest`."""
        self._write("on")

    def rest(self) -> list[Result]:
        """Have each stop after its next answer. A long-polling client then still waits for what the server may say."""
        return self._say("off")

    def _write(self, line: str) -> None:
        assert self._node.stdin
        self._node.stdin.write(f"{line}\n")
        self._node.stdin.flush()

    def _say(self, line: str) -> list[Result]:
        assert self._node.stdout
        self._write(line)
        printed = self._node.stdout.readline()
        assert printed, f"node exited with status {self._node.wait()}"
        return list(json.loads(printed))

    def __enter__(self) -> NodeClients:
        self._node = subprocess.Popen(
            ["node", "clients.js", json.dumps(self._plan)],
            cwd=CLIENTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._node:
            if kind is not None:
                self._node.kill()


def node(port: int, library: str, mode: str, clients: Sequence[str], **plan: Any) -> list[Result]:
    """Have clients connect and ask for :data:`EVENTS` events each."""
    with NodeClients(port, clients, library=library, mode=mode, **plan) as crowd:
        return crowd.ask()


def assert_answered(results: Sequence[Result], mode: str, events: int | None = EVENTS) -> None:
    """Every client had all its answers without an error, over the right transport.

    :param events: how many; None if that isn't known
    """
    for result in results:
        assert result["errors"] == []
        assert result["reconnects"] == 0
        assert events is None or result["answers"] == events
        assert set(result["statuses"]) <= {"200"}
        assert result["transport"] == ("polling" if mode == "polling" else "websocket")


def assert_at_home(results: Sequence[Result], *machines: Server) -> None:
    """Every client was served by one worker, the one of its own slot in one machine; and all of them have clients."""
    workers = [machine.worker_pids for machine in machines]
    for result in results:
        assert len(result["pids"]) == 1, result
        (pid,) = result["pids"]
        assert pid in home(result["address"], *machines), result
    assert {pid for result in results for pid in result["pids"]} == {pid for pids in workers for pid in pids.values()}
    for machine in machines:
        assert "Traceback" not in machine.log


def home(address: str, *machines: Server) -> set[int]:
    """The workers that an address belongs to, one for each machine."""
    key = socket.inet_aton(address)
    return {machine.worker_pids[Ring(len(machine.worker_pids)).slot(key)] for machine in machines}
