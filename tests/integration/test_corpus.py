"""Every request of the corpus against our worker and against gevent's pywsgi, each on a connection of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from corpus import Case, Response, cases, differences, exchange, sections, tell
from harness import COMMANDS, Process, Server


class Pywsgi(Process):
    """gunicorn with gevent's pywsgi, and nothing of ours."""

    def __init__(self) -> None:
        command = [COMMANDS / "gunicorn", "-k", "gevent_pywsgi", "--no-control-socket", "--bind", "127.0.0.1:0"]
        super().__init__([*command, "witness:app"])

    def _wait_ready(self) -> None:
        self.wait_for("Booting worker with pid")


@pytest.fixture(scope="module")
def ours() -> Iterator[int]:
    """The port of our worker."""
    with Server("witness:app", workers=1, args=["--keep-alive", "60"]) as server:
        yield server.port


@pytest.fixture(scope="module")
def pywsgi() -> Iterator[int]:
    """The port of pywsgi's worker."""
    with Pywsgi() as server:
        yield server.port


@pytest.mark.parametrize("section", sections())
def test_ours(ours: int, section: str) -> None:
    """Our worker answers as the corpus says, and each answer says whether the connection stays."""
    wrong = []
    for case in sections()[section]:
        seen, responses = tell(case, exchange(ours, case))
        if (reduced := case.expects(case.ours, seen)) != case.ours:
            wrong.append(f"{case.name}: expected {case.ours}, got {reduced}")
        wrong += [f"{case.name}: {fault} in {each}" for each in responses for fault in faults(case, each, responses)]
    assert not wrong, "\n".join(wrong)


def faults(case: Case, response: Response, responses: list[Response]) -> Iterator[str]:
    """What is wrong with a response of ours, whatever it answers."""
    if response.status < 200:
        return
    if not response.values("date"):
        yield "no Date"
    if response.status == 204 and response.values("content-length"):
        yield "a Content-Length of nothing"
    if response.values("transfer-encoding") and response.values("content-length"):
        yield "two lengths"
    closes = response is responses[-1] and case.ours.outcome.endswith("close")
    if response.says_close != closes and not case.cut and not response.mark:
        yield "what Connection says is not true"


@pytest.mark.parametrize("section", sections())
def test_pywsgi(pywsgi: int, section: str) -> None:
    """pywsgi answers as ours does, or as the corpus says that it doesn't."""
    wrong = []
    for case in sections()[section]:
        expected = case.pywsgi or case.ours
        seen, _ = tell(case, exchange(pywsgi, case))
        if (reduced := case.expects(expected, seen)) != expected:
            wrong.append(f"{case.name}: expected {expected}, got {reduced}")
    assert not wrong, "\n".join(wrong)


def test_differences() -> None:
    """Every difference is one, has a defence, and no defence is without a case."""
    assert {case.because for case in cases() if case.pywsgi} == differences().keys()
    for case in cases():
        assert (case.pywsgi is None) == (case.because is None), case
        assert case.pywsgi != case.ours, case


def test_names() -> None:
    """Every case has a name of its own, and sends what no other sends."""
    named = Counter((case.section, case.name) for case in cases())
    assert [name for name, count in named.items() if count > 1] == []
    sent = Counter((case.pieces, case.cut) for case in cases())
    assert [case.name for case in cases() if sent[case.pieces, case.cut] > 1] == []
