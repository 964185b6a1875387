"""Whose forwarding headers count, and what they say."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from sticky_session.request import BadRequest


class Trust:
    """Whose forwarding headers count, and what they say of the scheme.

    gunicorn's ``forwarded_allow_ips``, ``secure_scheme_headers`` and ``forwarder_headers``.

    :ivar header_names: the names with underscores that count in a trusted peer's requests, in upper case
    """

    def __init__(self, cfg: Any) -> None:
        self.header_names = frozenset(name.upper() for name in cfg.forwarder_headers)
        self._everybody = "*" in cfg.forwarded_allow_ips
        self._networks = cfg.forwarded_allow_networks()
        self._known: dict[str, bool] = {}
        self._schemes = [
            ("HTTP_" + name.upper().replace("-", "_"), value) for name, value in cfg.secure_scheme_headers.items()
        ]

    def trusts(self, peer: Any) -> bool:
        """Whether a peer's headers count; a Unix socket's always do, as in gunicorn."""
        if self._everybody or not isinstance(peer, tuple):
            return True
        host = peer[0]
        known = self._known.get(host)
        if known is None:
            known = self._known_after_lookup(host)
        return known

    def _known_after_lookup(self, host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        # On a dual-stack socket IPv4 peers look like ::ffff:192.0.2.1, and who configures 192.0.2.1 means them.
        mapped = getattr(address, "ipv4_mapped", None)
        known = any(address in network or (mapped is not None and mapped in network) for network in self._networks)
        if len(self._known) > 4096:
            self._known.clear()
        self._known[host] = known
        return known

    def scheme(self, env: dict[str, Any]) -> str | None:
        """The scheme that the headers tell; None if they tell nothing.

        :raises BadRequest: they contradict each other
        """
        said = {env[key] == secure for key, secure in self._schemes if key in env}
        if len(said) > 1:
            raise BadRequest(400, "contradictory scheme headers")
        if not said:
            return None
        return "https" if said.pop() else "http"
