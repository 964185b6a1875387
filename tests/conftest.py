"""For every test: the logs of the servers it started are part of its report, and no process outlives it."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from harness import STARTED, adopt_orphans, command_line, descendants, kill_all, reap_orphans


def pytest_configure() -> None:
    adopt_orphans()


@pytest.fixture(autouse=True)
def _nothing_left() -> Generator[None, None, None]:
    """No process that a test started, directly or not, outlives it."""
    STARTED[:] = [process for process in STARTED if not process.closed]
    before = set(descendants(os.getpid()))
    yield
    left = {pid: command_line(pid) for pid in descendants(os.getpid()) if pid not in before}
    kill_all(left)
    reap_orphans()
    assert not left, f"the test left processes behind: {left}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log of every server of a failed test."""
    report = yield
    if report.failed:
        for process in STARTED:
            report.sections.append((f"log of {' '.join(process.command)}", process.log))
    return report
