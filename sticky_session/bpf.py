"""The ring as a packet filter: classic BPF for SO_ATTACH_REUSEPORT_CBPF (socket(7)). Pure.

Theory of operation. Where several sockets listen on one port with SO_REUSEPORT, the kernel runs the program on the
packet that asks for a connection (SYN, or the ACK that brings a SYN cookie back), and what it returns is the number of
the socket that gets it. One program serves IPv4, IPv6, and IPv4 clients on IPv6 sockets. It takes three steps:

1. The client's address. The packet begins behind the TCP header; offsets from ``SKF_NET_OFF`` count from the IP header,
   where the source address has a fixed place, whatever options or extension headers follow.
2. Its hash: murmur3 over the bytes that the masks leave, as mmh3 does it. The words that they leave nothing of are not
   even loaded. murmur3 reads little-endian words, BPF big-endian ones, so they are swapped.
3. The owner of the hash's partition. There are no tables in classic BPF, and no loops. The owners of as many partitions
   as fit are packed into one 32-bit constant, a binary search finds the constant, a shift the owner in it.

The program has three instructions for every constant, so its length depends on ``partitions`` and on the number of bits
that a slot's number takes; see :func:`fits` for what that is good for.

The machine has an accumulator A, an index register X and 16 words of memory, all 32 bits and unsigned. A jump's targets
are counted from the next instruction; those of a conditional one lie at most 255 ahead. A load from outside of the
packet ends the program with 0. See Documentation/networking/filter.rst of the kernel, and linux/filter.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from sticky_session.errors import OptionError

# linux/filter.h: BPF_MAXINSNS.
MAX_INSTRUCTIONS = 4096

# linux/filter.h: loads from here on count from the IP header.
_NETWORK_HEADER = 2**32 - 0x100000
_IPV4_SOURCE = 12  # RFC 791 section 3.1
_IPV6_SOURCE = 8  # RFC 8200 section 3

# linux/bpf_common.h: the instructions that are used here. ABS loads from the packet, MEM from the memory.
_LD_WORD_ABS, _LD_BYTE_ABS, _LD_IMM, _LD_MEM, _LDX_MEM, _ST = 0x20, 0x30, 0x00, 0x60, 0x61, 0x02
_MUL, _ADD, _DIV, _MOD, _AND, _LSH, _RSH, _XOR = 0x24, 0x04, 0x34, 0x94, 0x54, 0x64, 0x74, 0xA4
_OR_X, _RSH_X, _XOR_X = 0x4C, 0x7C, 0xAC
_TAX, _TXA = 0x07, 0x87
_JA, _JEQ, _JGE = 0x05, 0x15, 0x35
_RET_A, _RET_K = 0x16, 0x06

# Words of the memory.
_HASH, _SPARE, _WORD = range(3)


class Instruction(NamedTuple):
    """One instruction: struct sock_filter."""

    code: int
    jt: int
    jf: int
    k: int


Code = list[Instruction]


def slot_program(owners: Sequence[int], seed: int = 0, ipv4_prefix: int = 32, ipv6_prefix: int = 64) -> Code:
    """The program that returns the slot of the client that a packet comes from.

    It is ``owners[Ring.partition(Masks(ipv4_prefix, ipv6_prefix).key(address))]`` for every address.

    :param owners: the slot of each partition: ``Ring.owners``, or ``Ring.owners_without()``
    :param seed: of the hash, 0 to 2**32-1
    :param ipv4_prefix: bits of an IPv4 address that count, 0 to 32
    :param ipv6_prefix: bits of an IPv6 address that count, 0 to 128
    :raises OptionError: the kernel doesn't take so long a program
    """
    code = [*_hash(seed, ipv4_prefix, ipv6_prefix), *_owner(owners)]
    if len(code) > MAX_INSTRUCTIONS:
        raise OptionError(
            f"partitions={len(owners)}: with {max(owners) + 1} workers the kernel's program for them would have "
            f"{len(code)} instructions; expected at most {MAX_INSTRUCTIONS}; use fewer partitions, or the listener"
        )
    return code


def fits(workers: int, partitions: int) -> bool:
    """Whether there can be a program for a ring of ``workers`` slots, whatever its seed and masks.

    For 1024 partitions there always is, for 4096 with up to 256 slots, for 8192 with up to 16.
    """
    longest_hash = len(_hash(0, 31, 127))
    return longest_hash + len(_owner([workers - 1] * partitions)) <= MAX_INSTRUCTIONS


@lru_cache(maxsize=8)
def most_workers(partitions: int) -> int:
    """The largest number of workers that there can be a program for, see :func:`fits`; 0 if not even for one."""
    # The length depends on the number of bits that a slot's number takes.
    fitting = (2**bits for bits in range(partitions.bit_length() + 1) if fits(2**bits, partitions))
    return min(max(fitting, default=0), partitions)


# --- the hash, in A


def _hash(seed: int, ipv4_prefix: int, ipv6_prefix: int) -> Code:
    """A := murmur3 (32-bit, x86 variant) of the client's affinity key."""
    source = [_packet_word(_IPV6_SOURCE + 4 * word) for word in range(4)]
    # The last word of a mapped address, ::ffff:0:0/96, is the IPv4 address. The others are what they have to be if A
    # is 0 at the end. The kernel drops packets that have one, but the answer to all addresses is to be the ring's.
    ipv6 = [
        source[3],
        _op(_ST, _WORD),
        source[0],
        _op(_TAX),
        source[1],
        _op(_OR_X),
        _op(_TAX),
        source[2],
        _op(_XOR, 0xFFFF),
        _op(_OR_X),
    ]
    ipv4 = [_packet_word(_IPV4_SOURCE), _op(_ST, _WORD), _op(_LD_IMM, 0)]
    return [
        _op(_LD_BYTE_ABS, _NETWORK_HEADER),
        _op(_RSH, 4),
        *_choose(_op(_JEQ, 4), ipv4, ipv6),
        *_choose(
            _op(_JEQ, 0),
            _blocks(seed, ipv4_prefix, [_op(_LD_MEM, _WORD)]),
            _blocks(seed, ipv6_prefix, source),
        ),
        # The end of murmur3, "fmix32".
        *_xor_shifted(16),
        _op(_MUL, 0x85EBCA6B),
        *_xor_shifted(13),
        _op(_MUL, 0xC2B2AE35),
        *_xor_shifted(16),
    ]


