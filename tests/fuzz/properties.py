"""What holds for all bytes whatsoever: checked with those that hypothesis makes up, and with those of a fuzzer.

The models here are written for their readers: line by line, slow, and with no state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sticky_session import head, proxyprotocol
from sticky_session.address import pack, unpack
from sticky_session.forwarded import ClientHeader
from sticky_session.head import AddressFinder, Verdict
from sticky_session.proxyprotocol import ABSENT, SIGNATURE, Malformed, ProxyHeader

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"


# --- forwarding headers


def check_values(values: list[str]) -> None:
    """Every list of values has an answer, which is a normalised address, and can't hide what a proxy appends to it."""
    for name in ("X-Forwarded-For", "Forwarded"):
        addresses = {hop: ClientHeader(name, hop).address(values) for hop in ("first", "last", 1, 2, 32)}
        assert addresses["last"] == addresses[1]
        for address in addresses.values():
            if address is not None:
                assert unpack(pack(address)) == address
        appended = ClientHeader(name, "last")
        node = "for=192.0.2.1;proto=https" if name == "Forwarded" else "192.0.2.1"
        assert appended.address([*values, node]) == "192.0.2.1"
        if values:
            assert appended.address([*values[:-1], f"{values[-1]}, {node}"]) == "192.0.2.1"


# --- heads


def model_head(data: bytes, finder: AddressFinder) -> head.Answer:
    """What a reader is to answer to these bytes."""
    seen = data[: finder.limit]
    undecided = Verdict.TOO_LARGE if len(seen) == finder.limit else Verdict.MORE
    rest = seen
    while rest.startswith((b"\n", b"\r\n")):
        rest = rest[1:] if rest[0] == 10 else rest[2:]
    line, end, rest = rest.partition(b"\n")
    if not end:
        text = line.removesuffix(b"\r")
        begins_well = not text or re.match(TOKEN, text)
        return undecided if begins_well and not re.search(rb"[\x00-\x1f\x7f]", text) else Verdict.PEER
    parts = line.removesuffix(b"\r").split(b" ")
    if not (
        len(parts) == 3
        and re.fullmatch(TOKEN + b"+", parts[0])
        and parts[1]
        and not re.search(rb"[\x00-\x20\x7f]", parts[1])
        and re.fullmatch(rb"HTTP/[0-9]\.[0-9]", parts[2])
    ):
        return Verdict.PEER
    # None: the request line, to which a continuation would belong.
    fields: list[tuple[bytes, bytes] | None] = [None]
    *lines, _unfinished = rest.split(b"\n")
    for line in lines:
        if line in (b"", b"\r"):
            break
        if line[:1] in (b" ", b"\t"):
            if fields[-1] is not None:
                fields[-1] = (fields[-1][0], fields[-1][1] + b" " + line)
            continue
        name, _colon, value = line.partition(b":")
        fields.append((name.lower() if _colon else b"", value))
    else:
        return undecided
    wanted = finder.header.name.lower().encode()
    values = [field[1].decode("latin-1") for field in fields if field is not None and field[0] == wanted]
    return finder.header.address(values) or Verdict.PEER


def check_head(data: bytes, cuts: Iterable[int], limit: int = 1 << 16, name: str = "X-Forwarded-For") -> None:
    """The answer is the model's, however the bytes are cut, and nothing after the head has a part in it."""
    finder = AddressFinder(ClientHeader(name, "first"), limit)
    answer = finder.reader().feed(data)
    assert answer == model_head(data, finder)

    reader = finder.reader()
    # Each comes twice: a wake-up doesn't always bring more.
    for cut in sorted(cut for cut in [*cuts, *cuts] if cut < len(data)):
        # An answer is given as soon as it can be, and stays.
        assert reader.feed(data[:cut]) == model_head(data[:cut], finder)
        if reader.answer is not Verdict.MORE:
            assert reader.answer == answer
    assert reader.feed(data) == answer

    if answer is not Verdict.MORE:
        assert finder.reader().feed(data + b"\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n") == answer
    whole = re.match(rb"(?:\r?\n)*((?!\r?\n)[^\n]+\n)((?:(?!\r?\n)[^\n]+\n)*)\r?\n", data)
    if whole and answer is not Verdict.TOO_LARGE and finder.reader().feed(whole[1]) is Verdict.MORE:
        check_isolated((whole[1] + whole[2]).removesuffix(b"\n").removesuffix(b"\r"), answer, finder)


def check_isolated(isolated: bytes, answer: head.Answer, finder: AddressFinder) -> None:
    """Nothing around the head has a part in the answer."""
    around = b"\nX-Forwarded-For: 198.51.100.2\r\n"
    found = finder.find(around + isolated + around, len(around), len(around) + len(isolated))
    assert (found or Verdict.PEER) == answer


# --- the PROXY protocol


def check_proxy(data: bytes, cuts: Iterable[int], mode: str) -> None:
    """Neither how the bytes are cut nor what comes after the header changes the answer, and its length is exact."""
    answer = proxyprotocol.read(data, mode)
    for cut in [cut for cut in cuts if cut < len(data)]:
        early = proxyprotocol.read(data[:cut], mode)
        if isinstance(early, Malformed):
            assert isinstance(answer, Malformed)
        elif early is not None:
            assert early == answer
        elif isinstance(answer, ProxyHeader):
            assert cut < max(answer.length, len(SIGNATURE))
    if isinstance(answer, Malformed):
        assert answer.reason
        assert isinstance(proxyprotocol.read(data + b"\r\n", mode), Malformed)
    elif answer is not None:
        assert proxyprotocol.read(data + b"\r\nPROXY ", mode) == answer
        check_proxy_header(data, answer, mode)
    else:
        assert mode != "off"
        assert len(data) < proxyprotocol.MAX_V2_BYTES
        assert data.startswith(SIGNATURE[: len(data)]) or len(data) < proxyprotocol.MAX_V1_BYTES


def check_proxy_header(data: bytes, header: ProxyHeader, mode: str) -> None:
    assert header.length <= len(data)
    assert (header.source is None) == (header.destination is None)
    if header.length == 0:
        assert header is ABSENT
        return
    assert proxyprotocol.read(data[: header.length], mode) == header
    assert proxyprotocol.read(data[: header.length - 1], mode) is None
    for endpoint in (header.source, header.destination):
        if endpoint is not None:
            assert unpack(pack(endpoint[0])) == endpoint[0]
            assert 0 <= endpoint[1] <= 65535
