"""Who the client of a proxy's connection is: said by a header of the request, or by the PROXY protocol. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, TypeAlias

from sticky_session import proxyprotocol
from sticky_session.config import OFF, Options
from sticky_session.forwarded import ClientHeader
from sticky_session.head import AddressFinder, Verdict
from sticky_session.trust import Peers, forwarders, proxies

# A longer head of a trusted proxy's request is refused. Proxies allow less (nginx 32 KiB, HAProxy 16 KiB), and a head
# must fit into a frame together with what a worker may have read behind it.
MAX_HEAD_BYTES = 48 * 1024


@dataclass(frozen=True)
class Client:
    """Who the client is.

    :ivar host: the host to route by; None for the peer's
    :ivar port: its port, if host and port take the place of the peer's
    :ivar length: how many of the first bytes are not meant for the worker
    """

    host: str | None
    port: int | None = None
    length: int = 0


class RefusedError(Exception):
    """A connection can't be served.

    :ivar status: the HTTP status to answer with; None where nothing can be said
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


# Given all that has arrived on a connection: the client, or None if more is needed. Raises RefusedError.
Read: TypeAlias = Callable[[bytes], Client | None]

_PEER = Client(None)


class ByHeader:
    """The client's address is in the request's head.

    :ivar peers: those whose heads are looked at
    :ivar limit: the most bytes that are needed to tell
    :ivar worker_can_tell: whether a worker finds out by itself what the listener has not
    """

    def __init__(self, peers: Peers, header: ClientHeader) -> None:
        self.peers: Container[object] = peers
        self.limit = MAX_HEAD_BYTES
        self.worker_can_tell = True
        self._finder = AddressFinder(header, self.limit)

    def begin(self) -> Read:
        """What reads a new connection."""
        feed = self._finder.reader().feed

        def read(seen: bytes) -> Client | None:
            answer = feed(seen)
            if isinstance(answer, str):
                return Client(answer)
            if answer is Verdict.PEER:
                return _PEER
            if answer is Verdict.TOO_LARGE:
                raise RefusedError("the head is too large", 431)
            return None

        return read


class ByProxyProtocol:
    """The client's address is in front of everything else.

    :param mode: gunicorn's ``proxy_protocol``
    """

    def __init__(self, peers: Peers, mode: str) -> None:
        self.peers: Container[object] = peers
        self.limit = proxyprotocol.MAX_V2_BYTES
        self.worker_can_tell = False
        self._mode = mode

    def begin(self) -> Read:
        """What reads a new connection."""
        return self._read

    def _read(self, seen: bytes) -> Client | None:
        answer = proxyprotocol.read(seen, self._mode)
        if answer is None:
            return None
        if isinstance(answer, proxyprotocol.Malformed):
            raise RefusedError(answer.reason)
        if answer.source is None:
            return Client(None, length=answer.length)
        return Client(*answer.source, length=answer.length)


class ByPeer:
    """The client is the peer, always."""

    def __init__(self) -> None:
        self.peers: Container[object] = ()
        self.limit = 0
        self.worker_can_tell = True

    def begin(self) -> Read:
        """Never called: nobody's connection is looked at."""
        raise AssertionError


Identification: TypeAlias = ByHeader | ByProxyProtocol | ByPeer


def identification(cfg: Any, options: Options) -> Identification:
    """How proxies' clients are told.

    :param cfg: gunicorn's configuration
    """
    if cfg.proxy_protocol != "off":
        return ByProxyProtocol(proxies(cfg), cfg.proxy_protocol)
    if cfg.is_ssl or options.client_header == OFF:
        # What is encrypted only the worker can read.
        return ByPeer()
    return ByHeader(forwarders(cfg), options.header())
