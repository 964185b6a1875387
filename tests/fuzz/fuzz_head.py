"""Fuzz the reader of heads: ``python tests/fuzz/fuzz_head.py -dict=tests/fuzz/head.dict -runs=1000000``.

The options are libFuzzer's (https://llvm.org/docs/LibFuzzer.html); without ``-runs`` it runs until it finds something.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["sticky_session"]):
    from properties import check_head


def check(data: bytes) -> None:
    # The first bytes say where the others are cut, the limit, and the header.
    cuts, limit, forwarded, rest = data[:6], data[6:7], data[7:8], data[8:]
    check_head(
        rest,
        [*cuts, len(rest) - 1, len(rest) - 2],
        limit=limit[0] + 1 if limit and limit[0] % 4 == 0 else 1 << 16,
        name="Forwarded" if forwarded and forwarded[0] % 4 == 0 else "X-Forwarded-For",
    )


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
