"""The example chat, as ``make serve`` starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import socketio

from harness import Server, get

CHAT = Path(__file__).parent.parent.parent / "examples" / "chat"


@pytest.fixture(scope="module")
def chat() -> Any:
    with Server("app:app", door="serve", workers=2, cwd=CHAT) as server:
        yield server


def test_page(chat: Server) -> None:
    """The page and all it loads are served."""
    page = get(chat.port, "/")
    assert page.status == 200
    assert b"/static/socket.io.min.js" in page.body
    for path in ("/static/socket.io.min.js", "/static/chat.js", "/static/chat.css"):
        assert get(chat.port, path).status == 200


@pytest.mark.parametrize("transport", ["polling", "websocket"])
def test_message(chat: Server, transport: str) -> None:
    """What one participant says reaches the others on the worker; a message without text is refused."""
    url = f"http://127.0.0.1:{chat.port}"
    with socketio.SimpleClient() as listener, socketio.SimpleClient() as speaker:
        listener.connect(url, transports=[transport])
        speaker.connect(url, transports=[transport])
        assert speaker.call("say", {"name": "Ada", "text": "hello"}, timeout=20) == {"ok": True}
        heard = {}
        while "said" not in heard:
            name, *data = listener.receive(timeout=20)
            heard[name] = data
        assert (heard["said"][0]["name"], heard["said"][0]["text"]) == ("Ada", "hello")
        assert not speaker.call("say", {"name": "Ada", "text": " "}, timeout=20)["ok"]
