"""Forwarding headers: which address they tell, and when they tell none."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from properties import check_values
from sticky_session.address import pack, unpack
from sticky_session.forwarded import MAX_HOP, ClientHeader, parse_hop, parse_name

ADDRESSES = st.ip_addresses().map(lambda address: unpack(pack(str(address))))
# What headers are made of, so that what is made up looks like them.
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["192.0.2.1", "2001:db8::1", "[::1]", ":80", ":_p", "%eth0", "unknown", "for=", "FOR=", "by=a"]
        ),
        st.sampled_from([",", ";", "=", '"', "\\", " ", "\t", "\r\n ", "[", "]", ":", "é"]),
        st.text(max_size=3),
    ),
    max_size=12,
).map("".join)


def first_of(*values: str, name: str = "X-Forwarded-For") -> str | None:
    return ClientHeader(name, "first").address(values)


# --- one entry


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("192.0.2.1:0", "192.0.2.1"),
        ("192.0.2.1:65535", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:db8::1:80", "2001:db8::1:80"),  # bare, all of it is the address
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[::]", "::"),
        ("::", "::"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%eth0]", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("fe80::1%", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("::FFFF:C000:0201", "192.0.2.1"),
        ('"192.0.2.1"', "192.0.2.1"),
        ('"192.0.2.1:4711"', "192.0.2.1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ('"2001:db8::1"', "2001:db8::1"),
        (r'"192\.0.2.\1"', "192.0.2.1"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "  {} ", "\t{}\t", "\r\n {}\r\n\t", "{}, 198.51.100.1", ",, {} ,"])
def test_entry(entry: str, address: str, around: str) -> None:
    """The ways in which proxies write an address, normalised."""
    assert first_of(around.format(entry)) == address


@pytest.mark.parametrize(
    "entry",
    [
        "unknown",
        "_hidden",
        "localhost",
        "client.example",
        "1.2.3",
        "1.2.3.4.5",
        "256.0.0.1",
        "01.2.3.4",
        "1.2.3.4/32",
        "1.2.3.4 5.6.7.8",
        "1.2.3.4;5.6.7.8",
        "1.2.3.\r\n 4",
        "1.2.3.4:",
        "1.2.3.4:http",
        "1.2.3.4:-1",
        "1.2.3.4:65536",
        "1.2.3.4:000080",
        "1.2.3.4:_port",  # RFC 7239's, and so for Forwarded only
        "1.2.3.4:80:80",
        "1.2.3.4%eth0",
        "1.2.3.4%eth0:80",
        "[1.2.3.4]",
        "[1.2.3.4]:80",
        "[::1",
        "::1]",
        "[]",
        "[::1]:",
        "[::1]80",
        "[::1]:65536",
        "[::1]:+80",
        "[[::1]]",
        "[::1%e]th]",
        "::1%e th",
        ":::",
        ":",
        ":80",
        "1::2::3",
        "12345::",
        "::g",
        "\N{FULLWIDTH DIGIT ONE}.2.3.4",
        "1.2.3.4:\N{ARABIC-INDIC DIGIT ONE}",
        "\xa01.2.3.4",
        "1.2.3.4\x85",
        "\xe9",
        "\udc80",
        "1.2.3.4\0",
        "\0",
        "1.2.3.4\x0b",
        '"1.2.3.4',
        '1.2.3.4"',
        '"1.2.3.4" x',
        '"1.2.3.4""5.6.7.8"',
        '" 1.2.3.4"',
        '""1.2.3.4""',
        '"',
        '""',
        "\\1.2.3.4",
        "for=1.2.3.4",
        "'1.2.3.4'",
    ],
)
@pytest.mark.parametrize("around", ["{}", "{}, 198.51.100.1", ",{}"])
def test_unusable_entry(entry: str, around: str) -> None:
    """What is no address means that the peer's is used, not the neighbour's."""
    assert first_of(around.format(entry)) is None


@pytest.mark.parametrize("values", [[], [""], [" \t"], [",,"], [" , ", "", ","]])
@pytest.mark.parametrize("hop", ["first", "last", 1, 2])
@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded"])
def test_no_entry(values: list[str], hop: str | int, name: str) -> None:
    """A header without entries tells nothing (RFC 9110 section 5.6.1)."""
    assert ClientHeader(name, hop).address(values) is None


# --- which entry


@pytest.mark.parametrize(
    ("values", "entries"),
    [
        (["1.1.1.1"], ["1.1.1.1"]),
        (["1.1.1.1,2.2.2.2"], ["1.1.1.1", "2.2.2.2"]),
        (["1.1.1.1", "2.2.2.2"], ["1.1.1.1", "2.2.2.2"]),
        ([" 1.1.1.1 ,\t2.2.2.2", "", "3.3.3.3,,", "4.4.4.4"], ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]),
        (["1.1.1.1, unknown", "_x, 4.4.4.4"], ["1.1.1.1", None, None, "4.4.4.4"]),
        (['"1.1.1.1, 2.2.2.2", 3.3.3.3'], [None, "3.3.3.3"]),
        ([r'"1.1.1.1\", 2.2.2.2", 3.3.3.3'], [None, "3.3.3.3"]),
        ([r'"1.1.1.1\\", 3.3.3.3'], [None, "3.3.3.3"]),
        (['"1.1.1.1\\\n , 2.2.2.2, x", 3.3.3.3'], [None, "3.3.3.3"]),
        (['a"b,c"d, 3.3.3.3'], [None, "3.3.3.3"]),
        # What is never closed quotes nothing.
        (['", 2.2.2.2, 3.3.3.3'], [None, "2.2.2.2", "3.3.3.3"]),
        (['"a,b", "x, 2.2.2.2, 3.3.3.3'], [None, None, "2.2.2.2", "3.3.3.3"]),
        (['"a,b""x, 3.3.3.3'], [None, "3.3.3.3"]),
        ([r'"\"\", 3.3.3.3'], [None, "3.3.3.3"]),
        # Nor does it in the header's next field.
        (['1.1.1.1, "', '", 3.3.3.3'], ["1.1.1.1", None, None, "3.3.3.3"]),
    ],
)
def test_hop(values: list[str], entries: list[str | None]) -> None:
    """Entries are counted over all fields in order, from the right as a chain of proxies has appended them."""
    assert ClientHeader("X-Forwarded-For", "first").address(values) == entries[0]
    assert ClientHeader("X-Forwarded-For", "last").address(values) == entries[-1]
    counted = [ClientHeader("X-Forwarded-For", hop).address(values) for hop in range(1, len(entries) + 1)]
    assert counted == entries[::-1]
    for hop in (len(entries) + 1, MAX_HOP):
        assert ClientHeader("X-Forwarded-For", hop).address(values) is None


@given(addresses=st.lists(ADDRESSES, min_size=1, max_size=8), data=st.data())
def test_round_trip(addresses: list[str], data: st.DataObject) -> None:
    """What a chain of proxies writes is read again, in lists and in Forwarded, in one field or in many."""

    def write(address: str, name: str) -> str:
        port = data.draw(st.sampled_from(["", ":80", ":65535"]))
        node = f"[{address}]{port}" if ":" in address else address + port
        if name != "Forwarded":
            return data.draw(st.sampled_from([address, node, f'"{node}"']))
        return data.draw(st.sampled_from(['for="{}"', 'For="{}";proto=https', 'by="_x";FOR="{}"'])).format(node)

    for name in ("X-Forwarded-For", "Forwarded"):
        values = [write(address, name) for address in addresses]
        for sent in (values, [",".join(values)], [" , ".join(values)]):
            counted = [ClientHeader(name, hop).address(sent) for hop in range(1, len(addresses) + 1)]
            assert counted == addresses[::-1]


# --- Forwarded


@pytest.mark.parametrize(
    ("element", "address"),
    [
        ("for=192.0.2.43", "192.0.2.43"),
        ('For="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
        ("proto=http;by=203.0.113.43;FOR=192.0.2.60", "192.0.2.60"),
        ("for=192.0.2.60; proto=http ;by=203.0.113.43", "192.0.2.60"),
        ('for="192.0.2.43:80"', "192.0.2.43"),
        ('for="192.0.2.43:_port"', "192.0.2.43"),  # RFC 7239 section 6.2
        ('for="[::1]:_.-P"', "::1"),
        (r'for="\1\92.0.2.43"', "192.0.2.43"),
        ('for="[::ffff:192.0.2.43]"', "192.0.2.43"),
        ('for="2001:db8::1"', "2001:db8::1"),
        (";for=192.0.2.43;", "192.0.2.43"),
        (' ; for=192.0.2.43;ext="a;b,c\\"d";', "192.0.2.43"),
        # Not quoted though it has to be: some proxies do, and it can't be anything else.
        ("for=192.0.2.43:80", "192.0.2.43"),
        ("for=[2001:db8::1]:80;proto=https", "2001:db8::1"),
        ("for=2001:db8::1", "2001:db8::1"),
    ],
)
@pytest.mark.parametrize("name", ["Forwarded", "forwarded", "FORWARDED"])
@pytest.mark.parametrize("around", ["{}", " {}\t", ",, {}, for=198.51.100.1"])
def test_forwarded(element: str, address: str, name: str, around: str) -> None:
    """RFC 7239 section 4, its examples among them."""
    assert first_of(around.format(element), name=name) == address


@pytest.mark.parametrize(
    "element",
    [
        "192.0.2.43",
        "proto=https",
        ";",
        "for",
        "for=",
        'for=""',
        "for=unknown",
        'for="_gazonk"',
        "for=_SEVKISEK",
        "for = 192.0.2.43",
        "for= 192.0.2.43",
        "for=192.0.2.43:",
        'for="192.0.2.43:_"',
        'for="192.0.2.43:99999"',
        'for="192.0.2.43',
        "for=192.0.2.43 proto=https",
        "for=192.0.2.43;for=192.0.2.44",
        'for="";for=192.0.2.43',
        "for=192.0.2.43;proto",
        'for=192.0.2.43;x="',
        'for=192.0.2.43;x="a"b',
        "for=192.0.2.43;=x",
        "for=192.0.2.43;x y=z",
        "xfor=192.0.2.43",
        "for-x=192.0.2.43",
        "x=for=192.0.2.43",
        "for=192.0.2.43\xe9",
    ],
)
@pytest.mark.parametrize("around", ["{}", "{}, for=198.51.100.1"])
def test_unusable_element(element: str, around: str) -> None:
    """An element without for=, or malformed anywhere, is an entry without an address."""
    assert first_of(around.format(element), name="Forwarded") is None


@pytest.mark.parametrize("forged", ['"', 'for="', 'for=6.6.6.6;x="', 'for=6.6.6.6;x="\\', "for=6.6.6.6;x=", '"a", "b'])
@pytest.mark.parametrize("appended", ["for=192.0.2.1", 'for=192.0.2.1;host="a"', 'for="[2001:db8::1]:80";proto=https'])
def test_forged_quote(forged: str, appended: str) -> None:
    """A client that opens a quote can make what a proxy appends unusable at most, and never have another taken."""
    for hop in ("last", 1):
        address = ClientHeader("Forwarded", hop).address([f"{forged}, {appended}"])
        assert address in (None, "192.0.2.1", "2001:db8::1")
        assert ClientHeader("Forwarded", hop).address([forged, appended]) in ("192.0.2.1", "2001:db8::1")


# --- any text


@given(values=st.lists(PIECES, max_size=4))
@example(values=['"\\'])
@example(values=["\ud800,\U0010ffff"])
def test_any_text(values: list[str]) -> None:
    """Whatever text is sent has an answer, and can't hide what a proxy appends."""
    check_values(values)


