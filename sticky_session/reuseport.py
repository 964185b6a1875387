"""Groups of listening sockets that share a port, and the program that chooses among them: socket(7), SO_REUSEPORT.

The sockets of a group are numbered in the order in which they began to listen. One that is closed gives its number to
the last one. The kernel has one program for a group; a new one takes the place of the old one for the next packet.
Sockets of several users never make a group.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Sequence
from socket import SOL_SOCKET
from typing import Any

from sticky_session.errors import PlatformError

# asm-generic/socket.h. Python has no name for it.
_SO_ATTACH_REUSEPORT_CBPF = 51


def attach(sock: Any, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Let a program choose, from the next packet on, which socket of a group a connection goes to.

    :param sock: any socket of the group
    :param program: classic BPF, (code, jt, jf, k) for each instruction; it returns the socket's number
    :raises PlatformError: the kernel doesn't take it
    """
    # struct sock_filter and struct sock_fprog, linux/filter.h.
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    instructions = ctypes.create_string_buffer(packed, len(packed))
    try:
        sock.setsockopt(
            SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(program), ctypes.addressof(instructions))
        )
    except OSError as error:
        # The program takes more of it than its own size: the kernel translates it.
        cure = "raise the sysctl net.core.optmem_max, or " if error.errno == errno.ENOMEM else ""
        raise PlatformError(
            f"the kernel refuses the router's program of {len(program)} instructions: {error.strerror}; "
            f"expected Linux 4.6 or newer, and sockets with SO_REUSEPORT; {cure}use the listener"
        ) from error
