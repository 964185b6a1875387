"""The PROXY protocol, versions 1 and 2, read without I/O: whose connection did the proxy pass on? Pure.

The specification is HAProxy's `proxy-protocol.txt <https://github.com/haproxy/haproxy/blob/master/doc/proxy-protocol.txt>`_;
section numbers below are its. What begins with a header is held to it strictly, and refused as early as it can be
told: what comes after a malformed header can't be trusted to be a request.

Nothing is remembered between calls: version 1 is short, and of version 2 only the beginning is looked at.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import NamedTuple, TypeAlias

from sticky_session.address import pack, unmap, unpack

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
#: The longest line of version 1, CRLF included (section 2.1).
MAX_V1_BYTES = 107
#: The longest header of version 2: its length field has 16 bits.
MAX_V2_BYTES = 16 + 65535

_PREFIX = b"PROXY "
_MODES = frozenset({"off", "v1", "v2", "auto"})

_FAMILIES = (b"TCP4", b"TCP6", b"UNKNOWN")
# What an address and a port may begin with; the addresses' own syntax is inet_pton's business. The longest IPv6
# address ends in IPv4's notation.
_ADDRESS_BEGINNINGS = {
    b"TCP4": re.compile(rb"[0-9.]{0,15}").fullmatch,
    b"TCP6": re.compile(rb"[0-9A-Fa-f:.]{0,45}").fullmatch,
}
_PORT_BEGINNING = re.compile(rb"(?:0|[1-9][0-9]{0,4})?").fullmatch

# By the high and low half of byte 14 (section 2.2).
_UNSPECIFIED, _IPV4, _IPV6, _UNIX = range(4)
_ADDRESS_BYTES = {_UNSPECIFIED: 0, _IPV4: 12, _IPV6: 36, _UNIX: 216}
# Source and destination address, source and destination port.
_ADDRESSES = {_IPV4: Struct("!4s4sHH").unpack_from, _IPV6: Struct("!16s16sHH").unpack_from}
_TRANSPORTS = ("UNSPEC", "TCP", "UDP")


class ProxyHeader(NamedTuple):
    """A header, or that there is none.

    :ivar length: how many bytes it has, which are to be taken off the connection before anything else reads it; 0 if
        there is no header
    :ivar protocol: as in gunicorn's ``PROXY_PROTOCOL``, ``TCP4``, ``TCP6``, ``LOCAL`` or ``UNSPEC``; for what gunicorn
        refuses, ``UNKNOWN``, ``UDP4``, ``UDP6`` or ``UNIX``; the empty string if there is no header
    :ivar source: the client's host and port; None: use the peer's
    :ivar destination: the host and port that the client connected to; None exactly if ``source`` is
    """

    length: int
    protocol: str
    source: tuple[str, int] | None
    destination: tuple[str, int] | None


class Malformed(NamedTuple):
    """What begins as a header and is none: the connection is to be closed (section 2).

    :ivar reason: what is wrong with it, for the log
    """

    reason: str


#: None: more bytes are needed.
Answer: TypeAlias = "ProxyHeader | Malformed | None"

#: The connection begins with something else than a header of the protocol.
ABSENT = ProxyHeader(0, "", None, None)


def read(seen: bytes, mode: str = "auto") -> Answer:
    """Read a header from what has arrived so far.

    Whatever the bytes, and however they are cut, there is an answer, and the last one is the same.

    :param seen: all bytes from the beginning of the connection; what follows the header is not looked at
    :param mode: gunicorn's ``proxy_protocol``: ``off``, ``v1``, ``v2`` or ``auto``
    :returns: None until the header is whole; :data:`ABSENT` as soon as there can be none
    :raises ValueError: there is no such mode
    """
    if mode not in _MODES:
        raise ValueError(f"{mode!r} is no mode of the PROXY protocol; expected off, v1, v2 or auto")
    if mode == "off":
        return ABSENT
    if seen.startswith(_PREFIX):
        return _read_v1(seen) if mode != "v2" else Malformed("a header of version 1 where only version 2 is expected")
    if seen.startswith(SIGNATURE):
        return _read_v2(seen) if mode != "v1" else Malformed("a header of version 2 where only version 1 is expected")
    if _PREFIX.startswith(seen) or SIGNATURE.startswith(seen):
        return None
    return ABSENT


def _read_v1(seen: bytes) -> Answer:
    """Section 2.1. The parts are judged one by one, the last one by what it may become."""
    end = seen.find(b"\r\n", len(_PREFIX), MAX_V1_BYTES)
    if end < 0 and len(seen) >= MAX_V1_BYTES:
        return Malformed(f"no CRLF in the first {MAX_V1_BYTES} bytes")
    line = seen[len(_PREFIX) :] if end < 0 else seen[len(_PREFIX) : end]
    # The CR ends the last part, since nothing but LF may follow it.
    ended = end >= 0 or line.endswith(b"\r")
    if end < 0 and ended:
        line = line[:-1]
    family, *parts = line.split(b" ")
    if not ended and not parts:
        return None if any(name.startswith(family) for name in _FAMILIES) else _expected_family(family)
    if family == b"UNKNOWN":
        # "The receiver must ignore anything presented before the CRLF."
        return None if end < 0 else ProxyHeader(end + 2, "UNKNOWN", None, None)
    if family not in _FAMILIES:
        return _expected_family(family)
    addresses: list[str] = []
    ports: list[int] = []
    for index, part in enumerate(parts[:4]):
        is_port = index >= 2
        growing = not ended and index == len(parts) - 1
        try:
            if not (_PORT_BEGINNING if is_port else _ADDRESS_BEGINNINGS[family])(part):
                raise ValueError
            if growing:
                return None
            if is_port:
                ports.append(_parse_port(part))
            else:
                addresses.append(_parse_address(part, ipv6=family == b"TCP6"))
        except ValueError:
            kind = "a port from 0 to 65535" if is_port else f"an address of {family.decode()}"
            return Malformed(f"{part[:64]!r} where {kind} is expected")
    if len(parts) != 4:
        return Malformed(f"{len(parts)} parts after the family where 4 are expected, single spaces between them")
    if end < 0:
        return None
    return ProxyHeader(end + 2, family.decode(), (addresses[0], ports[0]), (addresses[1], ports[1]))


def _expected_family(given: bytes) -> Malformed:
    return Malformed(f"{given[:64]!r} where TCP4, TCP6 or UNKNOWN is expected")


def _parse_address(text: bytes, ipv6: bool) -> str:
    if (b":" in text) is not ipv6:
        raise ValueError
    return unpack(pack(text.decode("ascii")))


def _parse_port(text: bytes) -> int:
    port = int(text)
    if port > 65535:
        raise ValueError
    return port


def _read_v2(seen: bytes) -> Answer:
    """Section 2.2. Each byte of the fixed part is judged as soon as it is there."""
    if len(seen) < 13:
        return None
    version, command = divmod(seen[12], 16)
    if version != 2:
        return Malformed(f"version {version} where 2 is expected")
    if command > 1:
        return Malformed(f"command {command} where 0 (LOCAL) or 1 (PROXY) is expected")
    if len(seen) < 14:
        return None
    # LOCAL: the proxy speaks for itself, in health checks. "The receiver must [...] discard the protocol block
    # including the family which is ignored."
    family, transport = divmod(seen[13], 16) if command else (_UNSPECIFIED, 0)
    if family not in _ADDRESS_BYTES:
        return Malformed(f"address family {family} where 0 to 3 is expected")
    if transport >= len(_TRANSPORTS):
        return Malformed(f"transport protocol {transport} where 0 to 2 is expected")
    if len(seen) < 16:
        return None
    size = int.from_bytes(seen[14:16], "big")
    if size < _ADDRESS_BYTES[family]:
        return Malformed(f"a length of {size} bytes where the addresses alone have {_ADDRESS_BYTES[family]}")
    length = 16 + size
    if len(seen) < length:
        return None
    if not command:
        return ProxyHeader(length, "LOCAL", None, None)
    if family == _UNSPECIFIED or not transport:
        return ProxyHeader(length, "UNSPEC", None, None)
    if family == _UNIX:
        return ProxyHeader(length, "UNIX", None, None)
    source, destination, source_port, destination_port = _ADDRESSES[family](seen, 16)
    return ProxyHeader(
        # What follows the addresses are extensions (TLVs, section 2.2), skipped.
        length,
        # A client that has come to the proxy over UDP, by HTTP/3, is a client as well.
        f"{_TRANSPORTS[transport]}{4 if family == _IPV4 else 6}",
        (unpack(unmap(source)), source_port),
        (unpack(unmap(destination)), destination_port),
    )
