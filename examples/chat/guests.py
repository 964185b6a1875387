"""Company for the chat: guests from other addresses, so from other workers.

    python guests.py [URL]

All windows of your browser come from one address, so one worker serves them all. These come from 127.0.0.2,
and so on, for a server on the same machine, and one of them answers whenever somebody else speaks in the lobby.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from typing import Any

import requests
import requests.adapters
import socketio

GUESTS = {"127.0.0.2": "Grace", "127.0.0.3": "Linus", "127.0.0.4": "Margaret", "127.0.0.7": "Ken"}
REPLIES = ["Received on {place}.", "{place} reads you.", "Loud and clear, on {place}.", "Same room, {place}."]
TYPING_SECONDS = 1.5


class From(requests.adapters.HTTPAdapter):
    """Makes connections come from an address."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, source_address=(self._address, 0), **options)


def visit(url: str, address: str, name: str) -> socketio.Client:
    """Join the lobby as one guest, and again whenever the connection was lost."""
    session = requests.Session()
    session.mount("http://", From(address))
    client = socketio.Client(http_session=session)
    place = "no slot"

    def joined(answer: dict[str, Any]) -> None:
        nonlocal place
        place = f"slot {answer['you']['slot']}, process {answer['you']['pid']}"

    def answer() -> None:
        client.emit("typing", {"typing": True})
        client.sleep(TYPING_SECONDS)
        client.emit("say", {"text": random.choice(REPLIES).format(place=place)})  # noqa: S311  # no secret

    @client.on("connect")
    def connect() -> None:
        client.emit("join", {"name": name, "room": "lobby"}, callback=joined)

    @client.on("said")
    def said(message: dict[str, Any]) -> None:
        # Each knows by the message's number whose turn it is.
        guests = list(GUESTS.values())
        if message["name"] not in guests and guests[message["id"] % len(guests)] == name:
            client.start_background_task(answer)

    client.connect(url, transports=["polling"], retry=True)
    return client


if __name__ == "__main__":
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    # A shell's script that has started this in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    clients: list[socketio.Client] = []
    with contextlib.suppress(KeyboardInterrupt):
        print(f"waiting for {server}; Ctrl-C ends it", flush=True)
        for guest in GUESTS.items():
            clients.append(visit(server, *guest))
        print(f"{', '.join(GUESTS.values())} are in the lobby", flush=True)
        while True:
            time.sleep(1)  # again and again: a signal that another thread has caught doesn't end it
    for client in clients:
        client.disconnect()