def _blocks(seed: int, prefix: int, words: list[Instruction]) -> Code:
    """A := murmur3 of the address that ``words`` load, of which ``prefix`` bits count, without its end."""
    code = [_op(_LD_IMM, seed), _op(_ST, _HASH)]
    for index, load in enumerate(words):
        bits = min(max(prefix - 32 * index, 0), 32)
        if bits == 0:
            # A block of zeros leaves the hash as it is, up to here.
            code += [_op(_LD_MEM, _HASH)]
        else:
            code += [load]
            if bits < 32:
                code += [_op(_AND, 2**32 - 2 ** (32 - bits))]
            code += [
                *_swap_bytes(),
                _op(_MUL, 0xCC9E2D51),
                *_rotate(15),
                _op(_MUL, 0x1B873593),
                _op(_LDX_MEM, _HASH),
                _op(_XOR_X),
            ]
        code += [*_rotate(13), _op(_MUL, 5), _op(_ADD, 0xE6546B64), _op(_ST, _HASH)]
    return [*code, _op(_XOR, 4 * len(words))]


def _packet_word(offset: int) -> Instruction:
    """A := the big-endian word at ``offset`` of the IP header."""
    return _op(_LD_WORD_ABS, _NETWORK_HEADER + offset)


def _swap_bytes() -> Code:
    """A's bytes in the reverse order."""
    return [
        _op(_TAX),
        _op(_AND, 0x00FF00FF),
        _op(_LSH, 8),
        _op(_ST, _SPARE),
        _op(_TXA),
        _op(_RSH, 8),
        _op(_AND, 0x00FF00FF),
        _op(_LDX_MEM, _SPARE),
        _op(_OR_X),
        *_rotate(16),
    ]


def _rotate(bits: int) -> Code:
    """A rotated to the left."""
    return [
        _op(_ST, _SPARE),
        _op(_LSH, bits),
        _op(_TAX),
        _op(_LD_MEM, _SPARE),
        _op(_RSH, 32 - bits),
        _op(_OR_X),
    ]


def _xor_shifted(bits: int) -> Code:
    """A := A ^ A >> bits."""
    return [_op(_TAX), _op(_RSH, bits), _op(_XOR_X)]


# --- the owner


def _owner(owners: Sequence[int]) -> Code:
    """Return the owner of the partition that the hash in A falls in."""
    bits = max(owners).bit_length()
    if bits == 0:
        return [_op(_RET_K, 0)]
    in_a_word = 32 // bits
    words = [
        sum(owner << bits * place for place, owner in enumerate(owners[first : first + in_a_word]))
        for first in range(0, len(owners), in_a_word)
    ]
    return [
        _op(_MOD, len(owners)),
        _op(_ST, _SPARE),
        # X := by how much to shift, A := which word
        _op(_MOD, in_a_word),
        _op(_MUL, bits),
        _op(_TAX),
        _op(_LD_MEM, _SPARE),
        _op(_DIV, in_a_word),
        *_search(words, 0, len(words)),
        _op(_RSH_X),
        _op(_AND, 2**bits - 1),
        _op(_RET_A),
    ]


def _search(words: list[int], first: int, end: int) -> Code:
    """A := words[A], which is one of those from ``first`` to before ``end``."""
    if end - first == 1:
        return [_op(_LD_IMM, words[first])]
    middle = (first + end) // 2
    return _choose(_op(_JGE, middle), _search(words, middle, end), _search(words, first, middle))


# --- building


def _op(code: int, k: int = 0) -> Instruction:
    return Instruction(code, 0, 0, k)


def _choose(test: Instruction, yes: Code, no: Code) -> Code:
    """Do one thing or the other, and go on after both."""
    no = [*no, _op(_JA, len(yes))]
    if len(no) <= 255:
        return [test._replace(jt=len(no)), *no, *yes]
    return [test._replace(jf=1), _op(_JA, len(no)), *no, *yes]
