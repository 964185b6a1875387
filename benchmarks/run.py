"""Measures ours beside its peers, in one interleaved run, and writes RESULTS.md and its plots.

    python benchmarks/run.py            about 20 minutes
    python benchmarks/run.py --quick    less than 3 minutes, only prints

Load generator and servers share the cores of this machine, and its speed may drift. Therefore each workload
is put on each server in turn, for a few seconds, many times over, and only medians and ratios of medians are
reported. CPU time for each request depends less on what else is going on than requests per second do.

The load generator is one thread of C (load.c). Its own CPU time is reported beside that of the servers: where it uses
less than a core, it is not the limit.
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

import plots
import servers
from install import InstallError, install, tool
from measure import Load, MeasureError
from report import render
from rounds import Plan, Rounds

FULL = Plan(
    rounds=7,
    proxied_rounds=5,
    growth_rounds=2,
    seconds=2,
    workers=(1, 2, 4),
    clients=(100, 1000, 10_000),
    moves=100_000,
    idle_rounds=2,
    idle_connections=2000,
    idle_clients=(100, 1000, 10_000),
)
QUICK = Plan(
    rounds=1,
    proxied_rounds=1,
    growth_rounds=1,
    seconds=1,
    workers=(1, 4),
    clients=(1000,),
    moves=20_000,
    idle_rounds=1,
    idle_connections=1000,
    idle_clients=(),
)

# What processes need beside their connections.
SPARE_DESCRIPTORS = 200


def allow_descriptors(connections: int) -> None:
    """Let the processes that we start have that many connections each.

    :raises MeasureError: they can't
    """
    needed = connections + SPARE_DESCRIPTORS
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise MeasureError(f"{connections} connections need {needed} descriptors in a process; ulimit -Hn is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Run the benchmarks; the exit status is 0 if they could be run."""
    parser = argparse.ArgumentParser(description="Measure ours beside its peers.")
    parser.add_argument("--quick", action="store_true", help="a rough look in 3 minutes, only printed")
    parser.add_argument("--workers", type=int, default=2, help="workers of each server (default: 2)")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    try:
        allow_descriptors(max(plan.clients))
        install()
        rounds = Rounds(plan, arguments.workers, Load(tool("cc")))
        rounds.take_all()
    except (InstallError, servers.ServerError, MeasureError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    text = render(rounds.results)
    print(text)
    if not arguments.quick:
        here = Path(__file__).resolve().parent
        (here / "RESULTS.md").write_text(text)
        plots.draw_all(rounds.results, here)
    return 0


if __name__ == "__main__":
    sys.exit(main())
