"""The PROXY protocol: what a header says, how long it is, and what is none."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import check_proxy
from sticky_session.proxyprotocol import ABSENT, MAX_V1_BYTES, MAX_V2_BYTES, SIGNATURE, Answer, Malformed, ProxyHeader
from sticky_session.proxyprotocol import read as read_header

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
IPV4 = IPv4Address("192.0.2.7").packed + IPv4Address("192.0.2.1").packed + b"\x12\x67\x00\x50"
IPV6 = IPv6Address("2001:db8::7").packed + IPv6Address("2001:db8::1").packed + b"\x12\x67\x00\x50"
MAPPED = IPv6Address("::ffff:192.0.2.7").packed + IPv6Address("::ffff:192.0.2.1").packed + b"\x12\x67\x00\x50"
IPV4_ENDPOINTS = (("192.0.2.7", 4711), ("192.0.2.1", 80))
IPV6_ENDPOINTS = (("2001:db8::7", 4711), ("2001:db8::1", 80))
PORTS = st.integers(0, 65535)


def read(data: bytes, mode: str = "auto") -> Answer:
    """The answer to bytes that arrive at once; and how they are cut must make no difference."""
    check_proxy(data, range(len(data)), mode)
    return read_header(data, mode)


def v2(command: int, family: int, block: bytes = b"") -> bytes:
    return SIGNATURE + bytes([command, family]) + len(block).to_bytes(2, "big") + block


# --- version 1


@pytest.mark.parametrize(
    ("line", "protocol", "source", "destination"),
    [
        ("TCP4 192.0.2.7 192.0.2.1 4711 80", "TCP4", *IPV4_ENDPOINTS),
        ("TCP4 255.255.255.255 255.255.255.255 65535 65535", "TCP4", *[("255.255.255.255", 65535)] * 2),
        ("TCP4 0.0.0.0 0.0.0.0 0 0", "TCP4", *[("0.0.0.0", 0)] * 2),  # noqa: S104 - nothing listens
        ("TCP6 2001:db8::7 2001:db8::1 4711 80", "TCP6", *IPV6_ENDPOINTS),
        ("TCP6 2001:DB8:0:0:0:0:0:7 2001:0db8::0001 4711 80", "TCP6", *IPV6_ENDPOINTS),
        ("TCP6 ::ffff:192.0.2.7 ::FFFF:c000:0201 4711 80", "TCP6", *IPV4_ENDPOINTS),
        (
            "TCP6 0000:0000:0000:0000:0000:ffff:255.255.255.255 2001:db8::1 65535 65535",
            *("TCP6", ("255.255.255.255", 65535), ("2001:db8::1", 65535)),
        ),
        ("UNKNOWN", "UNKNOWN", None, None),
        ("UNKNOWN ", "UNKNOWN", None, None),
        ("UNKNOWN ffff::1 ffff::2 65535 65535", "UNKNOWN", None, None),
        ("UNKNOWN anything, \0\xff \r really\n", "UNKNOWN", None, None),
    ],
)
@pytest.mark.parametrize("mode", ["v1", "auto"])
def test_v1(
    line: str, protocol: str, source: tuple[str, int] | None, destination: tuple[str, int] | None, mode: str
) -> None:
    """Section 2.1: one line, taken exactly, whatever follows it."""
    header = f"PROXY {line}\r\n".encode("latin-1")
    expected = ProxyHeader(len(header), protocol, source, destination)
    for following in (b"", REQUEST, header, b"\x16\x03\x01", b"\n"):
        assert read(header + following, mode) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "TCP",
        "TCP5 192.0.2.7 192.0.2.1 4711 80",
        "tcp4 192.0.2.7 192.0.2.1 4711 80",
        "UDP4 192.0.2.7 192.0.2.1 4711 80",
        "UNKNOWNS",
        "UNKNOWN\r",
        "UNKNOWN\n",
        "TCP4",
        "TCP4 ",
        "TCP4 192.0.2.7",
        "TCP4 192.0.2.7 192.0.2.1 4711",
        "TCP4 192.0.2.7 192.0.2.1 4711 ",
        "TCP4 192.0.2.7 192.0.2.1 4711 80 ",
        "TCP4 192.0.2.7 192.0.2.1 4711 80 1",
        "TCP4  192.0.2.7 192.0.2.1 4711 80",
        " TCP4 192.0.2.7 192.0.2.1 4711 80",
        "TCP4\t192.0.2.7 192.0.2.1 4711 80",
        "TCP4 192.0.2.7 192.0.2.1 4711 80\r",
        "TCP4 192.0.2.7 192.0.2.1 4711 80\n",
        "TCP4 192.0.2.7 192.0.2.1\r4711 80",
        "TCP4 192.0.2.07 192.0.2.1 4711 80",
        "TCP4 192.0.2.256 192.0.2.1 4711 80",
        "TCP4 192.0.2 192.0.2.1 4711 80",
        "TCP4 192.0.2.7 192.0.2.256 4711 80",
        "TCP4 localhost 192.0.2.1 4711 80",
        "TCP4 2001:db8::7 2001:db8::1 4711 80",
        "TCP4 ::ffff:192.0.2.7 192.0.2.1 4711 80",
        "TCP6 192.0.2.7 192.0.2.1 4711 80",
        "TCP6 2001:db8::7 192.0.2.1 4711 80",
        "TCP6 fe80::1%eth0 2001:db8::1 4711 80",
        "TCP6 [2001:db8::7] [2001:db8::1] 4711 80",
        "TCP6 1::2::3 2001:db8::1 4711 80",
        "TCP4 192.0.2.7 192.0.2.1 65536 80",
        "TCP4 192.0.2.7 192.0.2.1 4711 65536",
        "TCP4 192.0.2.7 192.0.2.1 04711 80",
        "TCP4 192.0.2.7 192.0.2.1 00 80",
        "TCP4 192.0.2.7 192.0.2.1 +4711 80",
        "TCP4 192.0.2.7 192.0.2.1 -1 80",
        "TCP4 192.0.2.7 192.0.2.1 4_7 80",
        "TCP4 192.0.2.7 192.0.2.1 0x1 80",
        "TCP4 192.0.2.7 192.0.2.1 4711 \xb2",
        "TCP4 192.0.2.7 192.0.2.1 4711 80\0",
        "UNKNOWN " + "x" * MAX_V1_BYTES,
    ],
)
def test_v1_malformed(line: str) -> None:
    """What is not exactly as in section 2.1 is refused."""
    assert isinstance(read(f"PROXY {line}\r\n".encode("latin-1")), Malformed)


def test_v1_limit() -> None:
    """The CRLF is within 107 bytes."""
    fits = b"PROXY UNKNOWN " + b"x" * (MAX_V1_BYTES - 16) + b"\r\n"
    assert len(fits) == MAX_V1_BYTES
    assert read(fits) == ProxyHeader(MAX_V1_BYTES, "UNKNOWN", None, None)
    assert read(fits[:-1]) is None
    longer = fits[:-2] + b"x\r\n"
    assert read(longer[:-2]) is None
    assert read(longer[:-1]) == Malformed("no CRLF in the first 107 bytes")


@pytest.mark.parametrize(
    "beginning",
    [
        b"PROXY X",
        b"PROXY TCP5",
        b"PROXY TCP4x",
        b"PROXY TCP4 \r",
        b"PROXY TCP4 1.2.3.4:",
        b"PROXY TCP4 1.2.3.4567890123",
        b"PROXY TCP4 1.2.3 ",
        b"PROXY TCP4 1.2.3.4 g",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 x",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 ",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 100000",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 ",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n",
        b"PROXY TCP6 1.2.3.4 ",
        b"PROXY UNKNOWNX",
    ],
)
def test_v1_early(beginning: bytes) -> None:
    """A line that can't become a header is refused with the byte that spoils it."""
    assert read(beginning[:-1]) is None
    assert isinstance(read(beginning), Malformed)


