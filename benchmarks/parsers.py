"""Our parser of request heads beside llhttp, Node's, by httptools: how long each takes, and what each refuses.

    pip install -e '.[bench]'
    python benchmarks/parsers.py

Times are the least of many short rounds in turns, which is what other processes disturb least, and begin with the bytes
that recv(2) brings. "Fields" is a list of names and values, the least that any server needs; "Head" has the WSGI
environ's share of them and how the body ends, which is what our parser makes. With httptools that is made of its
callbacks, without any of the rules that llhttp lacks, so a server would take longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httptools

from sticky_session.request import BadRequest, Head, Limits, parse

ROUNDS = 200
ROUND_HEADS = 300

LIMITS = Limits(4094, 100, 8190)

SMALL = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n"
# What Chromium sends for one of Socket.IO's polls.
BROWSER = b"\r\n".join(
    [
        b"GET /socket.io/?EIO=4&transport=polling&t=PJ2x1b7q&sid=8Qz0Tt3UeXJr7cW1AAAB HTTP/1.1",
        b"Host: chat.example.com",
        b"Connection: keep-alive",
        b'sec-ch-ua: "Chromium";v="139", "Not;A=Brand";v="99"',
        b"sec-ch-ua-mobile: ?0",
        b'sec-ch-ua-platform: "Linux"',
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        b"Chrome/139.0.0.0 Safari/537.36",
        b"Accept: */*",
        b"Sec-Fetch-Site: same-origin",
        b"Sec-Fetch-Mode: cors",
        b"Sec-Fetch-Dest: empty",
        b"Referer: https://chat.example.com/",
        b"Accept-Encoding: gzip, deflate, br, zstd",
        b"Accept-Language: en-US,en;q=0.9,de;q=0.8",
        b"Cookie: session=eyJ1c2VyIjoiYWxpY2UifQ.Zx1c2A.9mWk0fQk2uVw3k1o; theme=dark",
        b"",
        b"",
    ]
)

# What RFC 9110 and 9112 forbid, or let a server refuse, because somebody else may read it in another way; and limits.
RULES: dict[str, bytes] = {
    "HTTP/1.1 without Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Host fields": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "Host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a user name in the target": b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "Content-Length and Transfer-Encoding": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "two Content-Length fields": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "Content-Length: +5": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
    "a transfer coding that is not chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "Transfer-Encoding with HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an unknown expectation": b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
    "a folded line": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "a bare LF": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n",
    "a bare CR in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
    "an escape in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x1bc\r\n\r\n",
    "a control character in the target": b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces in the request line": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2.0 in the request line": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "101 fields": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 100 + b"\r\n",
    "a field of 9 KiB": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9216 + b"\r\n\r\n",
}
# What is to be served.
LAWFUL: dict[str, bytes] = {
    "a method that is not registered": b"FROBNICATE / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an upgrade that the app may ignore": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
    ),
    "a target with bytes beyond ASCII": b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "two requests in one piece": SMALL + SMALL,
}


def ours(data: bytes) -> Head:
    """A head, from the bytes of a piece that it begins and ends in."""
    return parse(str(data[: data.index(b"\r\n\r\n")], "latin-1"), LIMITS)


class Fields:
    """Takes httptools' callbacks, and keeps what they bring."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def their_fields(data: bytes) -> Fields:
    """What llhttp finds in a piece."""
    fields = Fields()
    httptools.HttpRequestParser(fields).feed_data(data)
    return fields


_KEYS: dict[bytes, str] = {}


def their_head(data: bytes) -> Head:
    """The same as ours, by llhttp, but for the rules that llhttp lacks."""
    taken = Fields()
    parser = httptools.HttpRequestParser(taken)
    parser.feed_data(data)
    environ: dict[str, str] = {}
    for name, value in taken.fields:
        key = _KEYS.get(name)
        if key is None:
            key = str(name, "latin-1").upper().replace("-", "_")
            key = _KEYS[name] = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key
        said = str(value, "latin-1")
        if key in environ:
            environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + said
        else:
            environ[key] = said
    target = str(taken.target, "latin-1")
    path, _, query = target.partition("?")
    length = environ.get("CONTENT_LENGTH")
    return Head(
        str(parser.get_method(), "latin-1"),
        target,
        "",
        path,
        query,
        "HTTP/" + parser.get_http_version(),
        "",
        environ,
        None if length is None else int(length),
        "HTTP_TRANSFER_ENCODING" in environ,
        parser.should_keep_alive(),
        "HTTP_EXPECT" in environ,
    )


def microseconds(work: Callable[[bytes], Any], data: bytes) -> float:
    """How long it takes for each head, in a round."""
    begin = time.perf_counter()
    for _ in range(ROUND_HEADS):
        work(data)
    return (time.perf_counter() - begin) / ROUND_HEADS * 1e6


def our_answer(data: bytes) -> str:
    """What we do with a head."""
    try:
        ours(data)
    except BadRequest as error:
        return str(error.status)
    return "served"


def their_answer(data: bytes) -> str:
    """What llhttp does with it."""
    try:
        their_fields(data)
    except httptools.HttpParserUpgrade:
        return "stops"
    except httptools.HttpParserError:
        return "refused"
    return "served"


def main() -> None:
    """Measure, compare, and print tables."""
    for data in (SMALL, BROWSER):
        our, their = ours(data), their_head(data)
        if replace(our, text="") != their:
            raise SystemExit(f"they differ: {our}\n{their}")
    works = {"ours, Head": ours, "httptools, fields": their_fields, "httptools, Head": their_head}
    print(f"httptools {httptools.__version__}\n")
    print("| µs for each head |", " | ".join(works), "|")
    print("| --- |", " | ".join("---:" for _ in works), "|")
    for name, data in {"2 lines": SMALL, "a browser's, 15 lines": BROWSER}.items():
        times: dict[str, list[float]] = {work: [] for work in works}
        for _ in range(ROUNDS):
            for work, function in works.items():
                times[work].append(microseconds(function, data))
        print(f"| {name} |", " | ".join(f"{min(each):.2f}" for each in times.values()), "|")
    print("\n| to be refused | ours | llhttp |\n| --- | --- | --- |")
    for name, data in RULES.items():
        print(f"| {name} | {our_answer(data)} | {their_answer(data)} |")
    print("\n| to be served | ours | llhttp |\n| --- | --- | --- |")
    for name, data in LAWFUL.items():
        print(f"| {name} | {our_answer(data)} | {their_answer(data)} |")


if __name__ == "__main__":
    main()
