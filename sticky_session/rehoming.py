"""Kept-alive connections of proxies carry many clients: each request is served by its own client's worker.

Before it serves a request the worker looks whose it is. If it belongs to another slot, the connection goes there with
everything that has been read of it, and with the next request it may come back. Nobody holds a copy meanwhile, so that
no two workers ever read from one socket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sticky_session import handoff
from sticky_session.forwarded import ClientHeader
from sticky_session.generation import Seat
from sticky_session.request import Head
from sticky_session.routes import Routes

# How many headers' slots are remembered (and peers'), and of how long ones: a client may write what it likes in front.
MAX_KNOWN = 8192
MAX_KNOWN_CHARS = 64


class Homes(Routes):
    """Where a proxy's clients belong, and the way there.

    :param header: the header that tells the client
    """

    def __init__(self, seat: Seat, header: ClientHeader) -> None:
        super().__init__(seat)
        self._header = header
        self._name = header.name.lower()
        self._key = "HTTP_" + header.name.upper().replace("-", "_")
        # By what the header says, and by host for proxies, or others here, that say nothing.
        self._known: dict[str, int] = {}
        self._peers: dict[str, int] = {}

    def target(self, head: Head, peer: Any) -> int:
        """The slot that a request belongs to.

        :param peer: the proxy, ``(host, port, ...)``, or anything else for a Unix socket's peer
        """
        if self._table.routing != self._routing:
            self._learn()
        said = head.environ.get(self._key, "")
        slot = self._known.get(said) if said else self._peers.get(host_of(peer))
        return self._find(said, head, peer) if slot is None else slot

    def _learn(self) -> None:
        super()._learn()
        self._known.clear()
        self._peers.clear()

    def _find(self, said: str, head: Head, peer: Any) -> int:
        if self._ring is None:
            # No listener has said yet how many slots there are.
            return self.slot
        client = self._client(said, head)
        host = client or host_of(peer)
        slot = self.home(host)
        if not said:
            _remember(self._peers, host, slot)
        elif client is not None and len(said) <= MAX_KNOWN_CHARS and '"' not in said:
            _remember(self._known, said, slot)
        return slot

    def _client(self, said: str, head: Head) -> str | None:
        """The client that the header tells; None if it tells none.

        :param said: its values, joined
        """
        if '"' not in said:
            return self._header.address([said]) if said else None
        # A quote that one value has opened must not be closed by the next.
        return self._header.address([value for name, value in head.fields if name.lower() == self._name])

    def send(self, slot: int, descriptor: int, bind: int, data: bytes, head: Head) -> bool:
        """Send a connection where it belongs. The caller still owns the descriptor and closes it.

        :param data: all that has been read and not been served
        :returns: False if there is no room for it now
        """
        client = self._client(head.environ.get(self._key, ""), head)
        return self.pass_on(slot, handoff.encode(bind, None, data, client), descriptor)


def _remember(known: dict[str, int], what: str, slot: int) -> None:
    if len(known) >= MAX_KNOWN:
        known.clear()
    known[what] = slot


def host_of(peer: Any) -> str:
    """A peer's host; empty for a Unix socket's."""
    return str(peer[0]) if isinstance(peer, tuple) else ""


def no_room(_: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The app that answers where the client's own worker has no place."""
    body = b"All places of this worker are taken. Try again soon.\n"
    start_response(
        "503 Service Unavailable",
        [("Content-Type", "text/plain"), ("Retry-After", "1"), ("Content-Length", str(len(body)))],
    )
    return [body]
