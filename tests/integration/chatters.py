"""Participants of the example chat, from whatever address: Python's client, Node's client, and a page in Chromium."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
import socketio

from browser import Browser, Page
from harness import Process, Server, connect
from members import OrderedClient, SourceAddress
from sticky_session import Ring

CHAT = Path(__file__).parent.parent.parent / "examples" / "chat"
CLIENTS = Path(__file__).parent.parent / "clients"
SECONDS = 30.0
BROWSER_ADDRESS = "127.0.0.1"  # a browser can't choose


def chat_server(directory: Path, workers: int = 1) -> Server:
    """The example, as ``make serve`` starts it, with a memory of its own."""
    return Server("app:app", door="serve", workers=workers, cwd=CHAT, env={"CHAT_DATABASE": str(directory / "chat")})


def slot_of_browser(workers: int) -> int:
    """The slot that serves the pages."""
    return Ring(workers).slot(socket.inet_aton(BROWSER_ADDRESS))


class _Client(socketio.SimpleClient):
    client_class = OrderedClient


class Chatter:
    """A participant with Python's client; a context manager that has joined a room.

    What it hears is kept in ``heard``, pairs of event and data, in the order it came.
    """

    def __init__(
        self,
        port: int,
        name: str,
        room: str = "lobby",
        *,
        address: str = "127.1.1.1",
        transports: Sequence[str] = ("websocket",),
    ) -> None:
        self.name = name
        self.heard: list[tuple[str, Any]] = []
        self.answer: dict[str, Any] = {}
        self._session = requests.Session()
        self._session.mount("http://", SourceAddress(address))
        options: dict[str, Any] = {}
        self._socket: socket.socket | None = None
        if "websocket" in transports:
            self._socket = options["socket"] = connect(port, address)
        self._client = _Client(
            http_session=self._session,
            websocket_extra_options=options,
            request_timeout=SECONDS,
            reconnection=False,
            handle_sigint=False,
        )
        self._client.connect(f"http://127.0.0.1:{port}", transports=list(transports), wait_timeout=int(SECONDS))
        if room:
            self.answer = self.call("join", name=name, room=room)
            assert self.answer["ok"], self.answer

    @property
    def me(self) -> dict[str, Any]:
        """How the server knows it: sid, name, room, slot, pid."""
        return self.answer["you"]

    def call(self, event: str, **data: Any) -> dict[str, Any]:
        """Send an event and return its acknowledgement."""
        return self.call_with(event, data)

    def call_with(self, event: str, data: Any) -> dict[str, Any]:
        """Send an event with whatever data and return its acknowledgement."""
        return self._client.call(event, data, timeout=int(SECONDS))

    def emit(self, event: str, data: Any, callback: Callable[..., None] | None = None) -> None:
        """Send an event without waiting."""
        self._client.client.emit(event, data, callback=callback)

    def join(self, room: str, name: str | None = None) -> dict[str, Any]:
        """Go to a room, or take another name; returns the answer."""
        self.answer = self.call("join", name=name or self.name, room=room)
        assert self.answer["ok"], self.answer
        return self.answer

    def say(self, text: str) -> None:
        answer = self.call("say", text=text)
        assert answer == {"ok": True}, answer

    def hear(self, event: str, **expected: Any) -> dict[str, Any]:
        """Wait for the next event with these in its data, and return the data."""
        while True:
            received, data = self._client.receive(timeout=SECONDS)
            self.heard.append((received, data))
            if received == event and expected.items() <= data.items():
                return data

    def hear_of(self, what: str, name: str) -> dict[str, Any]:
        """Wait until something has happened to somebody: ``joined``, ``left``, ``lost``, ``renamed``."""
        while True:
            told = self.hear("people", what=what)
            if told["who"]["name"] == name:
                return told

    def texts(self) -> list[str]:
        """What has been said to it so far."""
        return [data["text"] for event, data in self.heard if event == "said"]

    def close(self) -> None:
        self._client.client.stop()
        self._session.close()
        if self._socket:
            self._socket.close()  # the client doesn't, if the worker was killed

    def __enter__(self) -> Chatter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NodeGuest(Process):
    """A participant with Node's client, which does what messages tell it (``tests/clients/guest.js``)."""

    def __init__(
        self,
        port: int,
        name: str,
        room: str = "lobby",
        *,
        address: str = "127.1.1.2",
        transports: Sequence[str] = ("polling", "websocket"),
    ) -> None:
        plan = {"port": port, "name": name, "room": room, "address": address, "transports": transports}
        super().__init__(["node", "guest.js", json.dumps(plan)], cwd=CLIENTS)

    def _wait_ready(self) -> None:
        self.me = self.wait_for_event("join")["you"]

    def wait_for_event(self, event: str, regex: str = "", after: int = 0) -> Any:
        """Wait for an event whose data match; returns the data."""
        found = self.wait_for(rf'^\["{event}",.*{regex}', SECONDS, after=after)
        return json.loads(found.string)[1]


