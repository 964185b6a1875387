"""The ring: even, consistent, and the same everywhere."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session import OptionError, Ring
from sticky_session.address import pack

WORKERS = st.integers(1, 40)
PARTITIONS = st.integers(41, 700)
SEEDS = st.integers(0, 2**32 - 1)
KEYS = st.binary(max_size=16)


def fingerprint(ring: Ring) -> str:
    return hashlib.sha256(repr(ring.owners).encode()).hexdigest()[:16]


@given(workers=WORKERS, partitions=PARTITIONS)
def test_even(workers: int, partitions: int) -> None:
    """No slot owns more than one partition more than another."""
    owned = Counter(Ring(workers, partitions).owners)
    assert sorted(owned) == list(range(workers))
    assert max(owned.values()) - min(owned.values()) <= 1


@given(workers=WORKERS, partitions=PARTITIONS)
def test_consistent(workers: int, partitions: int) -> None:
    """From n to n+1 workers partitions//(n+1) partitions move, and only onto the new slot."""
    before, after = Ring(workers, partitions).owners, Ring(workers + 1, partitions).owners
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert moved == [workers] * (partitions // (workers + 1))


@given(workers=WORKERS, partitions=PARTITIONS, seed=SEEDS, key=KEYS)
def test_successors(workers: int, partitions: int, seed: int, key: bytes) -> None:
    """The successors are every slot but the key's own, each once, and always in the same order."""
    ring = Ring(workers, partitions, seed)
    order = list(ring.successors(key))
    assert sorted([*order, ring.slot(key)]) == list(range(workers))
    assert order == list(Ring(workers, partitions, seed).successors(key))


@pytest.mark.parametrize("workers", [3, 4, 8, 16])
def test_successors_spread(workers: int) -> None:
    """A dead slot's partitions go to all the others, to none of them much more than its share."""
    ring = Ring(workers, 4096)
    key_of = {ring.partition(key): key for key in (number.to_bytes(4, "big") for number in range(100_000))}
    for dead in range(workers):
        keys = [key for part, key in key_of.items() if ring.owners[part] == dead]
        heirs = Counter(next(ring.successors(key)) for key in keys)
        fair = len(keys) / (workers - 1)
        assert len(heirs) == workers - 1
        assert max(heirs.values()) < 2 * fair


@given(workers=WORKERS, seed=SEEDS, key=KEYS)
def test_slot_is_owner_of_partition(workers: int, seed: int, key: bytes) -> None:
    """A key's slot is the owner of its partition."""
    ring = Ring(workers, 41, seed)
    assert ring.slot(key) == ring.owners[ring.partition(key)]


@pytest.mark.parametrize(
    ("workers", "partitions", "expected"),
    [
        (1, 1024, "d4a3d17bd0ea330a"),
        (4, 1024, "f0750440a9eeccf3"),
        (8, 1024, "ff2c797edaebaba5"),
        (100, 4096, "f398928da86f93c4"),
    ],
)
def test_table_pinned(workers: int, partitions: int, expected: str) -> None:
    """The table never changes between releases: an upgrade moves no client."""
    assert fingerprint(Ring(workers, partitions)) == expected


def test_small_table_pinned() -> None:
    """The same, where it can be read."""
    assert Ring(3, 16).owners == (2, 2, 1, 0, 0, 2, 1, 1, 2, 0, 2, 1, 1, 1, 0, 0)


@pytest.mark.parametrize(
    ("address", "seed", "partition", "slot"),
    [
        ("192.0.2.1", 0, 346, 2),
        ("192.0.2.1", 7, 744, 3),
        ("192.0.2.2", 0, 884, 1),
        ("10.0.0.1", 0, 90, 1),
        ("2001:db8::", 0, 360, 3),
    ],
)
def test_slot_pinned(address: str, seed: int, partition: int, slot: int) -> None:
    """An address's slot never changes between releases."""
    ring = Ring(4, seed=seed)
    assert (ring.partition(pack(address)), ring.slot(pack(address))) == (partition, slot)


def test_same_in_every_process() -> None:
    """The table does not depend on the process, as Python's own hash() does."""
    script = (
        "from sticky_session import Ring; import hashlib;"
        "print(hashlib.sha256(repr(Ring(7, 1000).owners).encode()).hexdigest()[:16])"
    )
    for hash_seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.strip() == fingerprint(Ring(7, 1000))


def test_keys_are_even() -> None:
    """Neighbouring addresses, as an office or a test has them, spread over all slots alike."""
    ring = Ring(4)
    shares = Counter(ring.slot(pack(f"10.1.{high}.{low}")) for high in range(64) for low in range(256))
    assert max(shares.values()) < 1.1 * min(shares.values())


@given(workers=WORKERS, partitions=PARTITIONS)
def test_shares(workers: int, partitions: int) -> None:
    """The shares are those of the table, and there is nothing beside them."""
    ring = Ring(workers, partitions)
    assert sum(ring.shares()) == pytest.approx(1)
    assert ring.shares() == [ring.owners.count(slot) / partitions for slot in range(workers)]


@pytest.mark.parametrize(("workers", "partitions"), [(0, 1024), (-1, 1024), (1025, 1024), (2, 1), (1, 0)])
def test_bad_workers(workers: int, partitions: int) -> None:
    """There is no ring without slots, and none with more slots than partitions; the error says so."""
    with pytest.raises(OptionError, match=f"workers={workers}: expected 1 to {partitions}"):
        Ring(workers, partitions)


@pytest.mark.parametrize(("workers", "partitions"), [(1, 1), (1024, 1024)])
def test_limits_of_workers(workers: int, partitions: int) -> None:
    """From one slot to one for each partition everything works."""
    assert sorted(set(Ring(workers, partitions).owners)) == list(range(workers))
