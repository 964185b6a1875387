"""Whose forwarding headers count, and what they say of the scheme."""

from __future__ import annotations

from socket import AF_INET6, inet_ntop, inet_pton
from typing import Any

import pytest
from gunicorn.config import Config

from sticky_session.request import BadRequest, Limits, parse
from sticky_session.trust import Trust


def trust(allowed: str = "192.0.2.1,2001:db8::/32", **settings: Any) -> Trust:
    cfg = Config()
    cfg.set("forwarded_allow_ips", allowed)
    for name, value in settings.items():
        cfg.set(name, value)
    return Trust(cfg)


@pytest.mark.parametrize("host", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::7"])
def test_trusted(host: str) -> None:
    """Addresses and networks of forwarded_allow_ips are trusted, IPv4 ones on a dual-stack socket too."""
    assert (host, 1) in trust().peers


@pytest.mark.parametrize("host", ["192.0.2.2", "::ffff:192.0.2.2", "2001:db9::7", "fe80::1%eth0"])
def test_not_trusted(host: str) -> None:
    """Others are not."""
    assert (host, 1) not in trust().peers


@pytest.mark.parametrize("host", ["::ffff:192.0.2.1", "::192.0.2.1", "2001:DB8:0:0::1"])
def test_spelling(host: str) -> None:
    """An IPv6 address is trusted however it is written, also one that ends in IPv4's notation."""
    assert (inet_ntop(AF_INET6, inet_pton(AF_INET6, host)), 1) in trust(host).peers


def test_everybody() -> None:
    """With * everybody is, and a Unix socket's peer always is."""
    assert ("192.0.2.2", 1) in trust("*").peers
    assert "" in trust().peers


def test_many_peers() -> None:
    """However many addresses ask, the answers stay right."""
    those = trust()
    assert not any((f"10.{n >> 8}.{n & 255}.1", 1) in those.peers for n in range(6000))
    assert ("192.0.2.1", 1) in those.peers


def scheme_of(fields: str) -> str | None:
    """What a request with these header fields is told to be of."""
    head = parse(f"GET / HTTP/1.1\r\nHost: a\r\n{fields}".removesuffix("\r\n"), Limits(4094, 100, 8190))
    return trust().scheme(head.environ, head)


@pytest.mark.parametrize(
    ("fields", "scheme"),
    [
        ("", None),
        ("X-Forwarded-Proto: https\r\n", "https"),
        ("X-Forwarded-Proto: http\r\n", "http"),
        ("X-Forwarded-Ssl: on\r\nX-Forwarded-Proto: https\r\n", "https"),
        ("X-Forwarded-Proto: https\r\nx-forwarded-proto: https\r\n", "https"),
        ("X-Forwarded-Proto: https,http\r\n", "http"),
        ("X-Forwarded-Proto: https\r\nX_Forwarded_Proto: http\r\n", "https"),
        ("X-Forwarded-Proto: https\r\nX_Forwarded_Proto: http\r\nX-Forwarded-Proto: https\r\n", "https"),
    ],
)
def test_scheme(fields: str, scheme: str | None) -> None:
    """secure_scheme_headers tell the scheme."""
    assert scheme_of(fields) == scheme


@pytest.mark.parametrize("other", ["X-Forwarded-Ssl: on", "X-Forwarded-Proto: https"])
def test_contradiction(other: str) -> None:
    """Headers that contradict each other are refused."""
    with pytest.raises(BadRequest):
        scheme_of(f"{other}\r\nX-Forwarded-Proto: http\r\n")


def test_header_names() -> None:
    """forwarder_headers are compared in upper case."""
    assert trust(forwarder_headers="script_name").header_names == {"SCRIPT_NAME"}
