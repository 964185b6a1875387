"""The environ of a request: where the server's name comes from if not from its address."""

from __future__ import annotations

import pytest
from gunicorn.config import Config

from sticky_session.environ import request_environ, split_host
from sticky_session.request import BadRequest, Limits, parse
from sticky_session.trust import Trust

# What the requests of a Unix socket have in common.
UNIX = {"SCRIPT_NAME": "", "wsgi.url_scheme": "http"}
LIMITS = Limits(0, 100, 0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("example.org:8080", ("example.org", "8080")),
        ("example.org", ("example.org", "")),
        ("example.org:", ("example.org", "")),
        ("192.0.2.1:80", ("192.0.2.1", "80")),
        ("[::1]:80", ("[::1]", "80")),
        ("[::1]", ("[::1]", "")),
        ("[2001:db8::1]:", ("[2001:db8::1]", "")),
        ("example.org:no-port", ("example.org", "")),
        ("", ("", "")),
        (":80", ("", "80")),
    ],
)
def test_split_host(host: str, expected: tuple[str, str]) -> None:
    """RFC 9110 section 7.2: a port follows the last colon that is not part of an IPv6 address."""
    assert split_host(host) == expected


@pytest.mark.parametrize(
    ("scheme", "host", "name", "port"),
    [
        ("http", "[::1]:8000", "[::1]", "8000"),
        ("http", "[::1]", "[::1]", "80"),
        ("https", "example.org", "example.org", "443"),
        ("http", "", "", "80"),
    ],
)
def test_server_name_of_unix_socket(scheme: str, host: str, name: str, port: str) -> None:
    """A Unix socket has no name and no port: those that the client asked for are taken."""
    head = parse(f"GET / HTTP/1.1\r\nHost: {host}", LIMITS)
    environ = request_environ({**UNIX, "wsgi.url_scheme": scheme}, head, "", None)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, port)


def test_server_name_of_address() -> None:
    """A server that has an address is called by it, whatever the client says."""
    head = parse("GET / HTTP/1.1\r\nHost: other:1", LIMITS)
    base = {**UNIX, "SERVER_NAME": "192.0.2.1", "SERVER_PORT": "80"}
    environ = request_environ(base, head, ("192.0.2.2", 1234), None)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("192.0.2.1", "80")
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.2", "1234")


def test_base_is_left_alone() -> None:
    """What a bind's requests have in common is not changed by one of them."""
    base = dict(UNIX)
    request_environ(base, parse("GET / HTTP/1.1\r\nHost: a", LIMITS), "", None)
    assert base == UNIX


@pytest.mark.parametrize(
    ("target", "scheme", "trusted", "served"),
    [
        ("http://a/", "http", False, True),
        ("https://a/", "https", False, True),
        ("http://a/", "https", False, True),
        ("https://a/", "http", False, False),
        ("ftp://a/", "http", False, False),
        ("ws://a/", "https", False, False),
        ("https://a/", "http", True, True),
        ("/https://a/", "http", False, True),
    ],
)
def test_misdirected(target: str, scheme: str, trusted: bool, served: bool) -> None:
    """RFC 9110 section 7.4: https is not to be had in the clear, but for a trusted gateway."""
    head = parse(f"GET {target} HTTP/1.1\r\nHost: a", LIMITS)
    base = {**UNIX, "wsgi.url_scheme": scheme}
    trust = Trust(Config()) if trusted else None
    if served:
        assert request_environ(base, head, "", trust)["RAW_URI"] == target
    else:
        with pytest.raises(BadRequest) as caught:
            request_environ(base, head, "", trust)
        assert caught.value.status == 421