@given(
    addresses=st.one_of(
        st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
    ),
    ports=st.tuples(PORTS, PORTS),
    following=st.binary(max_size=20),
)
def test_round_trip(addresses: tuple[IPv4Address | IPv6Address, ...], ports: tuple[int, int], following: bytes) -> None:
    """What one side writes, in either version, the other reads, and takes nothing else."""
    version = addresses[0].version
    line = f"PROXY TCP{version} {addresses[0]} {addresses[1]} {ports[0]} {ports[1]}\r\n".encode()
    block = b"".join(address.packed for address in addresses) + b"".join(port.to_bytes(2, "big") for port in ports)
    binary = v2(0x21, {4: 0x11, 6: 0x21}[version], block)
    for header in (line, binary):
        answer = read(header + following)
        assert isinstance(answer, ProxyHeader)
        assert (answer.length, answer.protocol) == (len(header), f"TCP{version}")
        for endpoint, address, port in zip((answer.source, answer.destination), addresses, ports, strict=True):
            assert endpoint is not None
            mapped = getattr(address, "ipv4_mapped", None)
            assert type(address)(endpoint[0]) == address if mapped is None else endpoint[0] == str(mapped)
            assert endpoint[1] == port


# --- version 2


@pytest.mark.parametrize(
    ("command", "family", "block", "protocol", "endpoints"),
    [
        (0x21, 0x11, IPV4, "TCP4", IPV4_ENDPOINTS),
        (0x21, 0x21, IPV6, "TCP6", IPV6_ENDPOINTS),
        (0x21, 0x21, MAPPED, "TCP6", IPV4_ENDPOINTS),
        (0x21, 0x12, IPV4, "UDP4", IPV4_ENDPOINTS),
        (0x21, 0x22, IPV6, "UDP6", IPV6_ENDPOINTS),
        (0x21, 0x31, b"/a".ljust(216, b"\0"), "UNIX", (None, None)),
        (0x21, 0x32, b"/a".ljust(216, b"\0"), "UNIX", (None, None)),
        (0x21, 0x00, b"", "UNSPEC", (None, None)),
        (0x21, 0x01, b"", "UNSPEC", (None, None)),
        (0x21, 0x10, IPV4, "UNSPEC", (None, None)),
        (0x21, 0x00, IPV4, "UNSPEC", (None, None)),
        (0x20, 0x00, b"", "LOCAL", (None, None)),
        (0x20, 0x11, IPV4, "LOCAL", (None, None)),
        (0x20, 0x11, b"", "LOCAL", (None, None)),
        (0x20, 0xFF, b"", "LOCAL", (None, None)),  # "including the family which is ignored"
    ],
)
@pytest.mark.parametrize("extensions", [b"", b"\x04\x00\x01x", b"\x02\x00\x07example\xff", b"\0", bytes(500)])
@pytest.mark.parametrize("mode", ["v2", "auto"])
def test_v2(
    command: int,
    family: int,
    block: bytes,
    protocol: str,
    endpoints: tuple[tuple[str, int] | None, ...],
    extensions: bytes,
    mode: str,
) -> None:
    """Section 2.2: taken exactly, extensions skipped; what is none of TCP's and UDP's addresses means the peer's."""
    header = v2(command, family, block + extensions)
    for following in (b"", REQUEST, header):
        assert read(header + following, mode) == ProxyHeader(len(header), protocol, *endpoints)


