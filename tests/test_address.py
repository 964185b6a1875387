"""Addresses: what counts as the same client."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session.address import Masks, pack, unpack

IPV4 = st.ip_addresses(v=4)
IPV6 = st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None)


@given(address=st.one_of(IPV4, IPV6))
def test_round_trip(address: IPv4Address | IPv6Address) -> None:
    """An address is its bytes in network order, and unpack() is the inverse."""
    assert pack(str(address)) == address.packed
    assert ip_address(unpack(address.packed)) == address


@given(address=IPV4)
def test_mapped(address: IPv4Address) -> None:
    """An IPv4-mapped IPv6 address is the IPv4 address, however it is written."""
    assert pack(f"::ffff:{address}") == address.packed
    assert pack(IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed).exploded) == address.packed
    assert Masks().key(f"::ffff:{address}") == Masks().key(str(address))


@pytest.mark.parametrize(
    "address",
    ["::ffff:0:192.0.2.1", "::192.0.2.1", "64:ff9b::192.0.2.1", "::fffe:192.0.2.1", "1::ffff:192.0.2.1"],
)
def test_not_mapped(address: str) -> None:
    """Only ::ffff:0:0/96 is mapped; its relatives are IPv6 addresses."""
    assert len(pack(address)) == 16


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fe80::1%2", "fe80::1%"])
def test_zone(address: str) -> None:
    """A zone id names an interface of this machine, and is no part of the client's address."""
    assert pack(address) == pack("fe80::1")


@given(address=IPV4, prefix=st.integers(0, 32))
def test_ipv4_mask(address: IPv4Address, prefix: int) -> None:
    """The key of an IPv4 address is its network's address."""
    assert Masks(prefix, 0).key(str(address)) == ip_network((address, prefix), strict=False).network_address.packed


@given(address=IPV6, prefix=st.integers(0, 128))
def test_ipv6_mask(address: IPv6Address, prefix: int) -> None:
    """The key of an IPv6 address is its network's address."""
    assert Masks(0, prefix).key(str(address)) == ip_network((address, prefix), strict=False).network_address.packed


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
    ],
)
def test_defaults(one: str, other: str, same: bool) -> None:
    """By default an IPv4 address is one client, and an IPv6 /64 is."""
    assert (Masks().key(one) == Masks().key(other)) is same


def test_no_address() -> None:
    """Peers without an address, those of Unix sockets, all have the same key."""
    assert Masks().key("") == b""


@pytest.mark.parametrize(
    "garbage",
    [
        "unknown", "localhost", "1", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "0x7f.0.0.1", " 1.2.3.4",
        "1.2.3.4 ", "1.2.3.4\n", "1.2.3.4\0", "1.2.3.4:80", "1.2.3.4/8", "[::1]", "::1]", ":", ":::", "::g",
        "1::2::3", "::1/64", "::ffff:1.2.3", "::ffff:1.2.3.4.5", "%", "%eth0", "::1\n", "::1\0",
        "\N{FULLWIDTH DIGIT ONE}.2.3.4", "\udc80", "::\udc80", "é",
    ],
)  # fmt: skip
def test_garbage(garbage: str) -> None:
    """What is no address is a ValueError that shows it."""
    with pytest.raises(ValueError, match="is no IP address; expected one like"):
        pack(garbage)
    with pytest.raises(ValueError, match="is no IP address; expected one like"):
        Masks().key(garbage)


@given(text=st.text(max_size=40))
def test_any_text(text: str) -> None:
    """Whatever text is given, it is packed into 4 or 16 bytes, or is a ValueError."""
    try:
        packed = pack(text)
    except ValueError:
        return
    assert len(packed) in (4, 16)
