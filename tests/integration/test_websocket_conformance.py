"""RFC 6455 case by case, in the order and by the names of the Autobahn test suite, against an app that echoes.

Each case has a connection of its own, and asserts exactly what comes back: every frame with its first byte, then the
code of the close frame, then the connection's end. A case that violates nothing ends with a close of the client's, so
that what should not have been sent would be found before the answer to it.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from harness import Server
from websocket_wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    HANDSHAKE,
    MASK,
    PING,
    PONG,
    TEXT,
    Frame,
    WebSocketWire,
    frame,
    header,
)
from wire import Answer, Wire

LIMIT = 1 << 20
KILO = 1 << 10


class Case(NamedTuple):
    """What a client sends, write by write, and what it gets.

    :ivar echoes: the frames before the server's close frame
    :ivar code: what is in the close frame
    """

    name: str
    writes: list[bytes]
    echoes: list[Frame]
    code: int = 1000


def end(payload: bytes = b"\x03\xe8") -> bytes:
    """The client's close frame."""
    return frame(CLOSE, payload)


def good(name: str, sent: bytes, *echoes: tuple[int, bytes], chop: int = 0) -> Case:
    """A case that ends with the client's close; ``chop`` is the size of the writes, 0 for one write."""
    sent += end()
    size = chop or len(sent)
    writes = [sent[i : i + size] for i in range(0, len(sent), size)]
    return Case(name, writes, [Frame(0x80 | opcode, payload) for opcode, payload in echoes])


def bad(name: str, sent: bytes, *echoes: tuple[int, bytes], code: int = 1002, chop: int = 0) -> Case:
    """A case that ends with the server's close; what the client sends after it is not looked at."""
    size = chop or len(sent)
    writes = [sent[i : i + size] for i in range(0, len(sent), size)]
    return Case(name, writes, [Frame(0x80 | opcode, payload) for opcode, payload in echoes], code)


def reserved(first: int, payload: bytes = b"") -> bytes:
    """A frame with this first byte."""
    return bytes((first,)) + frame(TEXT, payload)[1:]


def fragmented(opcode: int, *payloads: bytes, final: bool = True) -> bytes:
    """A message in fragments; without ``final`` its end is still to come."""
    last = len(payloads) - 1
    return b"".join(
        frame(CONTINUATION if i else opcode, payload, final=final and i == last) for i, payload in enumerate(payloads)
    )


def cut(payload: bytes, size: int) -> list[bytes]:
    return [payload[i : i + size] for i in range(0, len(payload), size)]


# --- 1 framing


def framing() -> Iterator[tuple[str, list[Case]]]:
    for opcode, kind, letter in ((TEXT, "text", b"*"), (BINARY, "binary", b"\xfe")):
        sizes = [0, 125, 126, 127, 128, 65535, 65536]
        cases = [good(f"{size} bytes", frame(opcode, letter * size), (opcode, letter * size)) for size in sizes]
        cases += [
            good(f"{size} bytes in chops of {chop}", frame(opcode, letter * size), (opcode, letter * size), chop=chop)
            for size, chop in [(0, 1), (125, 1), (126, 1), (130, 2), (130, 3), (130, 7), (65535, 4099), (65536, 997)]
        ]
        yield f"1 framing, {kind}", cases
    lengths = [
        ("125 in two bytes", b"\x82\xfe" + struct.pack("!H", 125)),
        ("0 in two bytes", b"\x82\xfe" + struct.pack("!H", 0)),
        ("0 in eight bytes", b"\x82\xff" + struct.pack("!Q", 0)),
        ("126 in eight bytes", b"\x82\xff" + struct.pack("!Q", 126)),
        ("65,535 in eight bytes", b"\x82\xff" + struct.pack("!Q", 65535)),
        ("the highest bit of eight bytes", b"\x82\xff" + struct.pack("!Q", 1 << 63)),
        ("all bits of eight bytes", b"\x82\xff" + b"\xff" * 8),
        ("a control frame's length in two bytes", b"\x89\xfe" + struct.pack("!H", 5)),
        ("a control frame's length in eight bytes", b"\x89\xff" + struct.pack("!Q", 5)),
    ]
    yield "section 5.2, lengths that are not minimal", [bad(name, sent + MASK + bytes(200)) for name, sent in lengths]
    unmasked = [
        ("text", b"\x81\x05hello"),
        ("empty text", b"\x81\x00"),
        ("binary", b"\x82\x01\x00"),
        ("a long one", header(BINARY, 70_000, masked=False) + bytes(70_000)),
        ("a ping", b"\x89\x00"),
        ("a pong", b"\x8a\x00"),
        ("a close", b"\x88\x02\x03\xe8"),
    ]
    cases = [bad(name, sent) for name, sent in unmasked]
    cases.append(bad("after a masked one", frame(TEXT, b"a") + b"\x81\x01b", (TEXT, b"a")))
    cases.append(bad("the second fragment", frame(TEXT, b"a", final=False) + b"\x80\x01b"))
    cases.append(good("a mask of zeros is a mask", b"\x81\x85\0\0\0\0hello", (TEXT, b"hello")))
    cases.append(good("a mask that makes the payload zeros", b"\x81\x84hell\0\0\0\0", (TEXT, b"hell")))
    yield "section 5.1, frames without a mask", cases