@pytest.mark.parametrize(
    ("header", "decided"),
    [
        (v2(0x11, 0x11, IPV4), 13),
        (v2(0x31, 0x11, IPV4), 13),
        (v2(0x01, 0x11, IPV4), 13),
        (v2(0x22, 0x11, IPV4), 13),
        (v2(0x2F, 0x11, IPV4), 13),
        (v2(0x21, 0x41, IPV4), 14),
        (v2(0x21, 0xF1, IPV4), 14),
        (v2(0x21, 0x13, IPV4), 14),
        (v2(0x21, 0x03, b""), 14),
        (v2(0x21, 0x11, IPV4[:-1]), 16),
        (v2(0x21, 0x10, b""), 16),
        (v2(0x21, 0x21, IPV6[:-1]), 16),
        (v2(0x21, 0x21, IPV4), 16),
        (v2(0x21, 0x31, bytes(215)), 16),
    ],
)
def test_v2_malformed(header: bytes, decided: int) -> None:
    """A wrong byte is refused as soon as it is there."""
    assert read(header[: decided - 1]) is None
    assert isinstance(read(header[:decided]), Malformed)
    assert isinstance(read(header + REQUEST), Malformed)


def test_v2_largest() -> None:
    """The length field's largest value is taken."""
    header = v2(0x21, 0x11, IPV4 + bytes(65535 - len(IPV4)))
    assert len(header) == MAX_V2_BYTES
    assert read_header(header[:-1]) is None
    assert read_header(header + REQUEST) == ProxyHeader(MAX_V2_BYTES, "TCP4", *IPV4_ENDPOINTS)


