"""An arbiter's kernel router with real sockets and clients, and no processes."""

from __future__ import annotations

import contextlib
import os
import socket
from types import SimpleNamespace
from typing import Any

from sticky_session import Ring, handoff
from sticky_session.config import Options
from sticky_session.generation import Generation
from sticky_session.kernelrouter import KernelRouter
from sticky_session.settings import StickyConfig

WORKERS = 3


class Log:
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str, *values: Any) -> None:
        self.lines.append(line % values)

    warning = error = info


class Listening:
    """A listening socket as gunicorn has it."""

    FAMILY = socket.AF_INET

    def __init__(self, backlog: int = 64) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=backlog)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class Place:
    """An arbiter's router without any process; a context manager.

    :param options: ours
    """

    def __init__(self, **options: Any) -> None:
        self.log = Log()
        self.router = KernelRouter(self.log)
        self.listening = Listening()
        self.cfg = StickyConfig(prog="test")
        self.cfg.set("workers", WORKERS)
        for name, value in {"router": "kernel", **options}.items():
            self.cfg.set(f"sticky_{name}", value)
        self.options = Options.collect(lambda option: (getattr(self.cfg, option.setting), option.setting))
        self.generations: list[Generation] = []
        self.clients: list[socket.socket] = []

    def generation(self, slots: int = WORKERS) -> Generation:
        """A new generation in which all slots have workers."""
        groups = self.router.choose(self.cfg, self.options, [self.listening], slots)
        made = Generation(SimpleNamespace(cfg=self.cfg), self.options, slots, [self.listening], groups)
        for slot in range(slots):
            made.table.fill(slot, os.getpid())
        self.generations.append(made)
        return made

    def connect(self, slot: int, slots: int = WORKERS) -> socket.socket:
        """A client of a slot."""
        ring = Ring(slots)
        count = len(self.clients)
        hosts = (f"127.0.{1 + count}.{number}" for number in range(1, 255))
        host = next(host for host in hosts if ring.slot(socket.inet_aton(host)) == slot)
        client = socket.socket()
        client.settimeout(10)
        client.bind((host, 0))
        client.connect(self.listening.getsockname())
        self.clients.append(client)
        return client

    def accept(self) -> str:
        """Take a client as a listener does."""
        connection, peer = self.listening.accept()
        connection.close()
        return str(peer[0])

    def arrived(self, generation: Generation, slot: int) -> list[str]:
        """Take the clients out of a slot's channel."""
        receiver, found = handoff.Receiver(generation.channels[slot].receiving_end), []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = receiver.receive()
                assert frame is not None
                with socket.socket(fileno=frame.descriptor) as connection:
                    found.append(connection.getpeername()[0])
        return found

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.router.shut()
        self.router.close_in_child()
        for client in self.clients:
            client.close()
        for generation in self.generations:
            generation.close()
        self.listening.close()


def host(client: socket.socket) -> str:
    return str(client.getsockname()[0])