class ChatPage:
    """The example's page in a browser, used as a person does."""

    def __init__(self, browser: Browser, port: int, name: str, query: str = "", **options: Any) -> None:
        self.tab: Page = browser.open(f"http://127.0.0.1:{port}/?name={quote(name)}{query}", **options)
        self.tab.wait_for("document.querySelector('#worker').dataset.pid")

    @property
    def slot(self) -> int:
        return int(self.tab.evaluate("document.querySelector('#worker').dataset.slot"))

    @property
    def pid(self) -> int:
        return int(self.tab.evaluate("document.querySelector('#worker').dataset.pid"))

    def say(self, text: str) -> None:
        self.tab.focus("#text")
        self.tab.evaluate("document.querySelector('#text').select()")  # what was refused is in the field again
        self.tab.type(text)
        self.tab.press("Enter")

    def wait_for_text(self, selector: str, text: str) -> None:
        """Wait until an element that matches has this text in it."""
        self.watch_for_text(selector, text)()

    def watch_for_text(self, selector: str, text: str) -> Callable[[], Any]:
        """Begin to wait for a text that may not stay; to be called for the waiting itself."""
        return self.tab.watch(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".some((found) => found.textContent.includes({json.dumps(text)}))"
        )

    def wait_for_message(self, text: str) -> None:
        """Wait until this has been said: this and no more."""
        self.tab.wait_for(
            f"[...document.querySelectorAll('.text')].some((found) => found.textContent === {json.dumps(text)})"
        )

    def wait_for_person(self, name: str, slot: int, pid: int) -> None:
        """Wait until somebody is shown with the worker that serves them."""
        shown = json.dumps([f"slot {slot}", f"process {pid}"])
        self.tab.wait_for(
            "[...document.querySelectorAll('.worker-group')].some((group) =>"
            f" {shown}.every((words) => group.querySelector('h3').textContent.includes(words)) &&"
            f" [...group.querySelectorAll('.name')].some((shown) => shown.textContent === {json.dumps(name)}))"
        )

    def watch_for_state(self, state: str) -> Callable[[], Any]:
        """Begin to wait for a state of the connection; to be called for the waiting itself."""
        return self.tab.watch(f"document.querySelector('#state').dataset.state === {json.dumps(state)}")

    def people(self) -> list[str]:
        """The names of who is in the room."""
        return self.tab.evaluate("[...document.querySelectorAll('#workers .name')].map((name) => name.textContent)")

    def messages(self) -> list[str]:
        """The texts in the page, in their order."""
        return self.tab.evaluate("[...document.querySelectorAll('#messages .text')].map((text) => text.textContent)")


@contextmanager
def chat_page(browser: Browser, port: int, name: str, query: str = "", **options: Any) -> Iterator[ChatPage]:
    """A page that is open for a while and has nothing to complain about."""
    page = ChatPage(browser, port, name, query, **options)
    try:
        yield page
    finally:
        complaints = page.tab.complaints
        page.tab.close()
    assert not complaints
