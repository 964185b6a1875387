"""The README's quick start, as it is written there."""

from __future__ import annotations

import re
from pathlib import Path
from signal import SIGTERM

from harness import Script, Server, get, wait_until
from midway import clients_of

README = Path(__file__).parent.parent.parent / "README.md"
WORKERS = 4


def code(name: str) -> str:
    """What the README has for a file."""
    found = re.search(rf"^```python\n# {re.escape(name)}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_a_broadcast_crosses_workers(tmp_path: Path) -> None:
    """What each of the workers emits reaches the client of one of them, once."""
    (tmp_path / "app.py").write_text(code("app.py"))
    addresses = [clients_of(slot, 1, workers=WORKERS)[0] for slot in range(WORKERS)]
    with Server("app:app", door="serve", workers=WORKERS, cwd=tmp_path) as server:
        assert ":8000" in code("hear.py")
        (tmp_path / "hear.py").write_text(code("hear.py").replace(":8000", f":{server.port}"))
        with Script(tmp_path / "hear.py") as client:

            def hears() -> bool:
                assert get(server.port, "/hello", addresses[0]).body == b"sent\n"
                return bool(client.find("from worker 0"))

            wait_until(hears, what="the client is connected")
            for slot in range(1, WORKERS):
                get(server.port, "/hello", addresses[slot])
                client.wait_for(rf"^\['hello', 'from worker {slot}'\]$")
            for slot in range(1, WORKERS):
                assert len(client.find(f"from worker {slot}")) == 1
            assert client.stop(SIGTERM) == -SIGTERM
