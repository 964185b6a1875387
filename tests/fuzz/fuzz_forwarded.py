"""Fuzz the parsing of forwarding headers: ``python tests/fuzz/fuzz_forwarded.py -dict=tests/fuzz/forwarded.dict``.

The options are libFuzzer's (https://llvm.org/docs/LibFuzzer.html); without ``-runs`` it runs until it finds something.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["sticky_session"]):
    from properties import check_values


def check(data: bytes) -> None:
    # As many values as lines.
    check_values(data.decode("latin-1").split("\n") if data else [])


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
