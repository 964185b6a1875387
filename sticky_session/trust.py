"""Whose forwarding headers count, and what they say."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from sticky_session.address import unpack
from sticky_session.request import BadRequest, Head


def forwarders(cfg: Any) -> Peers:
    """Those whose forwarding headers count."""
    return Peers(cfg.forwarded_allow_ips, cfg.forwarded_allow_networks())


def proxies(cfg: Any) -> Peers:
    """Those who may send the PROXY protocol."""
    return Peers(cfg.proxy_allow_ips, cfg.proxy_allow_networks())


class Peers:
    """A set of peers, as ``forwarded_allow_ips`` and ``proxy_allow_ips`` name it; a Unix socket's are always in it.

    :param allowed: gunicorn's list of addresses and networks, or ``*``
    :param networks: what gunicorn has made of it
    """

    __slots__ = ("_everybody", "_hosts", "_known", "_networks")

    def __init__(self, allowed: Iterable[str], networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._everybody = "*" in allowed
        # Most are single addresses, and most peers are not among them: that is to be found out fast.
        self._hosts = set[str]()
        self._networks = []
        self._known: dict[str, bool] = {}
        for network in networks:
            if network.num_addresses == 1:
                host = network.network_address
                # As the system writes it: Python before 3.13 writes ::ffff:192.0.2.1 in another way.
                self._hosts.add(unpack(host.packed))
                if host.version == 4:
                    # On a dual-stack socket IPv4 peers look like ::ffff:192.0.2.1.
                    self._hosts.add(f"::ffff:{host}")
            else:
                self._networks.append(network)

    def __contains__(self, peer: object) -> bool:
        """Whether a peer, ``(host, port, ...)`` or anything else for a Unix socket's, is one of them."""
        if self._everybody or not isinstance(peer, tuple):
            return True
        host = peer[0]
        if host in self._hosts:
            return True
        if not self._networks:
            return False
        known = self._known.get(host)
        if known is None:
            known = self._look_up(host)
        return known

    def _look_up(self, host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        known = any(address in network or (mapped is not None and mapped in network) for network in self._networks)
        if len(self._known) > 4096:
            self._known.clear()
        self._known[host] = known
        return known


class Trust:
    """Whose forwarding headers count, and what they say of the scheme.

    gunicorn's ``forwarded_allow_ips``, ``secure_scheme_headers`` and ``forwarder_headers``.

    :ivar header_names: the names with underscores that count in a trusted peer's requests, in upper case
    :ivar peers: those that are trusted
    """

    def __init__(self, cfg: Any) -> None:
        self.header_names = frozenset(name.upper() for name in cfg.forwarder_headers)
        self.peers = forwarders(cfg)
        self._schemes = [
            ("HTTP_" + name.upper().replace("-", "_"), value) for name, value in cfg.secure_scheme_headers.items()
        ]

    def scheme(self, env: dict[str, Any], head: Head) -> str | None:
        """The scheme that the headers tell; None if they tell nothing.

        :raises BadRequest: they contradict each other
        """
        said: set[bool] = set()
        for key, secure in self._schemes:
            if key in env:
                # Several fields are one value there, and each counts by itself.
                values = _values(head, key) if "," in env[key] else [env[key]]
                said.update(value == secure for value in values)
        if len(said) > 1:
            raise BadRequest(400, "contradictory scheme headers")
        if not said:
            return None
        return "https" if said.pop() else "http"


def _values(head: Head, key: str) -> list[str]:
    """The values of all fields that have a key of the environ."""
    return [value for name, value in head.fields if "_" not in name and f"HTTP_{name.upper().replace('-', '_')}" == key]
