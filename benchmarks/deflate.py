"""What permessage-deflate would cost a worker: ``python benchmarks/deflate.py``.

The messages are 4 KiB of JSON each, with words of the README. CPU time is the best of several rounds; memory is that of
the process. What a message without compression costs is the frame's header to send it, and the mask and UTF-8 to
receive it.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sticky_session.websocket import frame_header, unmask

MESSAGES = 500
MESSAGE_BYTES = 4096
ROUNDS = 5
CONNECTIONS = 300
LEVEL = 6
WINDOW_BITS = 15
# What ends every compressed message, and is not sent (RFC 7692 section 7.2.1).
TAIL = b"\0\0\xff\xff"
MASK = b"\x12\x34\xab\xcd"
WORDS = re.findall(r"[A-Za-z]+", Path(__file__).resolve().parent.parent.joinpath("README.md").read_text())


def make_message(draw: random.Random) -> bytes:
    """An event as a chat sends it: names and numbers in JSON, and what people say."""
    items = []
    while len(text := json.dumps(["history", items])) < MESSAGE_BYTES:
        words = " ".join(draw.choices(WORDS, k=12))
        items.append(
            {"id": draw.getrandbits(32), "user": draw.choice(WORDS), "text": words, "at": draw.getrandbits(31)}
        )
    return text[:MESSAGE_BYTES].encode()


def compressor() -> zlib._Compress:
    return zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS)


def compress(messages: list[bytes], *, keep_window: bool) -> list[bytes]:
    """The messages as they would be sent; ``keep_window`` is what the RFC calls context takeover."""
    compressed = []
    context = compressor()
    for message in messages:
        if not keep_window:
            context = compressor()
        data = context.compress(message) + context.flush(zlib.Z_SYNC_FLUSH)
        compressed.append(data.removesuffix(TAIL))
    return compressed


def decompress(compressed: list[bytes]) -> None:
    context = zlib.decompressobj(-WINDOW_BITS)
    for data in compressed:
        context.decompress(data + TAIL)


def microseconds(work: Callable[[], object]) -> float:
    """CPU time for each message."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best / MESSAGES * 1e6


def resident_kib() -> int:
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(found.split()[1])


def context_kib(messages: list[bytes]) -> float:
    """Memory of a connection's two contexts, once they are in use."""
    before = resident_kib()
    kept = []
    for _ in range(CONNECTIONS):
        context, other = compressor(), zlib.decompressobj(-WINDOW_BITS)
        for message in messages:
            other.decompress(context.compress(message) + context.flush(zlib.Z_SYNC_FLUSH))
        kept.append((context, other))
    return (resident_kib() - before) / len(kept)


def main() -> None:
    draw = random.Random(1)  # noqa: S311  (the same messages in every run)
    messages = [make_message(draw) for _ in range(MESSAGES)]
    kib = context_kib(messages[:20])
    masked = [unmask(message, MASK) for message in messages]
    print(
        f"a message of {MESSAGE_BYTES} bytes, CPU time (process_time), zlib {zlib.ZLIB_RUNTIME_VERSION} level {LEVEL}"
    )
    plain_out = microseconds(lambda: [frame_header(1, len(message)) + message for message in messages])
    plain_in = microseconds(lambda: [unmask(message, MASK).decode() for message in masked])
    print(f"not compressed              out {plain_out:6.1f} us   in {plain_in:6.1f} us")
    for name, keep_window in (("a new window each", False), ("one window for all", True)):
        compressed = compress(messages, keep_window=keep_window)
        share = sum(map(len, compressed)) / sum(map(len, messages))
        out = microseconds(lambda keep_window=keep_window: compress(messages, keep_window=keep_window))
        print(f"compressed, {name:18}  out {out:6.1f} us   {share:.0%} of the bytes")
    print(f"decompressed                                 in {microseconds(lambda: decompress(compressed)):6.1f} us")
    print(f"memory of a connection's contexts: {kib:.0f} KiB")


if __name__ == "__main__":
    main()
