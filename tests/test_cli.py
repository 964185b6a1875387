"""The ``sticky-session`` command, as far as it starts no server."""

from __future__ import annotations

import re

import pytest

from sticky_session import Ring, __version__
from sticky_session.address import Masks
from sticky_session.cli import main
from sticky_session.config import OPTIONS


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that the tests run in has no say."""
    for option in OPTIONS:
        monkeypatch.delenv(option.environment, raising=False)


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints; it must succeed."""
    main(arguments)
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says when it fails."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert end.value.code not in (0, None)
    return printed.err if isinstance(end.value.code, int) else str(end.value.code)


def test_ring_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    """Each address is shown with the slot that a server of so many workers gives it."""
    addresses = ["192.0.2.7", "192.0.2.8", "2001:db8::1"]
    printed = output(capsys, "ring", "-w", "8", *addresses)
    slots = re.findall(r"^(\S+)  slot (\d)$", printed, re.MULTILINE)
    ring, masks = Ring(8), Masks(32, 64)
    assert slots == [(address, str(ring.slot(masks.key(address)))) for address in addresses]


def test_ring_shares(capsys: pytest.CaptureFixture[str]) -> None:
    """Each slot's share is shown, and how many keys move with one worker more."""
    printed = output(capsys, "ring", "-w", "8")
    shares = [float(share) for share in re.findall(r"^slot \d  ([\d.]+)%$", printed, re.MULTILINE)]
    assert len(shares) == 8
    assert sum(shares) == pytest.approx(100, abs=0.1)
    found = re.search(r"^8 -> 9 workers: ([\d.]+)% of the keys move, all of them to slot 8$", printed, re.MULTILINE)
    assert found
    assert float(found[1]) == pytest.approx(100 / 9, abs=0.2)


def test_ring_of_one_part_each(capsys: pytest.CaptureFixture[str]) -> None:
    """A ring that can't grow says nothing of growing."""
    printed = output(capsys, "ring", "--workers", "4", "--partitions", "4")
    assert printed.count("25.00%") == 4
    assert "->" not in printed


def test_ring_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Prefixes, the seed and partitions are those of the server: neighbours of a /24 share a slot."""
    flags = ("--ipv4-prefix", "24", "--ipv6-prefix", "32", "--seed", "7")
    addresses = [f"192.0.2.{host}" for host in range(10)] + [f"2001:db8:{subnet}::1" for subnet in range(10)]
    slots = re.findall(r"  slot (\d+)$", output(capsys, "ring", "-w", "50", *flags, *addresses), re.MULTILINE)
    assert len(slots) == 20
    assert len(set(slots[:10])) == len(set(slots[10:])) == 1


def test_ring_folds_mapped_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    """An IPv4-mapped IPv6 address is the IPv4 address."""
    printed = output(capsys, "ring", "-w", "50", "192.0.2.7", "::ffff:192.0.2.7")
    first, second = re.findall(r"  slot (\d+)$", printed, re.MULTILINE)
    assert first == second


def test_ring_reads_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a server would read count here, too, and flags are stronger."""
    monkeypatch.setenv("STICKY_SESSION_PARTITIONS", "3")
    assert "33.33%" in output(capsys, "ring", "-w", "3")
    assert "50.00%" in output(capsys, "ring", "-w", "2", "--partitions", "2")


@pytest.mark.parametrize("address", ["nonsense", "192.0.2.256", "192.0.2.7:80", "", "localhost"])
def test_bad_address(capsys: pytest.CaptureFixture[str], address: str) -> None:
    """What is no address is named in one line."""
    said = refusal(capsys, "ring", "-w", "8", "192.0.2.1", address)
    assert repr(address) in said
    assert said.splitlines()[-1].startswith("sticky-session ring: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "-w/--workers"),
        (("-w", "0"), "workers=0: expected 1 to 1024"),
        (("-w", "many"), "invalid int value: 'many'"),
        (("-w", "4", "--partitions", "2"), "workers=4: expected 1 to 2"),
        (("-w", "4", "--ipv4-prefix", "33"), "--ipv4-prefix=33: expected a whole number from 0 to 32"),
        (("-w", "4", "--nonsense"), "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_ring(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    """What can't be a ring is refused with the reason."""
    assert message in refusal(capsys, "ring", *arguments)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    """--version."""
    assert output(capsys, flag) == f"sticky-session {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """Without a command, and with --help, the commands are listed."""
    printed = output(capsys, *arguments)
    assert "serve APP" in printed
    assert "ring" in printed
    assert "proxy-config PROXY" in printed


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command is one clear line."""
    said = refusal(capsys, "swim")
    assert said.startswith("sticky-session: there is no command 'swim'; expected serve, ring, proxy-config or emit")
    assert "\n" not in said
