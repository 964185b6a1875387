"""Every option of ours, defined once.

The environment variables, the flags of ``sticky-session serve``, gunicorn settings and the table in
the docs are all made from :data:`OPTIONS`.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sticky_session.errors import OptionError
from sticky_session.forwarded import ClientHeader, parse_hop, parse_name


@dataclass(frozen=True, kw_only=True)
class Option(ABC):
    """One option: its name, default, unit, and help text."""

    name: str
    default: int | float | str
    unit: str
    help: str
    flag: str

    @property
    def environment(self) -> str:
        """The environment variable that sets the option."""
        return "STICKY_SESSION_" + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def setting(self) -> str:
        """The name of the option as a gunicorn setting, also in gunicorn's configuration file."""
        return f"sticky_{self.name}"

    @property
    @abstractmethod
    def meta(self) -> str:
        """What stands for the value in a command's help."""

    @property
    @abstractmethod
    def values(self) -> str:
        """What values there are, in words."""

    @abstractmethod
    def convert(self, value: object) -> int | float | str:
        """Turn text or a number into the option's value.

        :raises ValueError: it can't be used
        """

    def parse(self, value: object, origin: str) -> int | float | str:
        """Turn text or a number into the option's value.

        :param origin: where the value came from, for the error message
        :raises OptionError: it can't be used
        """
        try:
            return self.convert(value)
        except (TypeError, ValueError):
            raise OptionError(f"{origin}={value}: expected {self.values} ({self.unit})") from None


@dataclass(frozen=True, kw_only=True)
class Number(Option):
    """An option with bounds, both allowed."""

    type: type[int] | type[float]
    low: float
    high: float
    default: int | float

    @property
    def meta(self) -> str:
        """INT or FLOAT."""
        return self.type.__name__.upper()

    @property
    def values(self) -> str:
        """The kind of number, and its bounds."""
        kind = "a whole number" if self.type is int else "a number"
        return f"{kind} from {self.low} to {self.high}"

    def convert(self, value: object) -> int | float:
        """The number, if it is within the bounds."""
        number = self.type(str(value))
        if not self.low <= number <= self.high:
            raise ValueError
        return number


@dataclass(frozen=True, kw_only=True)
class Choice(Option):
    """An option whose values are words.

    :ivar noun: what the value is, in one word
    :ivar expected: what values there are, in words
    :ivar check: returns the value in its one spelling, or raises ValueError
    :ivar only_text: whether a number, as a configuration file may have it, is none of the values
    """

    noun: str
    expected: str
    check: Callable[[str], str]
    default: str
    only_text: bool = False

    @property
    def meta(self) -> str:
        """What the value is."""
        return self.noun

    @property
    def values(self) -> str:
        """The words."""
        return self.expected

    def convert(self, value: object) -> str:
        """The word, in its one spelling."""
        if self.only_text and not isinstance(value, str):
            raise TypeError
        return self.check(str(value))


def _header_name(text: str) -> str:
    if text.lower() == OFF:
        return OFF
    if "_" in text:
        # Workers drop such fields, since many proxies can't tell them from those with dashes (gunicorn's header_map).
        raise ValueError
    return parse_name(text)


def _hop(text: str) -> str:
    return str(parse_hop(text.lower()))


def _router(text: str) -> str:
    if text.lower() not in ROUTERS:
        raise ValueError
    return text.lower()


def _path(text: str) -> str:
    if text.lower() == OFF:
        return OFF
    # As seen from everywhere: who sends has another working directory.
    if not text.startswith("/") or not 1 < len(os.fsencode(text)) <= MAX_SOCKET_PATH_BYTES:
        raise ValueError
    return os.path.normpath(text)


def _mode(text: str) -> str:
    if not re.fullmatch("[0-7]{3}", text):
        raise ValueError
    return text


# The client_header, or bus_socket, that is none.
OFF = "off"
ROUTERS = (LISTENER, KERNEL, AUTO) = ("listener", "kernel", "auto")
# sockaddr_un's sun_path without its last null byte (unix(7)).
MAX_SOCKET_PATH_BYTES = 107

