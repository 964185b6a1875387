"""Our options as gunicorn settings."""

from __future__ import annotations

from pathlib import Path
from socket import AF_INET, AF_UNIX
from typing import Any

import pytest
from gunicorn.config import Config, make_settings

from sticky_session import OptionError
from sticky_session.config import OPTIONS, Number, Option
from sticky_session.generation import Bind
from sticky_session.settings import SECTION, StickyConfig, check_settings, kernel_obstacle, options_of, warnings

OTHERS = {
    "router": "auto",
    "client_header": "X-Real-IP",
    "client_hop": "2",
    "bus_socket": "/run/bus.sock",
    "bus_socket_mode": "660",
}
each_option = pytest.mark.parametrize("option", OPTIONS, ids=[option.name for option in OPTIONS])


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that the tests run in has no say."""
    for option in OPTIONS:
        monkeypatch.delenv(option.environment, raising=False)
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)


def parse(*flags: str) -> StickyConfig:
    """A configuration as the command line makes it."""
    cfg = StickyConfig(prog="test")
    for name, value in vars(cfg.parser().parse_args(flags)).items():
        if value is not None and name in cfg.settings:
            cfg.set(name, value)
    return cfg


def test_defaults() -> None:
    """Without anything said every option has its default."""
    assert options_of(StickyConfig()) == options_of(Config())


def other(option: Option) -> Any:
    """A value that is not the default."""
    if isinstance(option, Number):
        return option.type(option.high if option.default != option.high else option.low)
    return OTHERS[option.name]


@each_option
def test_flag(option: Option) -> None:
    """Every option has its flag."""
    value = other(option)
    assert getattr(options_of(parse(option.flag, f"{value}")), option.name) == value


def test_no_bus() -> None:
    """The bus has a flag that turns it off."""
    assert options_of(parse("--no-bus")).bus == 0
    assert options_of(parse()).bus == 1


@each_option
def test_environment(option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option has its variable, at our own doors and under plain gunicorn."""
    monkeypatch.setenv(option.environment, str(other(option)))
    assert getattr(options_of(StickyConfig()), option.name) == other(option)
    assert getattr(options_of(Config()), option.name) == other(option)


@each_option
def test_configuration_file(option: Option) -> None:
    """Every option is a setting, which a configuration file can set to a number or text."""
    for value in (other(option), str(other(option))):
        cfg = StickyConfig()
        cfg.set(option.setting, value)
        assert getattr(options_of(cfg), option.name) == other(option)


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag is stronger than a variable."""
    monkeypatch.setenv("STICKY_SESSION_SEED", "1")
    assert options_of(parse("--seed", "2")).seed == 2
    assert options_of(parse()).seed == 1


@each_option
def test_bad_setting(option: Option) -> None:
    """A setting that can't be used is refused when it is set, with the flag's name."""
    with pytest.raises(OptionError, match=f"^{option.flag}=no sense: expected"):
        StickyConfig().set(option.setting, "no sense")


def test_help() -> None:
    """The help groups our flags apart from gunicorn's, each with its unit and variable."""
    _, _, sections = StickyConfig(prog="test").parser().format_help().partition("\noptions:\n")
    gunicorns, heading, ours = sections.partition(f"\n{SECTION}:\n")
    assert heading
    assert "--sticky" not in gunicorns
    assert "--bind" in gunicorns
    words = " ".join(ours.split())
    for option in OPTIONS:
        assert option.flag in words
        assert f"({option.unit}; {option.environment})" in words


def test_gunicorn_is_left_alone() -> None:
    """gunicorn's own configurations in the same process don't get our settings."""
    StickyConfig()
    assert not [name for name in make_settings() if name.startswith("sticky")]
    assert not [name for name in Config().settings if name.startswith("sticky")]


def test_parser_leaves_settings(tmp_path: Path) -> None:
    """Making a parser loses no setting, gunicorn's or ours."""
    cfg = StickyConfig(prog=str(tmp_path))
    before = set(cfg.settings)
    cfg.parser()
    assert set(cfg.settings) == before


