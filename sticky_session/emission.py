"""An emit on its way to the clients of other workers: encoded once, for all of them.

python-socketio's managers put the data into each message, and every process reads them and encodes them for its own
clients again. What one worker's clients get is the same as what another's do, so here the packet itself travels, as
``Packet.encode()`` made it: text, and bytes for each attachment. Beside it is whom it is for, in JSON::

    0        1        5
    | format | size H | H: JSON | text | attachment | ...
      u8       u32              (network byte order)

No JSON begins with the first byte, so a channel can carry both.
"""

from __future__ import annotations

import json
from struct import Struct
from typing import Any, NamedTuple

FORMAT = 1
_START = Struct("!BI")
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode


class Emission(NamedTuple):
    """One packet and whom it is for.

    :ivar sender: the id of the manager that sends it
    :ivar room: a name or several; None for all clients of the namespace
    :ivar skipped: the ids of clients that don't get it
    :ivar parts: the text of the packet, and its attachments
    """

    sender: str
    namespace: str
    room: Any
    skipped: list[Any]
    parts: list[str | bytes]

    def pack(self) -> bytes:
        """The payload of a message.

        :raises TypeError: JSON has no way to write the room or a client's id
        :raises ValueError: likewise
        """
        parts = [part.encode() if isinstance(part, str) else part for part in self.parts]
        head = _encode([self.sender, self.namespace, self.room, self.skipped, [len(part) for part in parts]])
        return b"".join([_START.pack(FORMAT, len(head)), head.encode(), *parts])

    @classmethod
    def unpack(cls, payload: bytes) -> Emission:
        """The inverse of :meth:`pack`."""
        _, size = _START.unpack_from(payload)
        start = _START.size + size
        sender, namespace, room, skipped, sizes = _decode(payload[_START.size : start].decode())[0]
        parts: list[str | bytes] = []
        for size in sizes:
            part = payload[start : start + size]
            parts.append(part if parts else part.decode())
            start += size
        return cls(sender, namespace, room, skipped, parts)