@pytest.mark.parametrize("piece", ['"', '\\"', '"\\', ",", '",', ' "', ";", "a=b;", 'a="b";', " ", "\\", "%", ":", "["])
@pytest.mark.parametrize("beginning", ["", '"', "for=", "[", 'for="'])
def test_linear(piece: str, beginning: str) -> None:
    """The time that reading takes grows with the value's length, not with its square."""
    value = beginning + piece * (200_000 // len(piece))
    began = time.process_time()
    for name in ("X-Forwarded-For", "Forwarded"):
        ClientHeader(name, "last").address([value, value])
    # Milliseconds, where the square would be minutes.
    assert time.process_time() - began < 2


# --- the options


@pytest.mark.parametrize(("text", "hop"), [("first", "first"), ("last", "last"), ("1", 1), ("01", 1), ("32", 32)])
def test_parse_hop(text: str, hop: str | int) -> None:
    """first, last, or a number."""
    assert parse_hop(text) == hop


@pytest.mark.parametrize("text", ["", "0", "33", "100", "-1", "+1", "1.0", " 1", "First", "\N{SUPERSCRIPT TWO}", "1\n"])
def test_bad_hop(text: str) -> None:
    """Anything else is an error that says what is possible."""
    with pytest.raises(ValueError, match="expected first, last, or a number from 1 to 32, counted from the right"):
        parse_hop(text)


@pytest.mark.parametrize("text", ["X-Forwarded-For", "cf-connecting-ip", "Forwarded", "X_Real_IP", "!#$%&'*+.^`|~9"])
def test_parse_name(text: str) -> None:
    """A token, as given."""
    assert parse_name(text) == text
    assert ClientHeader(text, "first").name == text


@pytest.mark.parametrize("text", ["", "X-Real-IP:", "X Real IP", "X-R\xe9al", "X\r\nY", "X\n", "(X)", '"X"'])
def test_bad_name(text: str) -> None:
    """Anything else is an error that shows it."""
    with pytest.raises(ValueError, match="is no name of a header; expected one like X-Forwarded-For"):
        parse_name(text)
