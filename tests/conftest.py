"""For every test: the logs of the servers it started are part of its report, and no process outlives it."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from harness import (
    STARTED,
    adopt_orphans,
    alive,
    childless,
    command_line,
    descendants,
    kill_all,
    make_certificate,
    reap_orphans,
)

pytest.register_assert_rewrite("behind_proxies", "node_clients")


def pytest_configure() -> None:
    adopt_orphans()
    # A machine that is slow for a moment is no failure; and what is found is written down as a test, not remembered.
    hypothesis.settings.register_profile("tests", deadline=None, database=None)
    hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _nothing_left() -> Generator[None, None, None]:
    """No process that a test started, directly or not, outlives it; servers that tests share may replace theirs."""
    STARTED[:] = [process for process in STARTED if not process.closed]
    shared = list(STARTED)
    before: set[int] = set() if childless() else set(descendants(os.getpid()))
    yield
    # To look at all processes would take longer than most tests do.
    if childless():
        return
    found = descendants(os.getpid())
    # Looked for after that: a server may start a worker between the two.
    before.update(pid for process in shared for pid in process.family())
    left = {pid: command_line(pid) for pid in found if pid not in before and alive(pid)}
    kill_all(left)
    reap_orphans()
    assert not left, f"the test left processes behind: {left}"


@pytest.fixture
def _no_collection() -> Generator[None, None, None]:
    """While a test counts its own descriptors the garbage collector closes none that other tests have left."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log of every server of a failed test."""
    report = yield
    if report.failed:
        for process in STARTED:
            report.sections.append((f"log of {' '.join(process.command)}", process.log))
    return report