OPTIONS: tuple[Option, ...] = (
    Number(
        name="partitions",
        type=int,
        low=1,
        high=65536,
        default=1024,
        unit="partitions",
        help="How many equal parts the ring has; the largest number of workers. "
        "Changing it moves most clients to another worker.",
        flag="--partitions",
    ),
    Number(
        name="seed",
        type=int,
        low=0,
        high=2**32 - 1,
        default=0,
        unit="32-bit number",
        help="Seed of the hash. Set a secret one if clients must not be able to aim at a worker "
        "by choosing their address.",
        flag="--seed",
    ),
    Number(
        name="ipv4_prefix",
        type=int,
        low=0,
        high=32,
        default=32,
        unit="bits",
        help="How many leading bits of an IPv4 address count: 24 keeps a whole /24 network on one worker.",
        flag="--ipv4-prefix",
    ),
    Number(
        name="ipv6_prefix",
        type=int,
        low=0,
        high=128,
        default=64,
        unit="bits",
        help="How many leading bits of an IPv6 address count: privacy addresses change within the /64.",
        flag="--ipv6-prefix",
    ),
    Choice(
        name="router",
        noun="ROUTER",
        expected="listener, kernel or auto",
        check=_router,
        default=LISTENER,
        unit="router",
        help="Who chooses a connection's worker: a listener process, or the kernel by a program that it runs for every "
        "new connection. The kernel knows nothing of Unix sockets and the PROXY protocol, and brings what comes from "
        "trusted proxies to one worker first. auto: the kernel where it can serve all alike, so only with "
        "--client-header off or nobody in forwarded_allow_ips, which by default names this machine's own proxies; "
        "else the listener.",
        flag="--router",
    ),
    Number(
        name="queue_size",
        type=int,
        low=0,
        high=1_000_000,
        default=2048,
        unit="connections",
        help="How many connections may wait in the listener for one busy worker, beside those in its channel; "
        "the next ones get 503.",
        flag="--queue-size",
    ),
    Number(
        name="failover_seconds",
        type=float,
        low=0,
        high=86400,
        default=5.0,
        unit="seconds",
        help="How long a slot may be without a worker before its clients go to other slots, until it is back.",
        flag="--failover",
    ),
    Number(
        name="head_seconds",
        type=float,
        low=0.1,
        high=3600,
        default=10.0,
        unit="seconds",
        help="How long a client may take to send a whole request head before it gets 408; "
        "one that sends nothing, or does not finish its TLS handshake, is just closed.",
        flag="--head-timeout",
    ),
    Number(
        name="message_bytes",
        type=int,
        low=0,
        high=2**31 - 1,
        default=0,
        unit="bytes",
        help="The largest WebSocket message taken, larger ones end with close code 1009. "
        "0: the Engine.IO server's max_http_buffer_size, or 1000000 if the app has none.",
        flag="--message-bytes",
    ),
    Choice(
        name="client_header",
        noun="HEADER",
        expected="the name of a header field without underscores, or off",
        check=_header_name,
        default="X-Forwarded-For",
        unit="header field",
        help="Where a proxy that forwarded_allow_ips names, or the peer on a Unix socket, says who its client is; "
        "Forwarded is read as in RFC 7239. off: nothing is read, and all its clients share a worker.",
        flag="--client-header",
    ),
    Choice(
        name="client_hop",
        noun="HOP",
        expected="first, last, or a whole number from 1 to 32",
        check=_hop,
        default="first",
        unit="entry",
        help="Which of the header's entries is the client: the first, the last, or the Nth from the end, behind "
        "N proxies that each add one. Where a proxy appends to what clients send, the first can be forged; "
        "all that it gives is a choice of worker.",
        flag="--client-hop",
    ),
    Number(
        name="bus",
        type=int,
        low=0,
        high=1,
        default=1,
        unit="1 or 0",
        help="Whether what the app's Socket.IO server emits reaches the clients of all workers. "
        "0: there is no bus, and each worker has its own clients only.",
        flag="--bus",
    ),
    Choice(
        name="bus_socket",
        noun="PATH",
        expected="an absolute path of at most 107 bytes, or off",
        check=_path,
        default=OFF,
        unit="Unix socket",
        help="Where other processes of this machine may emit to the clients of all workers "
        "(sticky-session emit, ClusterManager(write_only=True)). off: nobody but the workers may.",
        flag="--bus-socket",
    ),
    Choice(
        name="bus_socket_mode",
        noun="MODE",
        expected="three octal digits, such as '660'",
        check=_mode,
        default="600",
        # Python's 0o660 is 432, which are octal digits, too, and would let everybody in.
        only_text=True,
        unit="permissions",
        help="Who may use the bus socket, as in chmod: 600 is this user alone, 660 the group, too.",
        flag="--bus-socket-mode",
    ),
)


@dataclass(frozen=True)
class Options:
    """The values of all our options; the fields are those of :data:`OPTIONS`."""

    partitions: int
    seed: int
    ipv4_prefix: int
    ipv6_prefix: int
    router: str
    queue_size: int
    failover_seconds: float
    head_seconds: float
    message_bytes: int
    client_header: str
    client_hop: str
    bus: int
    bus_socket: str
    bus_socket_mode: str

    def header(self) -> ClientHeader:
        """The header that tells the client, and which of its entries does."""
        return ClientHeader(self.client_header, parse_hop(self.client_hop))

    @classmethod
    def collect(cls, lookup: Callable[[Option], tuple[object, str] | None]) -> Options:
        """Make the values from ``lookup(option)``, which gives a value and its origin, or None.

        :raises OptionError: a value can't be used
        """
        values: dict[str, Any] = {}
        for option in OPTIONS:
            found = lookup(option)
            values[option.name] = option.default if found is None else option.parse(*found)
        return cls(**values)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Options:
        """Read the ``STICKY_SESSION_*`` variables.

        :raises OptionError: a value can't be used, or a variable names no option of ours
        """
        known = {option.environment for option in OPTIONS}
        for name in environ:
            if name.startswith("STICKY_SESSION_") and name not in known:
                raise OptionError(f"{name}: there is no such option; expected one of {', '.join(sorted(known))}")

        def lookup(option: Option) -> tuple[object, str] | None:
            value = environ.get(option.environment)
            return None if value is None else (value, option.environment)

        return cls.collect(lookup)


if tuple(option.name for option in OPTIONS) != tuple(field.name for field in fields(Options)):
    raise AssertionError("OPTIONS and the fields of Options differ")
