"""The ring: a pure function from an affinity key to a slot.

Theory of operation. The hash space is cut into ``partitions`` equal parts once and for all, and each part is
owned by one slot ("strategy 3" of DeCandia et al., Dynamo, SOSP 2007, section 6.2). The owner table is grown
from one slot to two, to three and so on: a new slot takes parts from those that own the most, so

- shares are even to within one partition,
- going from n to n+1 slots moves 1/(n+1) of the keys, and only onto the new slot,
- the same (workers, partitions) give the same table on every machine and after every restart.

Looking up is one murmur3 and one index.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import lru_cache

import mmh3

from sticky_session.errors import OptionError


def _rank(a: int, b: int) -> int:
    """A number that orders things in a scattered yet fixed way (independent of the ring's seed)."""
    return mmh3.hash(a.to_bytes(4, "little") + b.to_bytes(4, "little"), 0x5EED, signed=False)


@lru_cache(maxsize=8)
def _owners(workers: int, partitions: int) -> tuple[int, ...]:
    # Scattered once, so that the parts a slot owns are not neighbours and a later slot takes from all alike.
    held = [sorted(range(partitions), key=lambda part: _rank(part, 0))]
    for slot in range(1, workers):
        share = partitions // (slot + 1)
        # Those that own the most give first, one part at a time, so that sizes stay within one of each other.
        donors = sorted(range(slot), key=lambda donor: (-len(held[donor]), donor))
        held.append([held[donors[turn % slot]].pop() for turn in range(share)])
    owners = [0] * partitions
    for slot, parts in enumerate(held):
        for part in parts:
            owners[part] = slot
    return tuple(owners)


class Ring:
    """Maps affinity keys to slots ``0..workers-1``.

    :param workers: how many slots
    :param partitions: how many equal parts the hash space has; at least ``workers``
    :param seed: of murmur3 (32-bit, x86 variant), 0 to 2**32-1
    :raises OptionError: ``workers`` is not from 1 to ``partitions``
    """

    __slots__ = ("owners", "partitions", "seed", "workers")

    def __init__(self, workers: int, partitions: int = 1024, seed: int = 0) -> None:
        if not 1 <= workers <= partitions:
            raise OptionError(
                f"workers={workers}: expected 1 to {partitions}, the number of the ring's partitions; "
                f"use fewer workers or more partitions"
            )
        self.workers = workers
        self.partitions = partitions
        self.seed = seed
        self.owners = _owners(workers, partitions)

    def partition(self, key: bytes) -> int:
        """The part of the hash space that ``key`` falls in, ``0..partitions-1``."""
        return mmh3.hash(key, self.seed, signed=False) % self.partitions

    def slot(self, key: bytes) -> int:
        """The slot that owns ``key``."""
        return self.owners[mmh3.hash(key, self.seed, signed=False) % self.partitions]

    def successors(self, key: bytes) -> Iterator[int]:
        """The other slots, in the fixed order in which ``key`` goes to them while its own has no worker.

        The order differs from partition to partition, so that a dead slot's keys spread over all the others.
        """
        return self._successors(self.partition(key))

    def _successors(self, part: int) -> Iterator[int]:
        home = self.owners[part]
        others = (slot for slot in range(self.workers) if slot != home)
        return iter(sorted(others, key=lambda slot: _rank(part, ~slot & 0xFFFFFFFF)))

    def slot_without(self, key: bytes, failed: Container[int]) -> int:
        """The slot that owns ``key``, or the first of its successors that has not failed: one never has."""
        home = self.slot(key)
        if home not in failed:
            return home
        return next(slot for slot in self.successors(key) if slot not in failed)

    def owners_without(self, failed: Container[int]) -> tuple[int, ...]:
        """Each partition's slot, or the first of its successors that has not failed: one never has."""
        return tuple(
            next(slot for slot in self._successors(part) if slot not in failed) if home in failed else home
            for part, home in enumerate(self.owners)
        )

    def shares(self) -> list[float]:
        """Each slot's share of the keys, from 0 to 1."""
        counts = [0] * self.workers
        for slot in self.owners:
            counts[slot] += 1
        return [count / self.partitions for count in counts]
