"""Our options as gunicorn settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from gunicorn.config import Config, make_settings

from sticky_session import OptionError
from sticky_session.config import OPTIONS, Option
from sticky_session.settings import SECTION, StickyConfig, check_settings, options_of

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


@each_option
def test_flag(option: Option) -> None:
    """Every option has its flag."""
    value = option.type(option.high)
    assert getattr(options_of(parse(option.flag, f"{value}")), option.name) == value


@each_option
def test_environment(option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option has its variable, at our own doors and under plain gunicorn."""
    monkeypatch.setenv(option.environment, str(option.type(option.high)))
    assert getattr(options_of(StickyConfig()), option.name) == option.high
    assert getattr(options_of(Config()), option.name) == option.high


@each_option
def test_configuration_file(option: Option) -> None:
    """Every option is a setting, which a configuration file can set to a number or text."""
    for value in (option.type(option.high), str(option.type(option.high))):
        cfg = StickyConfig()
        cfg.set(option.setting, value)
        assert getattr(options_of(cfg), option.name) == option.high


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag is stronger than a variable."""
    monkeypatch.setenv("STICKY_SESSION_SEED", "1")
    assert options_of(parse("--sticky-seed", "2")).seed == 2
    assert options_of(parse()).seed == 1


@each_option
def test_bad_setting(option: Option) -> None:
    """A setting that can't be used is refused when it is set, with the flag's name."""
    with pytest.raises(OptionError, match=f"^{option.flag}=nonsense: expected"):
        StickyConfig().set(option.setting, "nonsense")


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
    cfg = parse("--workers", str(workers), "--sticky-partitions", str(partitions))
    with pytest.raises(OptionError, match=f"workers={workers}"):
        check_settings(cfg)


def test_check_workers_passes() -> None:
    """As many workers as partitions are all right."""
    check_settings(parse("--workers", "7", "--sticky-partitions", "7"))


def test_proxy_protocol() -> None:
    """A setting of gunicorn's that isn't served yet is refused, not ignored."""
    with pytest.raises(OptionError, match="proxy_protocol"):
        check_settings(parse("--proxy-protocol"))