# --- no header


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
@pytest.mark.parametrize(
    ("data", "decided"),
    [
        (REQUEST, 1),
        (b"POST / HTTP/1.1\r\n", 2),
        (b"PROPFIND / HTTP/1.1\r\n", 4),
        (b"PROXY\tTCP4", 6),
        (b"PROXY/", 6),
        (b"proxy ", 1),
        (b"\r\nGET / HTTP/1.1\r\n", 3),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", 5),
        (b"\r\n\r\n\0\r\nQUIT\r", 12),
        (b"\x16\x03\x01\x02\x00", 1),
    ],
)
def test_absent(data: bytes, decided: int, mode: str) -> None:
    """What begins with something else has no header, and that is told with the first byte that differs."""
    assert read(b"", mode) is None
    assert read(data[: decided - 1], mode) is None
    assert read(data[:decided], mode) is ABSENT
    assert read(data, mode) is ABSENT
    assert ABSENT.length == 0


@pytest.mark.parametrize("data", [b"", b"P", b"PROXY UNKNOWN\r\n", v2(0x20, 0)])
def test_off(data: bytes) -> None:
    """Switched off, nothing is looked at."""
    assert read(data, "off") is ABSENT


def test_other_version() -> None:
    """A header of the version that is not expected is no request either."""
    assert read(b"PROXY ", "v2") == Malformed("a header of version 1 where only version 2 is expected")
    assert read(SIGNATURE, "v1") == Malformed("a header of version 2 where only version 1 is expected")


@pytest.mark.parametrize("mode", ["", "V1", "on", "v3"])
def test_bad_mode(mode: str) -> None:
    """A mode is one of gunicorn's, after its own normalisation."""
    with pytest.raises(ValueError, match="expected off, v1, v2 or auto"):
        read_header(b"", mode)


# --- any bytes


@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.tuples(st.sampled_from([b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 "]), st.binary(max_size=120)).map(b"".join),
        st.from_regex(rb"\APROXY (TCP[46]|UNKNOWN)( [0-9a-f.:]{1,20}){0,2}( [0-9]{1,6}){0,3}[ \r\n]{0,3}").map(bytes),
        st.tuples(
            st.just(SIGNATURE), st.sampled_from([b"\x20", b"\x21"]), st.binary(max_size=3), st.binary(max_size=60)
        ).map(b"".join),
    ),
    mode=st.sampled_from(["auto", "v1", "v2", "off"]),
)
def test_any_bytes(data: bytes, mode: str) -> None:
    """Whatever arrives has an answer, the same in whatever pieces it arrives."""
    check_proxy(data, range(len(data)), mode)
