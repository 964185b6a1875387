"""Forwarding headers: from the values of X-Forwarded-For, its relatives, or Forwarded to one client's address. Pure.

Each proxy on the way adds an entry on the right, so the rightmost were written by our own proxies and the leftmost by
whoever came first, the client itself if it likes. An entry that is no address means "use the peer"; no neighbour takes
its place, since that would let a client choose which entry counts.

What a client wrote must not hide what a proxy appended to it. So a quote that is never closed quotes nothing, values
of repeated headers are taken apart one by one, and an element of Forwarded counts as a whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from socket import AF_INET, inet_pton

from sticky_session.address import pack, unpack

# Optional whitespace (RFC 9110 section 5.6.3), and the line ends that obs-fold leaves in a value.
_SPACE = " \t\r\n"
_COMMAS = re.compile(r',|"(?:[^"\\]*(?:\\.[^"\\]*)*")?', re.DOTALL).finditer
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)

# What inet_pton shall look at; it knows the rest of IPv6.
_IPV6 = r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*"


def _compile_node(port: str) -> re.Pattern[str]:
    """RFC 7239 section 6, and beyond it bare IPv6, and zone ids (RFC 4007 section 11), which are dropped."""
    return re.compile(
        rf"([0-9.]+)(?::({port}))?|\[({_IPV6})(?:%[!-\\^-~]*)?\](?::({port}))?|({_IPV6})(?:%[!-Z\\^-~]*)?"
    )


_NODE = _compile_node(r"[0-9]{1,5}").fullmatch
_FORWARDED_NODE = _compile_node(r"[0-9]{1,5}|_[A-Za-z0-9._\-]+").fullmatch

_NAME_SYNTAX = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PAIR = re.compile(
    # Unquoted, a value with colons or brackets is no token; some proxies send it all the same, and it is not ambiguous.
    rf"[ \t\r\n]*(?:({_NAME_SYNTAX})=(?:\"([^\"\\]*(?:\\.[^\"\\]*)*)\"|([!#-+\--:<-~]+))[ \t\r\n]*)?(?:;|\Z)",
    re.DOTALL,
).match
_NAME = re.compile(_NAME_SYNTAX).fullmatch
_NUMBER = re.compile(r"[0-9]{1,2}").fullmatch

MAX_HOP = 32


class ClientHeader:
    """The header that tells the client's address, and which of its entries does.

    :param name: the header's name; ``Forwarded``, in any case, is read as RFC 7239 says, all others as lists of
        addresses like X-Forwarded-For
    :param hop: ``"first"``, ``"last"``, or which entry counted from the right, from 1: behind N proxies that each
        append the address of who they talk to, the Nth is the client's
    """

    __slots__ = ("_hop", "_is_forwarded", "_node", "name")

    def __init__(self, name: str, hop: str | int) -> None:
        self.name = name
        self._is_forwarded = name.lower() == "forwarded"
        self._node = _FORWARDED_NODE if self._is_forwarded else _NODE
        # The index in the list of entries.
        self._hop = {"first": 0, "last": -1}[hop] if isinstance(hop, str) else -hop

    def address(self, values: Sequence[str]) -> str | None:
        """The client's address, as :func:`~sticky_session.address.unpack` writes it; None if there is none to use.

        Any text has an answer.

        :param values: the header's values in the order received, one for each time it was sent, text in latin-1
        """
        if len(values) == 1 and "," not in values[0]:
            # The commonest: one proxy, one entry.
            entry = values[0].strip(_SPACE)
            if not entry or self._hop < -1:
                return None
        else:
            entries = _split(values)
            if not -len(entries) <= self._hop < len(entries):
                return None
            entry = entries[self._hop]
        if self._is_forwarded:
            return self._address_of(_find_for(entry))
        if entry[0] == entry[-1] == '"':
            entry = _unquote(entry[1:-1])
        return self._address_of(entry)

    def _address_of(self, node: str) -> str | None:
        try:
            if ":" not in node:
                # What inet_pton takes for IPv4 is written as unpack() would.
                inet_pton(AF_INET, node)
                return node
            match = self._node(node)
            if match is None:
                return None
            ipv4, ipv4_port, bracketed, ipv6_port, bare = match.groups()
            port = ipv4_port or ipv6_port
            if port and port[0] != "_" and int(port) > 65535:
                return None
            if ipv4:
                inet_pton(AF_INET, ipv4)
                return str(ipv4)
            return unpack(pack(bracketed or bare))
        except (OSError, ValueError):
            return None


def parse_name(text: str) -> str:
    """The name of a header, as given.

    :raises ValueError: it is no token (RFC 9110 section 5.1)
    """
    if not _NAME(text):
        raise ValueError(
            f"{text!r} is no name of a header; expected one like X-Forwarded-For, X-Real-IP or Forwarded, with no colon"
        )
    return text


def parse_hop(text: str) -> str | int:
    """Which entry of the header counts: ``"first"``, ``"last"`` or a number from 1 to :data:`MAX_HOP`.

    :raises ValueError: it is something else
    """
    if text in ("first", "last"):
        return text
    if _NUMBER(text) and 1 <= int(text) <= MAX_HOP:
        return int(text)
    raise ValueError(
        f"{text!r} is no entry of a header; expected first, last, or a number from 1 to {MAX_HOP}, "
        f"counted from the right: 1 is what the proxy nearest to us has appended"
    )


def _split(values: Sequence[str]) -> list[str]:
    """The entries of all values; a comma in quotes separates nothing, and empty entries are none (RFC 9110, 5.6.1)."""
    entries: list[str] = []
    for value in values:
        if '"' in value:
            entries.extend(_split_quoted(value))
        else:
            entries.extend(value.split(","))
    return [stripped for entry in entries if (stripped := entry.strip(_SPACE))]


def _split_quoted(value: str) -> list[str]:
    entries = []
    start = 0
    for match in _COMMAS(value):
        found = match[0]
        if found == ",":
            entries.append(value[start : match.start()])
            start = match.end()
        elif found == '"':
            # Never closed, and nor is any quote after it: looking for their ends would take the length's square.
            # The entry is unusable, whatever is before the quote.
            return [*entries, *value[match.start() :].split(",")]
    return [*entries, value[start:]]


def _unquote(text: str) -> str:
    """The content of a quoted string (RFC 9110 section 5.6.4)."""
    return _QUOTED_PAIR.sub(r"\1", text) if "\\" in text else text


def _find_for(element: str) -> str:
    """The value of ``for`` in an element of Forwarded (RFC 7239 section 4).

    The empty string if it has none, or two, or anything in the element is malformed.
    """
    node: str | None = None
    position = 0
    while position < len(element):
        pair = _PAIR(element, position)
        if pair is None:
            return ""
        position = pair.end()
        name, quoted, bare = pair.groups()
        if name is not None and name.lower() == "for":
            if node is not None:
                return ""
            node = bare if quoted is None else _unquote(quoted)
    return node or ""