@pytest.mark.parametrize(("workers", "partitions"), [(0, 1024), (3, 2), (1025, 1024)])
def test_check_workers(workers: int, partitions: int) -> None:
    """A number of workers that no ring can have is an OptionError."""
    cfg = parse("--workers", str(workers), "--partitions", str(partitions))
    with pytest.raises(OptionError, match=f"workers={workers}"):
        check_settings(cfg)


def test_check_workers_passes() -> None:
    """As many workers as partitions are all right."""
    check_settings(parse("--workers", "7", "--partitions", "7"))


TLS = ("--certfile", "cert.pem", "--keyfile", "key.pem")


@pytest.mark.parametrize(
    "flags",
    [
        ("--forwarded-allow-ips", "192.0.2.1"),
        ("--forwarded-allow-ips", "*"),
        ("--client-header", "X-Real-IP"),
    ],
)
def test_tls_and_header(flags: tuple[str, ...]) -> None:
    """The listener can't read an encrypted header: who asks for it is told the ways out."""
    with pytest.raises(OptionError, match=r"End TLS in the proxy, .* PROXY protocol"):
        check_settings(parse(*TLS, *flags))


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--forwarded-allow-ips", ""),
        ("--forwarded-allow-ips", "127.0.0.1"),
        ("--proxy-protocol", "--forwarded-allow-ips", "192.0.2.1"),
        ("--client-header", "off", "--forwarded-allow-ips", "192.0.2.1"),
    ],
)
def test_tls_without_header(flags: tuple[str, ...]) -> None:
    """TLS with gunicorn's defaults or less, with the PROXY protocol, or with the header expressly off is fine."""
    check_settings(parse(*TLS, *flags))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), 0),
        (("--proxy-protocol",), 0),
        (("--client-header", "off"), 1),
        (("--client-header", "off", "--proxy-protocol"), 0),
        (TLS, 1),
    ],
)
def test_warning_of_a_unix_socket(flags: tuple[str, ...], expected: int) -> None:
    """Where nobody says who the clients on a Unix socket are, one line tells that they all share a worker."""
    binds = [
        Bind(AF_UNIX, "/run/app.sock", for_bus=False),
        Bind(AF_INET, ("127.0.0.1", 80), for_bus=False),
        Bind(AF_UNIX, "/run/bus.sock", for_bus=True),
    ]
    found = list(warnings(parse(*flags), binds))
    assert len(found) == expected
    assert all("/run/app.sock" in line for line in found)


@pytest.mark.parametrize(
    ("flags", "obstacle"),
    [
        (("--bind", "unix:/run/app.sock"), "bind=unix:/run/app.sock: .* use the listener"),
        (("--proxy-protocol",), "proxy_protocol=auto: .* use the listener"),
        (("--reuse-port",), "reuse_port: .* use the listener"),
        (("--partitions", "65536", "--workers", "5"), "partitions=65536: expected at most 1 workers; .* the listener"),
    ],
)
def test_kernel_cannot_route(flags: tuple[str, ...], obstacle: str) -> None:
    """Who asks for the kernel where it can't route is told why, and what to do; auto leaves it to the listener."""
    with pytest.raises(OptionError, match=f"router=kernel: {obstacle}"):
        check_settings(parse("--router", "kernel", *flags))
    automatic = parse("--router", "auto", "--client-header", "off", *flags)
    check_settings(automatic)
    assert kernel_obstacle(automatic, options_of(automatic)) is not None


@pytest.mark.parametrize(
    ("flags", "router"),
    [
        ((), "listener"),
        (("--client-header", "X-Real-IP"), "listener"),
        (("--forwarded-allow-ips", "192.0.2.1"), "listener"),
        (("--client-header", "off"), "kernel"),
        (("--forwarded-allow-ips", ""), "kernel"),
        (TLS, "kernel"),
    ],
)
def test_automatic_router(flags: tuple[str, ...], router: str) -> None:
    """The kernel routes by itself where no header counts; gunicorn's defaults trust this machine's own proxies."""
    cfg = parse("--router", "auto", *flags)
    obstacle = kernel_obstacle(cfg, options_of(cfg))
    assert (obstacle is None) is (router == "kernel")
    asked = parse("--router", "kernel", *flags)
    assert kernel_obstacle(asked, options_of(asked)) is None
