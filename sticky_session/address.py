"""Addresses: from the text of a peer's address to the bytes the ring hashes. Pure."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2


def pack(address: str) -> bytes:
    """The address in network byte order: 4 bytes for IPv4, 16 for IPv6.

    An IPv4-mapped IPv6 address (``::ffff:192.0.2.1``) is the IPv4 address. A zone id (``fe80::1%eth0``) is
    dropped.

    :raises ValueError: it is no IP address
    """
    try:
        if ":" not in address:
            return inet_pton(AF_INET, address)
        packed = inet_pton(AF_INET6, address.partition("%")[0])
    except (OSError, ValueError):
        raise ValueError(f"{address!r} is no IP address; expected one like 192.0.2.1 or 2001:db8::1") from None
    return unmap(packed)


def unmap(packed: bytes) -> bytes:
    """The 4 bytes of the IPv4 address that 16 bytes stand for; any other bytes as they are."""
    return packed[12:] if len(packed) == 16 and packed.startswith(_MAPPED) else packed


def unpack(packed: bytes) -> str:
    """The text of 4 or 16 bytes in network byte order, the inverse of :func:`pack`.

    IPv6 is written as the system writes it (RFC 5952), so that it compares with the peer's address of a socket.

    :raises ValueError: it is neither 4 nor 16 bytes
    """
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


class Masks:
    """Turns a peer's address into its affinity key: the leading bits that count, the others zero.

    :param ipv4_prefix: bits of an IPv4 address that count, 0 to 32
    :param ipv6_prefix: bits of an IPv6 address that count, 0 to 128
    """

    __slots__ = ("_ipv4", "_ipv6")

    def __init__(self, ipv4_prefix: int = 32, ipv6_prefix: int = 64) -> None:
        self._ipv4 = None if ipv4_prefix == 32 else _mask(ipv4_prefix, 32)
        self._ipv6 = None if ipv6_prefix == 128 else _mask(ipv6_prefix, 128)

    def key(self, address: str) -> bytes:
        """The affinity key of a peer.

        :param address: an IP address, or the empty string for a peer without one (a Unix socket's)
        :raises ValueError: it is something else
        """
        if not address:
            return b""
        packed = pack(address)
        if len(packed) == 4:
            if self._ipv4 is None:
                return packed
            return (int.from_bytes(packed, "big") & self._ipv4).to_bytes(4, "big")
        if self._ipv6 is None:
            return packed
        return (int.from_bytes(packed, "big") & self._ipv6).to_bytes(16, "big")


def _mask(prefix: int, bits: int) -> int:
    return ((1 << prefix) - 1) << (bits - prefix)