# --- 2 pings and pongs, 3 reserved bits, 4 opcodes


def control() -> Iterator[tuple[str, list[Case]]]:
    binary = bytes(range(0, 250, 2))
    pings = b"".join(frame(PING, b"payload %d" % number) for number in range(10))
    pongs = [(PONG, b"payload %d" % number) for number in range(10)]
    yield (
        "2 pings and pongs",
        [
            good("an empty ping", frame(PING), (PONG, b"")),
            good("a ping with text", frame(PING, b"hello"), (PONG, b"hello")),
            good("a ping that is not UTF-8", frame(PING, b"\0\xff\xfe\xfd"), (PONG, b"\0\xff\xfe\xfd")),
            good("a ping of 125 bytes", frame(PING, binary), (PONG, binary)),
            bad("a ping of 126 bytes", header(PING, 126) + MASK + bytes(126)),
            bad("a pong of 126 bytes", header(PONG, 126) + MASK + bytes(126)),
            good("a ping of 125 bytes, octet by octet", frame(PING, binary), (PONG, binary), chop=1),
            good("an empty pong that nobody asked for", frame(PONG)),
            good("a pong that nobody asked for", frame(PONG, b"unasked")),
            good("a pong that nobody asked for, then a ping", frame(PONG, b"a") + frame(PING, b"b"), (PONG, b"b")),
            good("ten pings", pings, *pongs),
            good("ten pings, octet by octet", pings, *pongs, chop=1),
        ],
    )
    hello = frame(TEXT, b"hello")
    echo = (TEXT, b"hello")
    cases = [
        bad("RSV 1, text", reserved(0x91, b"hello")),
        bad("RSV 2, between others", hello + reserved(0xA1, b"hello") + frame(PING), echo),
        bad("RSV 3, frame by frame", hello + reserved(0xB1, b"hello") + frame(PING), echo, chop=len(hello)),
        bad("RSV 4, octet by octet", hello + reserved(0xC1, b"hello") + frame(PING), echo, chop=1),
        bad("RSV 5, binary", reserved(0xD2, bytes(8))),
        bad("RSV 6, ping", reserved(0xE9, b"hello")),
        bad("RSV 7, close", reserved(0xF8, b"\x03\xe8")),
        bad("RSV 4 in a continuation", frame(TEXT, b"a", final=False) + reserved(0xC0, b"b")),
    ]
    yield "3 reserved bits", cases
    cases = []
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        cases += [
            bad(f"opcode {opcode}", reserved(0x80 | opcode)),
            bad(f"opcode {opcode} with a payload", reserved(0x80 | opcode, b"reserved")),
            bad(f"opcode {opcode} between others", hello + reserved(0x80 | opcode) + frame(PING), echo),
            bad(f"opcode {opcode}, octet by octet", hello + reserved(0x80 | opcode, b"a") + frame(PING), echo, chop=1),
            bad(f"opcode {opcode}, not final", reserved(opcode)),
        ]
    yield "4 reserved opcodes", cases


