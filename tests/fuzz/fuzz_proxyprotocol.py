"""Fuzz the PROXY protocol: ``python tests/fuzz/fuzz_proxyprotocol.py -dict=tests/fuzz/proxyprotocol.dict``.

The options are libFuzzer's (https://llvm.org/docs/LibFuzzer.html); without ``-runs`` it runs until it finds something.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["sticky_session"]):
    from properties import check_proxy

MODES = ("auto", "v1", "v2", "off")


def check(data: bytes) -> None:
    # The first byte says the mode.
    mode, rest = data[:1], data[1:]
    check_proxy(rest, range(len(rest)), MODES[mode[0] % 4] if mode else "auto")


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
