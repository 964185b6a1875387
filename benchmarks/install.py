"""Installs the peers: Debian's packages and npm's. Python's are what setup.cfg's extras bring."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PEERS = Path(__file__).resolve().parent / "peers"

# Command: the Debian package that brings it.
PACKAGES = {"cc": "gcc", "nginx": "nginx", "haproxy": "haproxy", "node": "nodejs", "npm": "npm"}


# Debian has daemons where a user's PATH may not lead.
DAEMONS = "/usr/sbin"


class InstallError(Exception):
    """Something is missing and can't be installed."""


def tool(command: str) -> str:
    """The path of a command that :func:`install` has made sure of.

    :raises InstallError: there is none
    """
    path = shutil.which(command, path=f"{os.environ['PATH']}:{DAEMONS}")
    if path is None:
        raise InstallError(f"{command}: not found; it is in Debian's package {PACKAGES.get(command, command)}")
    return path


def missing_packages() -> list[str]:
    """The Debian packages whose commands are missing."""
    missing = []
    for command, package in PACKAGES.items():
        try:
            tool(command)
        except InstallError:
            missing.append(package)
    return missing


def install() -> None:
    """Install the peers that are missing.

    :raises InstallError: a package can't be installed
    """
    missing = missing_packages()
    if missing:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise InstallError(f"missing: {', '.join(missing)}; install them, or run this as root on Debian")
        run([tool("apt-get"), "update", "-qq"])
        run([tool("apt-get"), "install", "-qq", "--no-install-recommends", "gcc", "libc6-dev", *missing])
    lock, installed = PEERS / "package-lock.json", PEERS / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        run([tool("npm"), "ci", "--no-audit", "--no-fund"], PEERS)


def run(command: Sequence[str], folder: Path | None = None) -> None:
    """Run a command to its end, quietly.

    :raises InstallError: it fails
    """
    # The commands are those of install().
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
    if result.returncode != 0:
        raise InstallError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stdout}{result.stderr}")
