"""The ring as a packet filter: the kernel takes it, and it gives every address the ring's slot."""

from __future__ import annotations

import random
from ipaddress import IPv6Address

import bpf_machine
import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session import OptionError, Ring
from sticky_session.address import Masks, unpack
from sticky_session.bpf import MAX_INSTRUCTIONS, Code, fits, most_workers, slot_program

IPV4 = st.binary(min_size=4, max_size=4)
MAPPED = IPV4.map(lambda address: bytes(10) + b"\xff\xff" + address)
# Almost mapped ones, too.
ZEROS_AND_ONES = st.lists(st.sampled_from([b"\0", b"\xff"]), min_size=16, max_size=16).map(b"".join)
ADDRESSES = IPV4 | MAPPED | ZEROS_AND_ONES | st.binary(min_size=16, max_size=16)
SEEDS = st.integers(0, 2**32 - 1)


def packet(source: bytes) -> bytes:
    """The IP header of a packet, and what may follow."""
    if len(source) == 4:
        return b"\x45" + bytes(11) + source + bytes([127, 0, 0, 1]) + bytes(40)
    return b"\x60" + bytes(7) + source + IPv6Address("::1").packed + bytes(40)


def program_of(ring: Ring, ipv4_prefix: int = 32, ipv6_prefix: int = 64) -> Code:
    program = slot_program(ring.owners, ring.seed, ipv4_prefix, ipv6_prefix)
    bpf_machine.check(program)
    return program


# 20 rings, 5,000 addresses each.
RINGS = [(workers, 1024) for workers in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64)]
RINGS += [(4, 1000), (6, 41), (100, 4096), (16, 8192)]
PREFIXES = [(32, 64), (24, 48), (32, 128), (24, 32), (17, 65)]


@pytest.mark.parametrize(("number", "workers", "partitions"), [(number, *ring) for number, ring in enumerate(RINGS)])
def test_slot_of_many_addresses(number: int, workers: int, partitions: int) -> None:
    """The program's slot is the ring's: 100,000 addresses in all, for small and large rings, seeds and masks."""
    draw = random.Random(number)
    prefixes = PREFIXES[number % len(PREFIXES)]
    ring, masks = Ring(workers, partitions, draw.choice([0, draw.getrandbits(32)])), Masks(*prefixes)
    program = program_of(ring, *prefixes)
    for turn in range(5000):
        address = draw.randbytes(16 if turn % 2 else 4)
        if turn % 10 == 1:
            address = bytes(10) + b"\xff\xff" + address[12:]
        assert bpf_machine.run(program, packet(address)) == ring.slot(masks.key(unpack(address))), unpack(address)


@given(
    workers=st.integers(1, 64),
    partitions=st.integers(64, 300),
    seed=SEEDS,
    ipv4_prefix=st.integers(0, 32),
    ipv6_prefix=st.integers(0, 128),
    addresses=st.lists(ADDRESSES, min_size=1, max_size=20),
)
def test_slot(
    workers: int, partitions: int, seed: int, ipv4_prefix: int, ipv6_prefix: int, addresses: list[bytes]
) -> None:
    """The program's slot is the ring's, for every number of slots and partitions, every seed and mask."""
    ring, masks = Ring(workers, partitions, seed), Masks(ipv4_prefix, ipv6_prefix)
    program = program_of(ring, ipv4_prefix, ipv6_prefix)
    for address in addresses:
        assert bpf_machine.run(program, packet(address)) == ring.slot(masks.key(unpack(address)))


@given(owners=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=300), address=IPV4)
def test_any_table(owners: list[int], address: bytes) -> None:
    """Any table will do, also one that is no ring's."""
    program = slot_program(owners)
    bpf_machine.check(program)
    assert bpf_machine.run(program, packet(address)) == owners[mmh3.hash(address, 0, signed=False) % len(owners)]


def test_every_partition() -> None:
    """Every entry of the table is found."""
    owners = range(1024)
    program = slot_program(owners)
    found = {bpf_machine.run(program, packet(number.to_bytes(4, "big"))) for number in range(16384)}
    assert found == set(owners)


@given(workers=st.integers(2, 30), failed=st.sets(st.integers(0, 29)), address=ADDRESSES)
def test_slots_without_a_worker(workers: int, failed: set[int], address: bytes) -> None:
    """While some slots have failed, the program gives the same stand-ins as the ring."""
    ring = Ring(workers, 64)
    failed = {slot for slot in failed if slot < workers}
    if len(failed) == workers:
        failed.pop()
    program = slot_program(ring.owners_without(failed))
    expected = ring.slot_without(Masks().key(unpack(address)), failed)
    assert bpf_machine.run(program, packet(address)) == expected


@pytest.mark.parametrize("first", [b"\x46", b"\x4f"])
def test_ip_options(first: bytes) -> None:
    """Options in an IPv4 header, and what follows an IPv6 header, don't matter: the address is before them."""
    ring = Ring(8)
    source = bytes([192, 0, 2, 1])
    assert bpf_machine.run(program_of(ring), first + packet(source)[1:]) == ring.slot(source)


