"""Kept-alive connections of proxies carry many clients: each request is served by its own client's worker.

Before it serves a request the worker looks whose it is. If it belongs to another slot, the connection goes there with
everything that has been read of it, and with the next request it may come back. Nobody holds a copy meanwhile, so that
no two workers ever read from one socket.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from sticky_session import handoff
from sticky_session.address import Masks
from sticky_session.forwarded import ClientHeader
from sticky_session.generation import Seat
from sticky_session.request import BadRequest
from sticky_session.ring import Ring

# How many headers' slots are remembered.
MAX_KNOWN = 8192


class Homes:
    """Where clients belong, and the way there.

    :param header: the header that tells the client
    :ivar slot: our own
    """

    def __init__(self, seat: Seat, header: ClientHeader) -> None:
        self.slot = seat.slot
        self._table = seat.generation.table
        # Those of slots that came later go by the listener, which has all.
        self._channels = [channel.sending_end for channel in seat.generation.channels]
        self._returns = seat.generation.returns.sending_end
        self._options = seat.generation.options
        self._masks = Masks(self._options.ipv4_prefix, self._options.ipv6_prefix)
        self._header = header
        self._key = "HTTP_" + header.name.upper().replace("-", "_")
        self._routing = (0, 0)
        self._ring: Ring | None = None
        self._failed: frozenset[int] = frozenset()
        self._known: dict[str, int] = {}

    def target(self, environ: Mapping[str, str], peer: Any) -> int:
        """The slot that a request belongs to.

        :param environ: the share of the request's fields in it
        :param peer: the proxy, ``(host, port, ...)``, or anything else for a Unix socket's peer
        """
        if self._table.routing != self._routing:
            self._learn()
        said = environ.get(self._key, "")
        slot = self._known.get(said)
        return self._find(said, peer) if slot is None else slot

    def _learn(self) -> None:
        self._routing = self._table.routing
        self._known.clear()
        workers = self._routing[0]
        if workers:
            self._ring = Ring(workers, self._options.partitions, self._options.seed)
            self._failed = self._table.failed(workers)

    def _find(self, said: str, peer: Any) -> int:
        if self._ring is None:
            # No listener has said yet how many slots there are.
            return self.slot
        client = self._header.address([said]) if said else None
        slot = self._ring.slot_without(self._masks.key(client or host_of(peer)), self._failed)
        if client is not None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[said] = slot
        return slot

    def is_served(self, slot: int) -> bool:
        """Whether a worker serves the slot now."""
        return bool(self._table.holder(slot))

    def send(self, slot: int, descriptor: int, bind: int, data: bytes, environ: Mapping[str, str]) -> bool:
        """Send a connection where it belongs. The caller still owns the descriptor and closes it.

        :param data: all that has been read and not been served
        :returns: False if there is no room for it now
        :raises BadRequest: it is too much
        """
        if len(data) > handoff.MAX_DATA_BYTES:
            raise BadRequest(431, f"a head of {len(data)} bytes, which is too large to be passed on")
        channel = self._channels[slot] if slot < len(self._channels) else self._returns
        client = self._header.address([environ.get(self._key, "")])
        try:
            handoff.send(channel, handoff.encode(bind, None, data, client), descriptor)
        except OSError as error:
            if error.errno not in handoff.CHANNEL_FULL:
                raise
            return False
        return True


def host_of(peer: Any) -> str:
    """A peer's host; empty for a Unix socket's."""
    return str(peer[0]) if isinstance(peer, tuple) else ""


class Replay(io.RawIOBase):
    """Reads again what another process has read, and then goes on.

    :param rest: the connection
    """

    def __init__(self, data: bytes, rest: io.RawIOBase) -> None:
        super().__init__()
        self._data = memoryview(data)
        self._rest = rest

    @property
    def left(self) -> bytes:
        """What has not been read again yet."""
        return bytes(self._data)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        """Read once."""
        if not self._data:
            return self._rest.readinto(buffer)
        size = min(len(buffer), len(self._data))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size

    def close(self) -> None:
        """Close the connection's reader, too."""
        self._rest.close()
        super().close()


def reader(sock: Any, data: bytes) -> io.BufferedReader:
    """A buffered reader of a connection of which ``data`` has been read already."""
    return io.BufferedReader(Replay(data, sock.makefile("rb", 0)))


def unserved(rfile: io.BufferedReader) -> bytes:
    """All that has arrived on a connection and has not been taken from its reader.

    One try to read more is a part of it if the reader has nothing.
    """
    buffered = rfile.peek()
    # What another worker has read may be more than a buffer holds.
    return buffered + rfile.raw.left if isinstance(rfile.raw, Replay) else buffered


def no_room(_: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The app that answers where the client's own worker has no place."""
    body = b"All places of this worker are taken. Try again soon.\n"
    start_response(
        "503 Service Unavailable",
        [("Content-Type", "text/plain"), ("Retry-After", "1"), ("Content-Length", str(len(body)))],
    )
    return [body]
