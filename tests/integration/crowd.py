"""Many Socket.IO clients over WebSocket, some of which speak; every one checks what it hears.

What is promised: a client hears each speaker's messages in order, none twice and none left out, from the first that it
hears until its connection ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import selectors
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from struct import pack, unpack_from
from types import TracebackType
from typing import Any

import websocket

from harness import connect

WAIT_SECONDS = 60.0
# How many messages a speaker is ahead of the slowest listener.
WINDOW = 5


class Guest:
    """One client.

    :ivar heard: speaker -> the number that it heard last
    :ivar first: speaker -> the number that it heard first
    :ivar floor: speaker -> the number that it had said last when this client came
    :ivar waited_for: whether speakers wait until it has heard them
    :ivar faults: what was not as promised
    """

    def __init__(self, port: int, address: str) -> None:
        self.address = address
        self.heard: dict[str, int] = {}
        self.floor: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.faults: list[str] = []
        self.open = True
        self.waited_for = True
        self._buffer = bytearray()
        self.sock = connect(port, address, timeout=WAIT_SECONDS)
        opened = websocket.create_connection(
            f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket", socket=self.sock, timeout=WAIT_SECONDS
        )
        assert opened.recv().startswith("0{")
        opened.send("40")
        answer = opened.recv()
        assert answer.startswith("40{"), answer
        # From here on without websocket-client, which would need a thread for each.
        self._websocket = opened

    def send(self, text: str) -> None:
        """Send a text message; small, so that it never waits."""
        data = text.encode()
        head = pack("!BB", 0x81, 0x80 | len(data)) if len(data) < 126 else pack("!BBH", 0x81, 0x80 | 126, len(data))
        # A mask of zeros changes nothing.
        self.sock.sendall(head + bytes(4) + data)

    def read(self) -> None:
        """Take what has arrived."""
        try:
            data = self.sock.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self.open = False
        self._buffer += data
        for opcode, payload in self._frames():
            if opcode == 8:
                self.open = False
            elif payload == b"2":
                self.send("3")
            elif payload.startswith(b'42["said",'):
                _, speaker, number, *_ = json.loads(payload[2:])
                self._hear(speaker, number)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        buffer, start = self._buffer, 0
        while len(buffer) >= start + 2:
            opcode, size = buffer[start] & 15, buffer[start + 1]
            body = start + 2
            if size >= 126:
                extra = 2 if size == 126 else 8
                if len(buffer) < body + extra:
                    break
                (size,) = unpack_from("!H" if extra == 2 else "!Q", buffer, body)
                body += extra
            if len(buffer) < body + size:
                break
            yield opcode, bytes(buffer[body : body + size])
            start = body + size
        del buffer[:start]

    def _hear(self, speaker: str, number: int) -> None:
        last = self.heard.get(speaker)
        if last is None:
            self.first[speaker] = number
        elif number != last + 1:
            self.faults.append(f"{self.address} heard {speaker} say {number} after {last}")
        self.heard[speaker] = number


class Crowd:
    """A thread in which all clients live; a context manager.

    :ivar guests: all that there ever were
    :ivar speakers: name -> the client that speaks under it
    :ivar said: name -> how many messages it has sent
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.guests: list[Guest] = []
        self.speakers: dict[str, Guest] = {}
        self.said: dict[str, int] = {}
        self.speaking = True
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue()
        self._selector = selectors.DefaultSelector()
        self._wake_end, self._wake = os.pipe()
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        self._names = itertools.count(1)
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="crowd")

    # --- from the test

    def join(self, addresses: Iterable[str]) -> list[Guest]:
        """Let a client in from each address."""
        with ThreadPoolExecutor(8) as pool:
            guests = list(pool.map(lambda address: Guest(self._port, address), addresses))
        self._do(lambda: [self._admit(guest) for guest in guests])
        return guests

    def _admit(self, guest: Guest) -> None:
        self.guests.append(guest)
        self._selector.register(guest.sock, selectors.EVENT_READ, guest)
        # Speakers wait for it from now on; what they have said before it may or may not hear.
        guest.floor = {name: count - 1 for name, count in self.said.items()}

    def let_speak(self, guest: Guest) -> str:
        """Have a client speak until its connection ends; returns the name that it speaks under."""
        name = f"s{next(self._names)}"

        def begin() -> None:
            self.said[name] = 0
            self.speakers[name] = guest

        self._do(begin)
        return name

    def _do(self, command: Callable[[], Any]) -> None:
        done = threading.Event()

        def run() -> None:
            command()
            done.set()

        self._commands.put(run)
        os.write(self._wake, b"!")
        assert done.wait(WAIT_SECONDS), self._error

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that the clients hear or see."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._error or condition(), WAIT_SECONDS)
        assert not self._error, self._error
        assert ended, f"not within {WAIT_SECONDS:g} s: {what}"

    def wait_for_more(self, count: int) -> None:
        """Wait until every speaker that is waited for has said so many more, and all have heard most of it."""
        goals = {
            name: self.said[name] + count for name, guest in self.speakers.items() if guest.open and guest.waited_for
        }
        self.wait_until(
            lambda: all(self.said[name] >= goal or not self.speakers[name].open for name, goal in goals.items()),
            f"{count} more messages of each",
        )

    def settle(self, listeners: Iterable[Guest] | None = None) -> None:
        """Let nobody speak any more, and wait until all have heard the last word of every speaker still connected."""
        self._do(lambda: setattr(self, "speaking", False))
        chosen = self.guests if listeners is None else list(listeners)

        def missing() -> list[str]:
            return [
                f"{guest.address}: {name} {guest.heard.get(name)} of {self.said[name] - 1}"
                for name, speaker in self.speakers.items()
                if speaker.open
                for guest in chosen
                if guest.open and guest.heard.get(name, guest.floor.get(name)) != self.said[name] - 1
            ]

        try:
            self.wait_until(lambda: not missing(), "all have heard all")
        except AssertionError as error:
            raise AssertionError(f"{error}; missing: {missing()[:10]}; faults: {self.faults()[:10]}") from None

    def resume(self) -> None:
        """Speak again."""
        self._do(lambda: setattr(self, "speaking", True))

    def faults(self) -> list[str]:
        """What was not as promised."""
        return [fault for guest in self.guests for fault in guest.faults]

    # --- in the thread

    def _run(self) -> None:
        try:
            while not self._ended:
                for key, _ in self._selector.select(1.0):
                    if key.data is None:
                        os.read(self._wake_end, 4096)
                    else:
                        self._read(key.data)
                with contextlib.suppress(queue.Empty):
                    while True:
                        self._commands.get_nowait()()
                if self.speaking:
                    self._speak()
                with self._changed:
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            raise

    def _read(self, guest: Guest) -> None:
        guest.read()
        if not guest.open:
            self._selector.unregister(guest.sock)
            guest.sock.close()

    def _speak(self) -> None:
        for name, speaker in self.speakers.items():
            if not speaker.open:
                continue
            slowest = min(
                (
                    guest.heard.get(name, guest.floor.get(name, -1))
                    for guest in self.guests
                    if guest.open and guest.waited_for
                ),
                default=-1,
            )
            while self.said[name] <= slowest + WINDOW:
                try:
                    speaker.send(f'42["say","{name}",{self.said[name]}]')
                except OSError:
                    break
                self.said[name] += 1

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        os.write(self._wake, b"!")
        self._thread.join()
        for guest in self.guests:
            guest.sock.close()
        self._selector.close()
        os.close(self._wake)
        os.close(self._wake_end)