def test_no_packet() -> None:
    """A load from outside of the packet ends the program with 0."""
    assert bpf_machine.run(program_of(Ring(8)), b"") == 0
    assert bpf_machine.run(program_of(Ring(8)), b"\x60" + bytes(10)) == 0


@pytest.mark.parametrize(
    ("workers", "partitions"),
    [(1024, 1024), (2048, 2048), (256, 4096), (16, 8192), (4, 16384), (2, 32768), (1, 65536)],
)
def test_largest(workers: int, partitions: int) -> None:
    """The largest rings for which there are programs."""
    assert fits(workers, partitions)
    program_of(Ring(workers, partitions, 2**32 - 1), 31, 127)


@pytest.mark.parametrize(
    ("workers", "partitions"),
    [(4096, 4096), (257, 4096), (17, 8192), (5, 16384), (3, 32768), (2, 65536)],
)
def test_too_large(workers: int, partitions: int) -> None:
    """For larger ones there are none, and the error says what to do."""
    assert not fits(workers, partitions)
    with pytest.raises(OptionError, match=rf"partitions={partitions}: with {workers} workers .* at most 4096; use"):
        slot_program(Ring(workers, partitions).owners)


def test_longest() -> None:
    """The limit is the kernel's: one more constant, and there is no program."""
    partitions = next(partitions for partitions in range(4096, 8192, 4) if not fits(256, partitions + 4))
    program = program_of(Ring(256, partitions), 31, 127)
    assert MAX_INSTRUCTIONS - 4 < len(program) <= MAX_INSTRUCTIONS
    with pytest.raises(OptionError, match=f"would have {len(program) + 3} instructions"):
        slot_program(Ring(256, partitions + 4).owners, 0, 31, 127)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 16, 17, 256])
@pytest.mark.parametrize("partitions", [256, 1024, 4096])
def test_fits(workers: int, partitions: int) -> None:
    """What is said to fit does."""
    assert fits(workers, partitions)
    for ipv4_prefix, ipv6_prefix in ((32, 64), (31, 127), (0, 0), (32, 128)):
        program_of(Ring(workers, partitions), ipv4_prefix, ipv6_prefix)


@pytest.mark.parametrize(
    ("partitions", "workers"), [(1, 1), (7, 7), (1024, 1024), (4096, 256), (8192, 16), (32768, 2), (65536, 1)]
)
def test_most_workers(partitions: int, workers: int) -> None:
    """There are programs for so many workers, and not for one more."""
    assert most_workers(partitions) == workers
    assert fits(workers, partitions)
    assert workers == partitions or not fits(workers + 1, partitions)


@pytest.mark.parametrize("workers", [1, 2, 4, 64, 512])
def test_older_kernels(workers: int) -> None:
    """With the default number of partitions, programs are small enough for kernels before 6.8.

    There the memory that one may take, optmem_max, was 20480 bytes, and the kernel's own instructions, of 8 bytes, are
    more than ours: up to 2 for one, and up to 8 for a load from the packet.
    """
    program = program_of(Ring(workers), 31, 127)
    loads = sum(instruction[0] in (0x20, 0x30) for instruction in program)
    longer = sum(instruction[0] == 0x16 for instruction in program)
    assert 8 * (len(program) + longer + 7 * loads + 20) < 20480 - 200


# --- the machine itself

RETURN_A = (0x16, 0, 0, 0)


@pytest.mark.parametrize(("program", "reason"), [*bpf_machine.REJECTED, *bpf_machine.IMPOSSIBLE])
def test_checker(program: list[tuple[int, int, int, int]], reason: str) -> None:
    """The checker rejects what the kernel does."""
    with pytest.raises(bpf_machine.Rejected, match=reason):
        bpf_machine.check(program)


@pytest.mark.parametrize(
    ("code", "a", "k", "result"),
    [
        (0x04, 2**32 - 1, 2, 1),
        (0x24, 0x85EBCA6B, 0xC2B2AE35, 0x85EBCA6B * 0xC2B2AE35 % 2**32),
        (0x34, 2**32 - 1, 10, 429496729),
        (0x94, 2**32 - 1, 10, 5),
        (0x64, 2**31 + 1, 1, 2),
        (0x74, 2**31, 31, 1),
        (0xA4, 0xFFFF0000, 0xFF00FF00, 0x00FFFF00),
    ],
)
def test_arithmetic(code: int, a: int, k: int, result: int) -> None:
    """The machine's numbers have 32 bits and no sign."""
    assert bpf_machine.run([(0x00, 0, 0, a), (code, 0, 0, k), RETURN_A], b"") == result
    # The same with X in the place of a constant.
    assert bpf_machine.run([(0x00, 0, 0, k), (0x07, 0, 0, 0), (0x00, 0, 0, a), (code | 8, 0, 0, 0), RETURN_A], b"") == (
        result
    )
