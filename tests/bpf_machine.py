"""The kernel's classic BPF in Python: what it takes for a program (net/core/filter.c), and what it does then."""

from __future__ import annotations

from collections.abc import Sequence

Program = Sequence[tuple[int, int, int, int]]

# linux/filter.h
MAX_INSTRUCTIONS = 4096
MEMORY_WORDS = 16
NETWORK_OFFSET = -0x100000

LOADS_OF_MEMORY = {0x60, 0x61}
STORES = {0x02, 0x03}
CONDITIONAL_JUMPS = {code | source for code in (0x15, 0x25, 0x35, 0x45) for source in (0, 8)}
JUMP, RETURN_K, RETURN_A = 0x05, 0x06, 0x16
CODES = (
    LOADS_OF_MEMORY
    | STORES
    | CONDITIONAL_JUMPS
    | {JUMP, RETURN_K, RETURN_A}
    # ALU: add, sub, mul, div, or, and, lsh, rsh, mod, xor; each with k and with X; and neg.
    | {code | source for code in (0x04, 0x14, 0x24, 0x34, 0x44, 0x54, 0x64, 0x74, 0x94, 0xA4) for source in (0, 8)}
    | {0x84}
    # ld and ldx: abs, ind, imm, len, msh; tax, txa
    | {0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x00, 0x80, 0x01, 0x81, 0xB1, 0x07, 0x87}
)


_RETURN = (RETURN_K, 0, 0, 0)

# Programs that the kernel doesn't take, and why.
REJECTED: list[tuple[Program, str]] = [
    ([], "0 instructions"),
    ([(0x00, 0, 0, 1)] * 4096 + [_RETURN], "4097 instructions"),
    ([(0x00, 0, 0, 1)], "no return"),
    ([(0x05, 0, 0, 1), _RETURN], "out of the program"),
    ([(0x15, 1, 0, 1), _RETURN], "out of the program"),
    ([(0x15, 0, 1, 1), _RETURN], "out of the program"),
    ([(0x94, 0, 0, 0), _RETURN], "division by zero"),
    ([(0x64, 0, 0, 32), _RETURN], "a shift by 32"),
    ([(0x02, 0, 0, 16), _RETURN], "no such word"),
    ([(0x60, 0, 0, 0), _RETURN], "nothing has been stored"),
    ([(0x15, 0, 1, 0), (0x02, 0, 0, 3), (0x60, 0, 0, 3), _RETURN], "nothing has been stored"),
    ([(0xFF, 0, 0, 0), _RETURN], "no such instruction"),
]
# Those that can't be written down for it, or that nobody wants.
IMPOSSIBLE: list[tuple[Program, str]] = [
    ([(0x15, 256, 0, 1), _RETURN], "no room"),
    ([(0x00, 0, 0, 2**32), _RETURN], "no room"),
    ([_RETURN, _RETURN], "nothing leads here"),
]


class Rejected(Exception):
    """The kernel would answer EINVAL."""


def check(program: Program) -> None:
    """Check what bpf_check_classic() and check_load_and_stores() check, and that every instruction can be reached.

    :raises Rejected: it would not pass
    """
    length = len(program)
    if not 1 <= length <= MAX_INSTRUCTIONS:
        raise Rejected(f"{length} instructions")
    # For each instruction, the words of the memory that have a value on every way to it; None before a way is known.
    known: list[int | None] = [0, *[None] * (length - 1)]

    def reach(at: int, words: int) -> None:
        before = known[at]
        known[at] = words if before is None else before & words

    for at, (code, jt, jf, k) in enumerate(program):
        if not (0 <= code < 2**16 and 0 <= jt < 2**8 and 0 <= jf < 2**8 and 0 <= k < 2**32):
            raise Rejected(f"{at}: a field has no room for its value")
        if code not in CODES:
            raise Rejected(f"{at}: no such instruction: {code:#x}")
        if code in (0x34, 0x94) and k == 0:
            raise Rejected(f"{at}: division by zero")
        if code in (0x64, 0x74) and k >= 32:
            raise Rejected(f"{at}: a shift by {k}")
        if code in LOADS_OF_MEMORY | STORES and k >= MEMORY_WORDS:
            raise Rejected(f"{at}: no such word of memory: {k}")
        words = known[at]
        if words is None:
            # The kernel doesn't mind, but one of ours would be a mistake.
            raise Rejected(f"{at}: nothing leads here")
        if code in LOADS_OF_MEMORY and not words & 1 << k:
            raise Rejected(f"{at}: nothing has been stored in word {k} on some way to here")
        if code in STORES:
            words |= 1 << k
        if code == JUMP:
            if k >= length - at - 1:
                raise Rejected(f"{at}: a jump out of the program")
            reach(at + 1 + k, words)
        elif code in CONDITIONAL_JUMPS:
            if at + 1 + max(jt, jf) >= length:
                raise Rejected(f"{at}: a jump out of the program")
            reach(at + 1 + jt, words)
            reach(at + 1 + jf, words)
        elif code not in (RETURN_A, RETURN_K) and at + 1 < length:
            reach(at + 1, words)
    if program[-1][0] not in (RETURN_A, RETURN_K):
        raise Rejected("the last instruction is no return")


def run(program: Program, packet: bytes) -> int:
    """What the program returns for an IP packet.

    :param packet: from its IP header on; what the kernel has behind it is of no use to our programs
    """
    a = x = at = 0
    memory = [0] * MEMORY_WORDS
    while True:
        code, jt, jf, k = program[at]
        at += 1
        kind = code & 7
        if kind == 4:
            a = alu(code & 0xF0, a, x if code & 8 else k)
        elif kind == 5:
            if code == JUMP:
                at += k
            else:
                at += jt if holds(code & 0xF0, a, x if code & 8 else k) else jf
        elif code == 0x60:
            a = memory[k]
        elif code == 0x61:
            x = memory[k]
        elif code == 0x02:
            memory[k] = a
        elif code == 0x07:
            x = a
        elif code == 0x87:
            a = x
        elif code == 0x00:
            a = k
        elif code in (0x20, 0x30):
            # The kernel's offset is a signed number.
            offset = k - 2**32 - NETWORK_OFFSET
            size = 4 if code == 0x20 else 1
            if offset < 0 or offset + size > len(packet):
                return 0
            a = int.from_bytes(packet[offset : offset + size], "big")
        elif code == RETURN_A:
            return a
        elif code == RETURN_K:
            return k
        else:
            raise NotImplementedError(f"{code:#x}")


def alu(operation: int, a: int, operand: int) -> int:
    """The result of an operation with A, 32 bits."""
    if operation == 0x00:
        return a + operand & 0xFFFFFFFF
    if operation == 0x20:
        return a * operand & 0xFFFFFFFF
    if operation == 0x30:
        return a // operand
    if operation == 0x40:
        return a | operand
    if operation == 0x50:
        return a & operand
    # Shifts by 32 and more, which check() rejects where they can be seen, do what the processor does.
    if operation == 0x60:
        return a << (operand & 31) & 0xFFFFFFFF
    if operation == 0x70:
        return a >> (operand & 31)
    if operation == 0x90:
        return a % operand
    if operation == 0xA0:
        return a ^ operand
    raise NotImplementedError(f"{operation:#x}")


def holds(test: int, a: int, operand: int) -> bool:
    """Whether a conditional jump's test does, all numbers being unsigned."""
    if test == 0x10:
        return a == operand
    if test == 0x20:
        return a > operand
    if test == 0x30:
        return a >= operand
    return bool(a & operand)