# --- 5 fragmentation


def fragmentation() -> Iterator[tuple[str, list[Case]]]:
    two = fragmented(TEXT, b"fragment1", b"fragment2")
    both = (TEXT, b"fragment1fragment2")
    between = frame(TEXT, b"fragment1", final=False) + frame(PING, b"ping") + frame(CONTINUATION, b"fragment2")
    orphan = frame(CONTINUATION, b"nothing to continue")
    open_orphan = frame(CONTINUATION, b"nothing to continue", final=False)
    hello = frame(TEXT, b"hello")
    five = (
        fragmented(TEXT, b"1", b"2", final=False)
        + frame(PING, b"first")
        + frame(CONTINUATION, b"3", final=False)
        + frame(CONTINUATION, b"4", final=False)
        + frame(PING, b"second")
        + frame(CONTINUATION, b"5")
    )
    echoes = ((PONG, b"first"), (PONG, b"second"), (TEXT, b"12345"))
    cases = [
        bad("a ping in two fragments", fragmented(PING, b"a", b"b")),
        bad("a pong in two fragments", fragmented(PONG, b"a", b"b")),
        bad("a close in two fragments", fragmented(CLOSE, b"\x03", b"\xe8")),
        good("two fragments", two, both),
        good("two fragments, one by one", two, both, chop=15),
        good("two fragments, octet by octet", two, both, chop=1),
        good("a ping between fragments", between, (PONG, b"ping"), both),
        good("a ping between fragments, octet by octet", between, (PONG, b"ping"), both, chop=1),
        good("a pong between fragments", between.replace(frame(PING, b"ping"), frame(PONG, b"ping")), both),
        good("five fragments and two pings", five, *echoes),
        good("five fragments and two pings, octet by octet", five, *echoes, chop=1),
        good("three empty fragments", fragmented(TEXT, b"", b"", b""), (TEXT, b"")),
        good("empty fragments around one", fragmented(BINARY, b"", b"a", b""), (BINARY, b"a")),
        good("a thousand fragments", fragmented(BINARY, *[b"a"] * 1000), (BINARY, b"a" * 1000)),
        good("two messages of two fragments", two + two, both, both),
    ]
    for name, sent in (("a final continuation", orphan), ("a continuation that is not final", open_orphan)):
        cases += [
            bad(f"{name} of nothing", sent + hello),
            bad(f"{name} of nothing, octet by octet", sent + hello, chop=1),
            bad(f"{name} of nothing, after a message", hello + sent, (TEXT, b"hello")),
            bad(f"{name} of nothing, after fragments", two + sent + hello, both),
            bad(f"{name} of nothing, twice", (sent + hello) * 2),
        ]
    cases += [
        bad("text in the middle of text", frame(TEXT, b"a", final=False) + frame(TEXT, b"b")),
        bad("binary in the middle of text", frame(TEXT, b"a", final=False) + frame(BINARY, b"b")),
        bad("text in the middle of binary", frame(BINARY, b"a", final=False) + frame(TEXT, b"b", final=False)),
        bad("text after an empty fragment", frame(TEXT, b"", final=False) + frame(TEXT, b"b")),
        bad(
            "text in the middle, after a ping",
            frame(TEXT, b"a", final=False) + frame(PING, b"p") + frame(TEXT, b"b"),
            (PONG, b"p"),
        ),
    ]
    yield "5 fragmentation", cases


# --- 6 UTF-8

