"""The pure readers of what anybody may send, fuzzed with coverage as the guide, for a few seconds each."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="atheris is published for x86-64 only; setup.cfg has the same condition"
)
@pytest.mark.parametrize(("target", "runs"), [("head", 20_000), ("forwarded", 20_000), ("proxyprotocol", 15_000)])
def test_fuzz(target: str, runs: int, tmp_path: Path) -> None:
    """The properties hold for what the fuzzer makes of its dictionary; what breaks one is shown."""
    finished = subprocess.run(
        [
            sys.executable,
            FUZZ / f"fuzz_{target}.py",
            f"-dict={FUZZ / target}.dict",
            f"-runs={runs}",
            # The same runs each time: what fails here fails for everybody.
            "-seed=1",
            "-max_len=512",
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        cwd=FUZZ.parent.parent,
        env={"PYTHONPATH": str(FUZZ.parent.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    found = [path.read_bytes() for path in tmp_path.iterdir()]
    assert finished.returncode == 0, f"{found}\n{finished.stdout}\n{finished.stderr}"
    assert f"Done {runs} runs" in finished.stderr
