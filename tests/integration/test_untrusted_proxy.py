"""The word to users who run behind a proxy without having said so, by a server that is."""

from __future__ import annotations

from harness import Client, Server
from sticky_session.advice import SAMPLE

# By gunicorn's default 127.0.0.1 is trusted, and no other address of this machine.
PROXY = "127.0.0.7"


def test_proxy_that_is_not_trusted() -> None:
    """One line says which address is to be trusted, and how; with that flag nothing is said and clients are spread."""
    with Server(workers=2) as server, Client(server.port, PROXY) as client:
        slots = set()
        for number in range(2 * SAMPLE):
            slots.add(client.get("/", {"X-Forwarded-For": f"10.0.0.{number % 50}"}).json()["slot"])
        assert len(slots) == 1
        line = server.wait_for(r"\[WARNING\] .* --forwarded-allow-ips (\S+)")
        assert len(server.find(r"\[WARNING\]")) == 1
    with Server(workers=2, args=("--forwarded-allow-ips", line[1])) as server, Client(server.port, PROXY) as client:
        slots = set()
        for number in range(2 * SAMPLE):
            slots.add(client.get("/", {"X-Forwarded-For": f"10.0.0.{number % 50}"}).json()["slot"])
        assert slots == {0, 1}
        assert not server.find(r"\[WARNING\]")