# The Greek word that the suite uses, with a character of three bytes in it.
KOSME = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"
VALID = {
    "6.2 text in many alphabets": [
        "Hello-µ@ßöäüàá-UTF-8!!".encode(),
        KOSME,
        "\N{GRINNING FACE}\N{CJK UNIFIED IDEOGRAPH-20000}".encode(),
        b"\0\x7f",
    ],
    "6.5, 6.6 prefixes that end with a character": [KOSME[:2], KOSME[:5], KOSME[:7], KOSME[:9]],
    "6.7 the first sequence of each length": [b"\0", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"],
    "6.9 the last sequence of each length": [b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"],
    "6.11 around the gaps": [b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"],
    "6.22 noncharacters": [
        chr(plane << 16 | low).encode() for plane, low in itertools.product(range(17), (0xFFFE, 0xFFFF))
    ],
    "6.22 more noncharacters": [chr(code).encode() for code in range(0xFDD0, 0xFDF0)],
    "6.23 specials": [chr(code).encode() for code in range(0xFFF9, 0x10000)],
}
INVALID = {
    "6.3 an edited message": [KOSME + b"\xed\xa0\x80edited"],
    "6.6 prefixes that end in a character": [KOSME[:n] for n in (1, 3, 4, 6, 8, 10)],
    "6.8 first sequences of five and six bytes": [b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"],
    "6.10 last sequences beyond Unicode": [
        b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf", b"\xf4\x90\x80\x80",
    ],
    "6.12 continuation bytes alone": [
        *(b"\x80\xbf\x80\xbf\x80\xbf\x80"[:n] for n in range(1, 8)), b"\xbf", bytes(range(0x80, 0xC0)),
    ],
    "6.13 start bytes alone": [
        *(bytes((byte, 0x20)) for byte in range(0xC0, 0x100)),
        b"".join(bytes((byte, 0x20)) for byte in range(0xC0, 0xE0)),
    ],
    "6.14 the last byte missing": [
        b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80",
        b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf",
    ],
    "6.15 all of these in a row": [
        b"\xc0\xe0\x80\xf0\x80\x80\xf8\x80\x80\x80\xfc\x80\x80\x80\x80\xdf\xef\xbf\xf7\xbf\xbf\xfb\xbf\xbf\xbf",
    ],
    "6.16 bytes that never occur": [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff", b"\xc0", b"\xc1", b"\xf5"],
    "6.17 a slash in too many bytes": [
        b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf",
    ],
    "6.18 the last characters in too many bytes": [
        b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf",
    ],
    "6.19 NUL in too many bytes": [
        b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80",
    ],
    "6.20 surrogates": [
        b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf", b"\xed\xb0\x80", b"\xed\xbe\x80",
        b"\xed\xbf\xbf",
    ],
    "6.21 surrogates in pairs": [
        first + second
        for first in (b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf")
        for second in (b"\xed\xb0\x80", b"\xed\xbf\xbf")
    ],
}  # fmt: skip


def utf8() -> Iterator[tuple[str, list[Case]]]:
    for title, texts in VALID.items():
        cases = []
        for text in texts:
            cases.append(good(f"{text!r}", frame(TEXT, text), (TEXT, text)))
            cases.append(good(f"{text!r} in fragments of a byte", fragmented(TEXT, *cut(text, 1)), (TEXT, text)))
        yield title, cases
    for title, texts in INVALID.items():
        cases = []
        for text in texts:
            cases.append(bad(f"{text!r}", frame(TEXT, text), code=1007))
            cases.append(bad(f"{text!r} in fragments of a byte", fragmented(TEXT, *cut(text, 1)), code=1007))
            cases.append(good(f"{text!r} in binary", frame(BINARY, text), (BINARY, text)))
        yield title, cases
    yield (
        "6.1 empty text",
        [
            good("one frame", frame(TEXT), (TEXT, b"")),
            good("three fragments", fragmented(TEXT, b"", b"", b""), (TEXT, b"")),
            good("three fragments, one with text", fragmented(TEXT, b"", b"middle", b""), (TEXT, b"middle")),
        ],
    )
    splits = [fragmented(TEXT, KOSME[:n], KOSME[n:]) for n in range(len(KOSME) + 1)]
    yield "6.2 a character over two fragments", [good(f"{n}", sent, (TEXT, KOSME)) for n, sent in enumerate(splits)]
    wrong = b"\xf4\x90\x80\x80"
    yield (
        "6.4 invalid at the fragment, not at the message's end",
        [
            bad("a whole character", fragmented(TEXT, KOSME, wrong, final=False), code=1007),
            bad("a part of one", fragmented(TEXT, KOSME + wrong[:1], wrong[1:], final=False), code=1007),
            bad("the first fragment", fragmented(TEXT, wrong, final=False), code=1007),
            bad("a continuation that is none", fragmented(TEXT, b"\xc3", b"\x28", final=False), code=1007),
            bad("an empty fragment in between", fragmented(TEXT, b"\xce", b"", b"\xce", final=False), code=1007),
        ],
    )


# --- 7 the closing handshake


def closing() -> Iterator[tuple[str, list[Case]]]:
    hello = frame(TEXT, b"hello")
    big = b"*" * (256 * KILO)
    yield (
        "7.1 after a close",
        [
            bad("a message, then a close", hello + end(), (TEXT, b"hello"), code=1000),
            bad("two closes", end() + end(), code=1000),
            bad("two closes of different codes", end() + end(b"\x03\xe9"), code=1000),
            bad("a ping after a close", end() + frame(PING), code=1000),
            bad("a message after a close", end() + hello, code=1000),
            bad("a violation after a close", end() + b"\x81\x00", code=1000),
            bad("a close between fragments", frame(TEXT, b"a", final=False) + end() + frame(CONTINUATION), code=1000),
            bad("a close behind 256 KiB", frame(TEXT, big) + end() + frame(PING), (TEXT, big), code=1000),
            bad("a close, octet by octet", end(b"\x03\xe8bye"), code=1000, chop=1),
        ],
    )
    yield (
        "7.3 payloads",
        [
            bad("none", end(b""), code=1000),
            bad("one byte", end(b"\x03")),
            bad("a code", end(b"\x03\xe8"), code=1000),
            bad("a code and a reason", end(b"\x03\xe8Hello World!"), code=1000),
            bad("a reason of 123 bytes", end(b"\x03\xe8" + b"*" * 123), code=1000),
            bad("a reason of 124 bytes", header(CLOSE, 126) + MASK + bytes(126)),
            bad("a reason beyond ASCII", end(b"\x03\xe8" + KOSME), code=1000),
        ],
    )
    wrong = [b"\xff", KOSME + b"\xed\xa0\x80", KOSME[:-1], b"\xc0\xaf"]
    yield (
        "7.5 reasons that are not UTF-8",
        [bad(f"{reason!r}", end(b"\x03\xe8" + reason), code=1007) for reason in wrong],
    )
    allowed = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
    yield "7.7 codes that are valid", [bad(f"{code}", end(struct.pack("!H", code)), code=code) for code in allowed]
    refused = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 32768, 65535]
    yield "7.9, 7.13 codes that are not", [bad(f"{code}", end(struct.pack("!H", code))) for code in refused]


# --- 9 limits, 10 automatic fragmentation


def limits() -> Iterator[tuple[str, list[Case]]]:
    for opcode, kind in ((TEXT, "text"), (BINARY, "binary")):
        cases = []
        for size in (64 * KILO, 256 * KILO, LIMIT):
            payload = b"*" * size
            cases.append(good(f"{size} bytes", frame(opcode, payload), (opcode, payload)))
        payload = b"*" * (128 * KILO)
        for size in (64, 256, KILO, 4 * KILO, 16 * KILO, 64 * KILO):
            sent = fragmented(opcode, *cut(payload, size))
            cases.append(good(f"128 KiB in fragments of {size}", sent, (opcode, payload)))
        for size in (64, 128, 256, 512, KILO, 2 * KILO):
            cases.append(good(f"128 KiB in chops of {size}", frame(opcode, payload), (opcode, payload), chop=size))
        yield f"9 sizes, {kind}", cases
        too_big = [LIMIT + 1, 4 * LIMIT, 8 * LIMIT, 16 * LIMIT, 1 << 32, (1 << 63) - 1]
        cases = [bad(f"{size} bytes, only announced", header(opcode, size), code=1009) for size in too_big]
        cases.append(bad("sent nevertheless", frame(opcode, b"*" * (LIMIT + 1)), code=1009))
        half = b"*" * (LIMIT // 2)
        cases.append(bad("three halves", fragmented(opcode, half, half, half), code=1009))
        cases.append(bad("one byte behind all", fragmented(opcode, half, half, b"*"), code=1009))
        cases.append(good("nothing behind all", fragmented(opcode, half, half, b""), (opcode, half + half)))
        yield f"9 beyond the limit, {kind}", cases
    cases = []
    for size in (0, 16, 64, 256, KILO):
        sent = frame(BINARY, b"*" * size)
        cases.append(good(f"200 of {size} bytes", sent * 200, *[(BINARY, b"*" * size)] * 200))
    yield "9.7 many messages", cases
    payload = b"*" * 65536
    sent = fragmented(TEXT, *cut(payload, 1300))
    yield "10 automatic fragmentation", [good("64 KiB by 1300 bytes", sent, (TEXT, payload))]


SECTIONS = dict(itertools.chain(framing(), control(), fragmentation(), utf8(), closing(), limits()))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker with an app that echoes."""
    with Server("echo_websocket:app", workers=1, env={"STICKY_SESSION_MESSAGE_BYTES": str(LIMIT)}) as server:
        yield server


def play(server: Server, case: Case) -> tuple[list[Frame], bytes, bool]:
    """Send a case: the frames that come before the server's close frame, its payload, and whether it was the end."""
    echoes = []
    with WebSocketWire(server.port) as wire:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for data in case.writes:
            wire.write(data)
        while (last := wire.frame()).opcode != CLOSE:
            echoes.append(last)
        # The server may have closed already, if it was the client that began.
        with contextlib.suppress(ConnectionError):
            wire.write(frame(CLOSE, last.payload))
            return echoes, last.payload, wire.ended()
        return echoes, last.payload, True


@pytest.mark.parametrize("section", SECTIONS)
def test_conformance(server: Server, section: str) -> None:
    """What comes back is what RFC 6455 asks for, frame by frame."""
    mark = server.mark()
    wrong = []
    for case in SECTIONS[section]:
        try:
            echoes, payload, ended = play(server, case)
        except (TimeoutError, AssertionError) as error:
            wrong.append(f"{case.name}: {error!r}; expected {case.code}")
            continue
        if (echoes, payload, ended) != (case.echoes, struct.pack("!H", case.code), True):
            wrong.append(f"{case.name}: {str(echoes)[:200]}, then {payload!r}, ended: {ended}; expected {case.code}")
    assert not wrong, "\n".join(wrong)
    assert not server.find("Traceback|Error handling", after=mark)


def test_sections() -> None:
    """Each section is there, and no two cases of one have the same name."""
    assert {int(title.split()[0].partition(".")[0].rstrip(",")) for title in SECTIONS if title[0].isdigit()} == {
        1, 2, 3, 4, 5, 6, 7, 9, 10,
    }  # fmt: skip
    for title, cases in SECTIONS.items():
        assert len({case.name for case in cases}) == len(cases), title


# --- the opening handshake

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def handshake(*changed: str, line: str = "GET /env HTTP/1.1") -> list[str]:
    """A handshake with some of its fields in another way; one with ``!`` is left out."""
    names = {field.partition(":")[0].rstrip("!").lower() for field in changed}
    kept = [field for field in HANDSHAKE if field.partition(":")[0].lower() not in names]
    return [line, *kept, *(field for field in changed if not field.endswith("!"))]


ACCEPTED = {
    "the RFC's own example": handshake(),
    "Upgrade in other case": handshake("Upgrade: WebSocket"),
    "Connection in other case": handshake("Connection: UPGRADE"),
    "Connection with other options": handshake("Connection: keep-alive, Upgrade"),
    "Connection twice": handshake("Connection: keep-alive", "Connection: Upgrade"),
    "names in small letters": [re.sub("^[^ ]+:", lambda name: name[0].lower(), line) for line in handshake()],
    "an Origin": handshake("Origin: http://example.org"),
    "a query": handshake(line="GET /echo?a=b HTTP/1.1"),
    "a target in absolute form": handshake(line="GET http://test/echo HTTP/1.1"),
    "a length of 0": handshake("Content-Length: 0"),
    "a higher minor version": handshake(line="GET /echo HTTP/1.2"),
    "subprotocols, of which none is chosen": handshake("Sec-WebSocket-Protocol: chat, superchat"),
    "an extension that is declined": handshake("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
    "an unknown extension": handshake("Sec-WebSocket-Extensions: x-unknown; a=b"),
    "unknown fields": handshake("X-A: b"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_opening(server: Server, name: str) -> None:
    """Sections 4.2.1 and 4.2.2: what is accepted, and the fields of the answer, with nothing that was not agreed on."""
    first, *fields = ACCEPTED[name]
    with Wire(server.port) as wire:
        wire.send(first.replace("/env", "/echo"), *fields, body=frame(TEXT, b"early"))
        answer = wire.answer()
        assert answer.status == 101
        assert {key.lower(): value for key, value in answer.headers} == {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-accept": ACCEPT,
        }
        assert wire.file.read(7) == b"\x81\x05early"


REFUSED = {
    "no key": (400, handshake("Sec-WebSocket-Key!")),
    "an empty key": (400, handshake("Sec-WebSocket-Key:")),
    "a key of 15 bytes": (400, handshake("Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1")),
    "a key of 17 bytes": (400, handshake("Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Njc=")),
    "a key without its padding": (400, handshake("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ")),
    "a key in the alphabet of URLs": (400, handshake("Sec-WebSocket-Key: __________________-__A==")),
    "a key that is no base64": (400, handshake("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==")),
    "two keys": (400, handshake(KEY, KEY)),
    "no Host": (400, handshake("Host!")),
    "no version": (426, handshake("Sec-WebSocket-Version!")),
    "an empty version": (426, handshake("Sec-WebSocket-Version:")),
    "version 8": (426, handshake("Sec-WebSocket-Version: 8")),
    "version 0": (426, handshake("Sec-WebSocket-Version: 0")),
    "version 14": (426, handshake("Sec-WebSocket-Version: 14")),
    "version 013": (426, handshake("Sec-WebSocket-Version: 013")),
    "two versions": (426, handshake("Sec-WebSocket-Version: 13, 8")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_opening_refused(server: Server, name: str) -> None:
    """Section 4.2.2: 400 for what is malformed, 426 for another version, with the one that is spoken."""
    status, lines = REFUSED[name]
    answer = ask(server, lines)
    assert answer.status == status
    assert answer["Sec-WebSocket-Version"] == ("13" if status == 426 else None)
    assert answer["Upgrade"] == ("websocket" if status == 426 else None)
    assert answer.closes
    assert answer["Sec-WebSocket-Accept"] is None


PLAIN = {
    "POST": handshake(line="POST /env HTTP/1.1"),
    "OPTIONS": handshake(line="OPTIONS /env HTTP/1.1"),
    "HTTP/1.0": handshake(line="GET /env HTTP/1.0"),
    "no Upgrade": handshake("Upgrade!"),
    "another protocol": handshake("Upgrade: h2c"),
    "no Connection": handshake("Connection!"),
    "Connection without Upgrade": handshake("Connection: keep-alive"),
    "a word that begins with upgrade": handshake("Connection: upgraded"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_no_opening(server: Server, name: str) -> None:
    """What asks for no WebSocket by section 4.2.1 is a request like any other (RFC 9110 section 7.8)."""
    answer = ask(server, PLAIN[name])
    assert answer.status == 200
    assert "wsgi.websocket_version" not in answer.json()


def ask(server: Server, lines: list[str]) -> Answer:
    with Wire(server.port) as wire:
        wire.send(*lines)
        return wire.answer()
