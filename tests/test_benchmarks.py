"""The benchmarks' report: what it says of measurements that are made up."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import pytest

import charts
import install
import plots
import report
import rounds
import run
from goals import goals
from measure import MeasureError, Memory, Moves, Sample
from results import Results
from workloads import (
    ECHO_4K,
    IDLE,
    KEPT_ALIVE,
    KERNEL,
    MOVING,
    NEW,
    NGINX_KEEPALIVE,
    OURS,
    PACED,
    PEEKED,
    PLAIN,
    POLLING,
    SIMPLE,
    STAYING,
    WORKLOADS,
    crowds,
)

SAMPLE = Sample(
    requests_per_second=1000.0,
    server_us=100.0,
    router_us=10.0,
    client_us=40.0,
    client_cores=0.5,
    server_cores=1.4,
    p50_ms=1.0,
    p99_ms=2.0,
    p999_ms=3.0,
    repeats=100,
    moved=0,
    lost=0,
    errors=0,
    others_cores=0.01,
)


def results(without: tuple[str, ...] = ()) -> Results:
    """Measurements where all servers are equal."""
    made_up = Results(workers=2, seconds=1)
    for workload in WORKLOADS:
        for server in workload.servers:
            if server not in without:
                made_up.samples[workload.name, server] = [SAMPLE] * 3
        for server in workload.grown:
            for number in (1, 2, 4) if server not in without else ():
                made_up.by_workers[workload.name, server, number] = [SAMPLE]
            for number in crowds(workload, server, (100, 10_000)) if server not in without else ():
                made_up.by_clients[workload.name, server, number] = [SAMPLE]
    for paced in PACED:
        made_up.rates[paced.workload.name] = 700
        for server in paced.servers:
            if server not in without:
                made_up.paced[paced.workload.name, server] = [SAMPLE]
    for proxied in (STAYING, PEEKED, MOVING):
        for header in ("header", "no header"):
            made_up.proxied[proxied.name, header] = [SAMPLE]
    made_up.moves = Moves(100, 1.0, 0, 0, [5, 5], [5, 5], [10, 10], [10, 10])
    for kind in IDLE:
        for server in kind.servers:
            for part in ("workers", "routers"):
                made_up.memory[kind.name, server, part] = [Memory(1000, 2000 if part == "workers" else 1000, 100)]
        for server in (OURS, PLAIN):
            made_up.memory_by_clients[kind.name, server, 100] = [Memory(1000, 3000, 100)]
    return made_up


def met(made_up: Results) -> dict[str, bool]:
    """Which goals are met."""
    return {goal.name: goal.met for goal in goals(made_up)}


@pytest.mark.parametrize(
    ("workload", "other", "limit"),
    [
        (NEW, PLAIN, 1.6),
        (NEW, NGINX_KEEPALIVE, 1.0),
        (KEPT_ALIVE, PLAIN, 2.0),
        (POLLING, NGINX_KEEPALIVE, 1.3),
        (ECHO_4K, PLAIN, 10.0),
        (ECHO_4K, SIMPLE, 1.3),
    ],
)
def test_ratio_of_a_goal(workload, other: str, limit: float) -> None:
    """A goal is met from its ratio on."""
    name = f"{workload.name}, {workload.unit}/s ÷ {other}"
    made_up = results()
    for factor, expected in ((limit + 0.01, True), (limit - 0.01, False)):
        made_up.samples[workload.name, OURS] = [dataclasses.replace(SAMPLE, requests_per_second=1000.0 * factor)]
        assert met(made_up)[name] is expected


def test_lost_sessions_and_late_answers_miss_goals() -> None:
    """One lost session is too many, and so is a p99 above plain's."""
    made_up = results()
    assert met(made_up)["polling sessions lost, ours"]
    made_up.samples[POLLING.name, OURS] = [SAMPLE, dataclasses.replace(SAMPLE, lost=1)]
    assert not met(made_up)["polling sessions lost, ours"]
    late = "kept-alive requests, p99 at 70 % load, no more than plain's"
    assert met(made_up)[late]
    made_up.paced[KEPT_ALIVE.name, OURS] = [dataclasses.replace(SAMPLE, p99_ms=2.1)]
    assert not met(made_up)[late]


@pytest.mark.parametrize("without", [(), (KERNEL,)])
def test_report(without: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything measured is in the text, in tables whose rows are as long as their heads."""
    monkeypatch.setattr(report, "versions", lambda: "Made up")
    text = report.render(results(without))
    assert ("kernel router" in text) is not without
    for workload in WORKLOADS:
        assert f"{workload.name}, {OURS}" in text
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines and lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1, block


def test_kernel_router_has_its_own_goals() -> None:
    """Where it was measured, each goal of a new connection is there for both ways."""
    with_it, without = met(results()), met(results((KERNEL,)))
    assert {name for name in with_it if "kernel" not in name} == set(without)
    assert sum("kernel" in name for name in with_it) == 6


def test_bars_of_text() -> None:
    """A bar is as long as its value, to an eighth of a character, and the longest is the largest."""
    panel = charts.Panel("speed", "m/s", ("",), {"a": (8.0,), "bb": (3.05,), "none": (None,), "zero": (0.0,)})
    assert plots.text_of(panel).splitlines() == [
        "speed, m/s",
        f"a    8.00 {'█' * 40}",
        f"bb   3.05 {'█' * 15}▎",
        "zero 0.00",
    ]


def test_crowds() -> None:
    """Numbers of clients end where a load, or a server, can't have more."""
    assert crowds(NEW, OURS, (100, 10_000)) == [100, 10_000]
    assert crowds(NEW, NGINX_KEEPALIVE, (100, 10_000)) == [100]
    assert crowds(POLLING, OURS, (100, 1000, 10_000)) == [100, 1000]


def test_kernel_router_is_left_out_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured when `sticky-session serve` has a flag for it."""
    for there in (False, True):
        monkeypatch.setattr("servers.kernel_routes", lambda there=there: there)
        assert rounds.at_work((OURS, KERNEL, PLAIN)) == ([OURS, KERNEL, PLAIN] if there else [OURS, PLAIN])


def test_missing_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a peer, and without the right to install it, the benchmarks end with a line that says what is missing."""
    monkeypatch.setattr(install, "DAEMONS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["run.py", "--quick"])
    monkeypatch.setattr(run, "allow_descriptors", lambda _: None)
    assert run.main() == 1
    assert capsys.readouterr().err == (
        "benchmarks: missing: gcc, nginx, haproxy, nodejs, npm; install them, or run this as root on Debian\n"
    )


def test_too_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is too low for the connections is an error before anything is measured."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(MeasureError, match=r"10000 connections need 10200 descriptors .* ulimit -Hn is 4096"):
        run.allow_descriptors(10_000)
