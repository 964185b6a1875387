"""Options: each defined once, and every wrong value refused with a line that helps."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_session import OptionError, Options
from sticky_session.config import OPTIONS, Choice, Number, Option

DEFAULTS = {option.name: option.default for option in OPTIONS}
BY_NAME = {option.name: option for option in OPTIONS}
NUMBERS = [option for option in OPTIONS if isinstance(option, Number)]
each_number = pytest.mark.parametrize("option", NUMBERS, ids=[option.name for option in NUMBERS])


def test_names() -> None:
    """The names that users write down are these."""
    assert [(option.name, option.flag, option.environment) for option in OPTIONS] == [
        ("partitions", "--partitions", "STICKY_SESSION_PARTITIONS"),
        ("seed", "--seed", "STICKY_SESSION_SEED"),
        ("ipv4_prefix", "--ipv4-prefix", "STICKY_SESSION_IPV4_PREFIX"),
        ("ipv6_prefix", "--ipv6-prefix", "STICKY_SESSION_IPV6_PREFIX"),
        ("router", "--router", "STICKY_SESSION_ROUTER"),
        ("queue_size", "--queue-size", "STICKY_SESSION_QUEUE_SIZE"),
        ("failover_seconds", "--failover", "STICKY_SESSION_FAILOVER"),
        ("head_seconds", "--head-timeout", "STICKY_SESSION_HEAD_TIMEOUT"),
        ("message_bytes", "--message-bytes", "STICKY_SESSION_MESSAGE_BYTES"),
        ("client_header", "--client-header", "STICKY_SESSION_CLIENT_HEADER"),
        ("client_hop", "--client-hop", "STICKY_SESSION_CLIENT_HOP"),
        ("bus", "--bus", "STICKY_SESSION_BUS"),
        ("bus_socket", "--bus-socket", "STICKY_SESSION_BUS_SOCKET"),
        ("bus_socket_mode", "--bus-socket-mode", "STICKY_SESSION_BUS_SOCKET_MODE"),
    ]


def test_defaults() -> None:
    """Without any variable every option has its default."""
    assert dataclasses.asdict(Options.from_environment({"PATH": "/bin"})) == DEFAULTS


@pytest.mark.parametrize("option", OPTIONS, ids=list(BY_NAME))
def test_definition(option: Option) -> None:
    """The default is one of the values, and of the type; help and unit are there."""
    assert option.convert(option.default) == option.default
    assert type(option.convert(option.default)) is type(option.default)
    assert option.help.endswith(".")
    assert option.unit
    assert option.setting == f"sticky_{option.name}"


@each_number
def test_bounds(option: Number) -> None:
    """Both bounds are allowed, and come out as the option's type."""
    for bound in (option.low, option.high):
        options = Options.from_environment({option.environment: f"{bound:.15g}"})
        value = getattr(options, option.name)
        assert value == bound
        assert isinstance(value, option.type)


@each_number
@pytest.mark.parametrize("value", ["", "x", "1,5", "0x10", "nan", "inf", "-inf", "1e999", "-1", "99999999999", "5x"])
def test_bad_value(option: Number, value: str) -> None:
    """A value that can't be used is one line with the variable, the value, what is expected, and the unit."""
    with pytest.raises(OptionError) as caught:
        Options.from_environment({option.environment: value})
    message = str(caught.value)
    assert message.startswith(f"{option.environment}={value}: expected a")
    assert option.unit in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("router", "Kernel", "kernel"),
        ("router", "auto", "auto"),
        ("client_header", "x-real-IP", "x-real-IP"),
        ("client_header", "Forwarded", "Forwarded"),
        ("client_header", "OFF", "off"),
        ("client_hop", "Last", "last"),
        ("client_hop", "2", "2"),
        ("client_hop", "32", "32"),
        ("bus_socket", "/run//app/../bus", "/run/bus"),
        ("bus_socket", "/" + "x" * 106, "/" + "x" * 106),
        ("bus_socket", "Off", "off"),
        ("bus_socket_mode", "660", "660"),
    ],
)
def test_word(name: str, given: str, value: str) -> None:
    """Words come out in one spelling."""
    assert getattr(Options.from_environment({BY_NAME[name].environment: given}), name) == value


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("router", "bpf"),
        ("client_header", ""),
        ("client_header", "X-Real-IP:"),
        ("client_header", "X Real IP"),
        ("client_header", "X_Real_IP"),
        ("client_hop", ""),
        ("client_hop", "second"),
        ("client_hop", "0"),
        ("client_hop", "33"),
        ("client_hop", "-1"),
        ("bus_socket", ""),
        ("bus_socket", "/"),
        ("bus_socket", "run/bus"),
        ("bus_socket", "/" + "ä" * 54),
        ("bus_socket_mode", "800"),
        ("bus_socket_mode", "0600"),
        ("bus_socket_mode", "rw"),
    ],
)
def test_bad_word(name: str, given: str) -> None:
    """A word that can't be used is one line with the variable, the value, and what is expected."""
    option = BY_NAME[name]
    assert isinstance(option, Choice)
    with pytest.raises(OptionError) as caught:
        Options.from_environment({option.environment: given})
    assert str(caught.value) == f"{option.environment}={given}: expected {option.expected} ({option.unit})"


@pytest.mark.parametrize("name", ["partitions", "queue_size", "message_bytes"])
def test_whole_numbers(name: str) -> None:
    """Half a partition is an error, not one partition or none."""
    with pytest.raises(OptionError, match="expected a whole number"):
        Options.from_environment({BY_NAME[name].environment: "1.5"})


@pytest.mark.parametrize(
    "name", ["STICKY_SESSION_", "STICKY_SESSION_WORKERS", "STICKY_SESSION_partitions", "STICKY_SESSION_HEAD_SECONDS"]
)
def test_unknown_variable(name: str) -> None:
    """A variable that names no option is an error that lists those there are: a typo must not go unnoticed."""
    with pytest.raises(OptionError, match=f"{name}: there is no such option.*STICKY_SESSION_PARTITIONS"):
        Options.from_environment({name: "1"})


def test_other_variables() -> None:
    """Variables of others, however similar, are none of our business."""
    Options.from_environment({"STICKY_SESSIONS": "x", "STICKY": "y", "MY_STICKY_SESSION_SEED": "z"})


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            option.name: st.integers(int(option.low) or 1, int(option.high))
            if option.type is int
            else st.floats(option.low, option.high)
            for option in NUMBERS
        },
    )
)
def test_collect(values: dict[str, float]) -> None:
    """Whatever within bounds is given as number or text arrives unchanged, and the rest has its default."""
    as_numbers = Options.collect(lambda option: (values[option.name], "x") if option.name in values else None)
    environ = {BY_NAME[name].environment: repr(value) for name, value in values.items()}
    assert dataclasses.asdict(as_numbers) == {**DEFAULTS, **values}
    assert Options.from_environment(environ) == as_numbers


def test_immutable() -> None:
    """Options are values: nobody can change them under another's feet."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options.from_environment({}).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", [0o660, 0o600, 660])
def test_mode_is_text(value: int) -> None:
    """Nobody can tell 0o660 from 432, whose digits would open the socket to everybody."""
    with pytest.raises(
        OptionError, match=f"sticky_bus_socket_mode={value}: expected three octal digits, such as '660'"
    ):
        BY_NAME["bus_socket_mode"].parse(value, "sticky_bus_socket_mode")
