"""The word to users who run behind a proxy without having said so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gunicorn.config import Config

from sticky_session.advice import PAUSE, SAMPLE, Advice
from sticky_session.config import Options
from sticky_session.slots import Claim

PROXY = "192.0.2.1"


class Log:
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str, *arguments: object) -> None:
        self.warnings.append(text % arguments)


@pytest.fixture
def said() -> Iterator[Claim]:
    """Nobody has said anything yet."""
    claim = Claim()
    yield claim
    claim.close()


def advise(said: Claim, log: Log, header: str = "X-Forwarded-For", **settings: Any) -> Advice:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return Advice(cfg, Options.from_environment({"STICKY_SESSION_CLIENT_HEADER": header}), said, log)


def request(number: int, header: str = "HTTP_X_FORWARDED_FOR") -> dict[str, str]:
    """The fields of a request of one of many clients."""
    return {"HTTP_HOST": "example", header: f"10.0.0.{number % 100}"}


def test_proxy(said: Claim) -> None:
    """It is said after a sample, once, with what to set, and then nothing is looked at any more."""
    log = Log()
    advice = advise(said, log, forwarded_allow_ips="127.0.0.1,10.1.0.0/16")
    for number in range(SAMPLE):
        assert advice.wanted
        assert not log.warnings
        advice.note(PROXY if number % 20 else "198.51.100.7", request(number))
    assert not advice.wanted
    [line] = log.warnings
    assert PROXY in line
    assert "X-Forwarded-For" in line
    assert f"--forwarded-allow-ips 127.0.0.1,10.1.0.0/16,{PROXY}" in line


def test_other_header(said: Claim) -> None:
    """Where the proxy uses another header than ours, that is to be set, too."""
    log = Log()
    advice = advise(said, log)
    for number in range(SAMPLE):
        advice.note(PROXY, request(number, "HTTP_X_REAL_IP"))
    assert "STICKY_SESSION_CLIENT_HEADER=X-Real-IP" in log.warnings[0]


@pytest.mark.parametrize("allowed", ["", "10.0.0.1"])
def test_flag(said: Claim, allowed: str) -> None:
    """The flag adds the proxy to those that are trusted, as IPv4 also where it looks like IPv6."""
    log = Log()
    advice = advise(said, log, forwarded_allow_ips=allowed)
    for number in range(SAMPLE):
        advice.note(f"::ffff:{PROXY}", request(number))
    assert log.warnings[0].endswith(f"--forwarded-allow-ips {allowed and allowed + ','}{PROXY}")


def test_tls(said: Claim) -> None:
    """Over TLS a header is no way out, and the PROXY protocol is."""
    log = Log()
    advice = advise(said, log, certfile="cert.pem")
    for number in range(SAMPLE):
        advice.note(PROXY, request(number))
    assert f"--proxy-protocol --proxy-allow-from {PROXY}" in log.warnings[0]
    assert "--forwarded-allow-ips" not in log.warnings[0]


@pytest.mark.parametrize(
    ("hosts", "clients", "with_header"),
    [
        (100, 100, SAMPLE),  # clients that come by themselves, and send the header as a joke
        (1, 1, SAMPLE),  # one client
        (1, 100, SAMPLE // 2),  # half of it comes without
    ],
)
def test_no_proxy(said: Claim, hosts: int, clients: int, with_header: int) -> None:
    """Nothing is said of what may be something else; after a pause it is looked at again."""
    log = Log()
    advice = advise(said, log)
    for number in range(SAMPLE):
        environ = request(number % clients) if number < with_header else {}
        advice.note(f"198.51.100.{number % hosts}", environ)
    assert advice.wanted
    for number in range(PAUSE):
        advice.note(PROXY, request(number))
    assert not log.warnings
    for number in range(SAMPLE):
        advice.note(PROXY, request(number))
    assert len(log.warnings) == 1


def test_only_one_worker_says_it(said: Claim) -> None:
    """All workers see it, and one line is enough."""
    log = Log()
    for advice in (advise(said, log), advise(said, log)):
        for number in range(SAMPLE):
            advice.note(PROXY, request(number))
        assert not advice.wanted
    assert len(log.warnings) == 1


def test_off(said: Claim) -> None:
    """Who has turned the header off, or uses the PROXY protocol, knows what they do."""
    assert not advise(said, Log(), header="off").wanted
    assert not advise(said, Log(), proxy_protocol="auto").wanted
