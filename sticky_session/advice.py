"""A word to users who run behind a proxy without having said so: all of its clients would share one worker.

The listener sees one address and never reads its headers. The worker that gets everybody does, and can tell: nearly
all requests come from one peer, they carry a header that names many clients, and that peer is not trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sticky_session.address import pack, unpack
from sticky_session.config import OFF, Options
from sticky_session.slots import Claim

# Requests of untrusted peers that are looked at together.
SAMPLE = 200
# The share of them that must be alike.
SHARE = 0.9
# How many clients must be named: one of them may be anybody who likes to send such a header.
CLIENTS = 3
# After a sample that told nothing so many requests are not looked at.
PAUSE = 20_000

_USUAL = ("X-Forwarded-For", "X-Real-IP", "Forwarded")


class Advice:
    """Looks at requests of untrusted peers until it has something to say.

    :param cfg: gunicorn's configuration
    :param said: taken by the first worker that says it
    :ivar wanted: whether there is anything to look for
    """

    def __init__(self, cfg: Any, options: Options, said: Claim, log: Any) -> None:
        self.wanted = cfg.proxy_protocol == "off" and options.client_header != OFF
        self._allowed = list(cfg.forwarded_allow_ips)
        self._secure = bool(cfg.is_ssl)
        self._header = options.client_header
        names = dict.fromkeys((options.client_header, *_USUAL))
        self._keys = {name: "HTTP_" + name.upper().replace("-", "_") for name in names}
        self._said = said
        self._log = log
        self._pause = 0
        self._begin()

    def _begin(self) -> None:
        self._left = SAMPLE
        # How many requests have come from each peer, and what each header has said in those that had it.
        self._peers: dict[str, int] = {}
        self._values: dict[tuple[str, str], list[str]] = {}

    def note(self, host: str, environ: Mapping[str, str]) -> None:
        """Look at a request.

        :param host: the peer's
        :param environ: the share of the request's fields in it
        """
        if self._pause:
            self._pause -= 1
            return
        self._peers[host] = self._peers.get(host, 0) + 1
        for name, key in self._keys.items():
            if key in environ:
                self._values.setdefault((host, name), []).append(environ[key])
        self._left -= 1
        if not self._left:
            self._judge()
            self._begin()
            self._pause = PAUSE

    def _judge(self) -> None:
        host = max(self._peers, key=lambda host: self._peers[host])
        for name in self._keys:
            values = self._values.get((host, name), ())
            if len(values) >= SHARE * SAMPLE and len(set(values)) >= CLIENTS:
                self.wanted = False
                if self._said.take():
                    self._log.warning("%s", self._words(host, name, len(values)))
                return

    def _words(self, host: str, name: str, count: int) -> str:
        # On a dual-stack socket IPv4 peers look like ::ffff:192.0.2.1.
        host = unpack(pack(host))
        seems = (
            f"{count} of {SAMPLE} requests came from {host} with {name}, which is not trusted: it seems to be a proxy, "
            "and all of its clients share one worker. "
        )
        if self._secure:
            return seems + f"If it is yours, let it send the PROXY protocol: --proxy-protocol --proxy-allow-from {host}"
        trust = f"If it is yours, trust it: --forwarded-allow-ips {','.join([*self._allowed, host])}"
        if name == self._header:
            return seems + trust
        return seems + trust + f" and STICKY_SESSION_CLIENT_HEADER={name}"
