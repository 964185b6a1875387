"""How proxies' clients are told, and what is read to tell them."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config

from sticky_session.config import Options
from sticky_session.forwarded import ClientHeader
from sticky_session.identify import (
    MAX_HEAD_BYTES,
    ByHeader,
    ByPeer,
    ByProxyProtocol,
    Client,
    Identification,
    RefusedError,
    identification,
)
from sticky_session.trust import Peers

TLS = {"certfile": "cert.pem", "keyfile": "key.pem"}
NOBODY = Peers([], [])
V2 = b"\r\n\r\n\0\r\nQUIT\n"


def identify(environment: dict[str, str] | None = None, **settings: Any) -> Identification:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return identification(cfg, Options.from_environment(environment or {}))


@pytest.mark.parametrize(
    ("environment", "settings", "kind"),
    [
        ({}, {}, ByHeader),
        ({"STICKY_SESSION_CLIENT_HEADER": "off"}, {}, ByPeer),
        ({}, TLS, ByPeer),
        ({}, {"proxy_protocol": "v1"}, ByProxyProtocol),
        ({}, {"proxy_protocol": "auto", **TLS}, ByProxyProtocol),
        ({"STICKY_SESSION_CLIENT_HEADER": "off"}, {"proxy_protocol": "v2"}, ByProxyProtocol),
    ],
)
def test_kind(environment: dict[str, str], settings: dict[str, Any], kind: type) -> None:
    """The PROXY protocol stands above headers; over TLS, or with client_header off, only the peer is left."""
    assert type(identify(environment, **settings)) is kind


def test_peers() -> None:
    """Headers count of forwarded_allow_ips, PROXY headers of proxy_allow_ips, and nothing of others is looked at."""
    settings = {"forwarded_allow_ips": "192.0.2.0/24", "proxy_allow_ips": "198.51.100.1"}
    by_header = identify(**settings)
    by_proxy_protocol = identify(proxy_protocol="auto", **settings)
    assert ("192.0.2.7", 1) in by_header.peers
    assert ("198.51.100.1", 1) not in by_header.peers
    assert ("198.51.100.1", 1) in by_proxy_protocol.peers
    assert ("192.0.2.7", 1) not in by_proxy_protocol.peers
    assert "" in by_header.peers
    assert "" not in ByPeer().peers
    assert ("127.0.0.1", 1) not in ByPeer().peers


@pytest.mark.parametrize(
    ("name", "hop", "fields", "host"),
    [
        ("X-Forwarded-For", "first", "X-Forwarded-For: 192.0.2.1, 192.0.2.2", "192.0.2.1"),
        ("X-Forwarded-For", "last", "x-forwarded-for: 192.0.2.1, 192.0.2.2", "192.0.2.2"),
        ("X-Forwarded-For", 2, "X-Forwarded-For: 192.0.2.0\r\nX-Forwarded-For: 192.0.2.1,192.0.2.2", "192.0.2.1"),
        ("X-Forwarded-For", 3, "X-Forwarded-For: 192.0.2.1, 192.0.2.2", None),
        ("X-Real-IP", "first", "X-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.2", "192.0.2.2"),
        ("Forwarded", "first", 'Forwarded: for="[2001:db8::1]:80";proto=https, for=192.0.2.1', "2001:db8::1"),
        ("X-Forwarded-For", "first", "X-Forwarded-For: unknown, 192.0.2.2", None),
        ("X-Forwarded-For", "first", "X-Other: 192.0.2.1", None),
    ],
)
def test_by_header(name: str, hop: str | int, fields: str, host: str | None) -> None:
    """The header's entry is the client, or there is none; the head is never consumed."""
    head = f"GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n".encode()
    by_header = ByHeader(NOBODY, ClientHeader(name, hop))
    read = by_header.begin()
    assert {read(head[:size]) for size in range(1, len(head))} == {None}
    assert read(head) == Client(host)
    assert by_header.begin()(head + b"X-Forwarded-For: 203.0.113.1\r\n\r\n") == Client(host)


def test_nothing_new() -> None:
    """Looking once more at the same bytes changes nothing."""
    head = b"\r\n\n\r\nGET / HTTP/1.1\r\nHost: a\r\nX-Real-IP:\r\n 192.0.2.1\r\n\r\n"
    read = ByHeader(NOBODY, ClientHeader("X-Real-IP", "first")).begin()
    for size in range(len(head)):
        assert read(head[:size]) is read(head[:size]) is None
    assert read(head) == read(head) == Client("192.0.2.1")


def test_two_connections_at_once() -> None:
    """What is known of one connection is not known of another."""
    by_header = ByHeader(NOBODY, ClientHeader("X-Real-IP", "first"))
    one, other = by_header.begin(), by_header.begin()
    first, second = (f"GET / HTTP/1.1\r\nX-Real-IP: 192.0.2.{n}\r\n\r\n".encode() for n in (1, 2))
    assert one(first[:-1]) is other(second[:-3]) is None
    assert other(second) == Client("192.0.2.2")
    assert one(first) == Client("192.0.2.1")


def test_garbage() -> None:
    """What is no HTTP is the peer's."""
    assert ByHeader(NOBODY, ClientHeader("X-Real-IP", "first")).begin()(b"\x16\x03\x01") == Client(None)


def test_large_head() -> None:
    """A head that is still going on at the limit is refused with 431."""
    read = ByHeader(NOBODY, ClientHeader("X-Real-IP", "first")).begin()
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES
    assert read(head[: MAX_HEAD_BYTES - 1]) is None
    with pytest.raises(RefusedError) as refused:
        read(head)
    assert refused.value.status == 431


@pytest.mark.parametrize(
    ("seen", "client"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\nGET", Client("192.0.2.1", 5000, 40)),
        (b"PROXY TCP6 2001:db8::1 ::1 5000 80\r\n", Client("2001:db8::1", 5000, 36)),
        (b"PROXY UNKNOWN\r\nGET", Client(None, None, 15)),
        (V2 + b"\x20\0\0\0GET", Client(None, None, 16)),
        (V2 + b"\x21\x11\0\x0c\1\2\3\4\5\6\7\x08\x13\x88\0\x50GET", Client("1.2.3.4", 5000, 28)),
        (b"GET / HTTP/1.1\r\n", Client(None, None, 0)),
        (b"PROXY TCP4 192.0.2.1", None),
    ],
)
def test_by_proxy_protocol(seen: bytes, client: Client | None) -> None:
    """The header's source is the client and takes the peer's place; the header is not meant for the worker."""
    by_proxy_protocol = ByProxyProtocol(NOBODY, "auto")
    assert by_proxy_protocol.begin()(seen) == client
    assert not by_proxy_protocol.worker_can_tell


@pytest.mark.parametrize(("mode", "seen"), [("v1", V2), ("v2", b"PROXY "), ("auto", b"PROXY TCP9")])
def test_malformed_proxy_header(mode: str, seen: bytes) -> None:
    """Nothing can be said to who sends a malformed header."""
    with pytest.raises(RefusedError) as refused:
        ByProxyProtocol(NOBODY, mode).begin()(seen)
    assert refused.value.status is None
