"""Every option of ours, defined once.

The environment variables, the flags of ``sticky-session serve``, gunicorn settings and the table in
the docs are all made from :data:`OPTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sticky_session.errors import OptionError


@dataclass(frozen=True)
class Option:
    """One option: its name, its bounds (both allowed), unit, default, and help text."""

    name: str
    type: type[int] | type[float]
    low: float
    high: float
    default: int | float
    unit: str
    help: str
    flag: str

    @property
    def environment(self) -> str:
        """The environment variable that sets the option."""
        return "STICKY_SESSION_" + self.flag.removeprefix("--sticky-").replace("-", "_").upper()

    @property
    def setting(self) -> str:
        """The name of the option as a gunicorn setting, also in gunicorn's configuration file."""
        return f"sticky_{self.name}"

    def parse(self, value: object, origin: str) -> int | float:
        """Turn text or a number into the option's value.

        :param origin: where the value came from, for the error message
        :raises OptionError: it is no such number, or out of bounds
        """
        try:
            number = self.type(str(value))
            if not self.low <= number <= self.high:
                raise ValueError
        except (TypeError, ValueError):
            kind = "a whole number" if self.type is int else "a number"
            raise OptionError(
                f"{origin}={value}: expected {kind} from {self.low} to {self.high} ({self.unit})"
            ) from None
        return number


OPTIONS: tuple[Option, ...] = (
    Option(
        name="partitions",
        type=int,
        low=1,
        high=65536,
        default=1024,
        unit="partitions",
        help="How many equal parts the ring has; the largest number of workers. "
        "Changing it moves most clients to another worker.",
        flag="--sticky-partitions",
    ),
    Option(
        name="seed",
        type=int,
        low=0,
        high=2**32 - 1,
        default=0,
        unit="32-bit number",
        help="Seed of the hash. Set a secret one if clients must not be able to aim at a worker "
        "by choosing their address.",
        flag="--sticky-seed",
    ),
    Option(
        name="ipv4_prefix",
        type=int,
        low=0,
        high=32,
        default=32,
        unit="bits",
        help="How many leading bits of an IPv4 address count: 24 keeps a whole /24 network on one worker.",
        flag="--sticky-ipv4-prefix",
    ),
    Option(
        name="ipv6_prefix",
        type=int,
        low=0,
        high=128,
        default=64,
        unit="bits",
        help="How many leading bits of an IPv6 address count: privacy addresses change within the /64.",
        flag="--sticky-ipv6-prefix",
    ),
    Option(
        name="queue_size",
        type=int,
        low=0,
        high=1_000_000,
        default=2048,
        unit="connections",
        help="How many connections may wait in the listener for one busy worker, beside those in its channel; "
        "the next ones get 503.",
        flag="--sticky-queue-size",
    ),
    Option(
        name="failover_seconds",
        type=float,
        low=0,
        high=86400,
        default=5.0,
        unit="seconds",
        help="How long a slot may be without a worker before its clients go to other slots, until it is back.",
        flag="--sticky-failover",
    ),
    Option(
        name="head_seconds",
        type=float,
        low=0.1,
        high=3600,
        default=10.0,
        unit="seconds",
        help="How long a client may take to send a whole request head before it gets 408; "
        "one that sends nothing, or does not finish its TLS handshake, is just closed.",
        flag="--sticky-head-timeout",
    ),
    Option(
        name="message_bytes",
        type=int,
        low=0,
        high=2**31 - 1,
        default=0,
        unit="bytes",
        help="The largest WebSocket message taken, larger ones end with close code 1009. "
        "0: the Engine.IO server's max_http_buffer_size, or 1000000 if the app has none.",
        flag="--sticky-message-bytes",
    ),
)


@dataclass(frozen=True)
class Options:
    """The values of all our options; the fields are those of :data:`OPTIONS`."""

    partitions: int
    seed: int
    ipv4_prefix: int
    ipv6_prefix: int
    queue_size: int
    failover_seconds: float
    head_seconds: float
    message_bytes: int

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
