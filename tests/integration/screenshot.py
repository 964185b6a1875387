"""Take the README's picture of the example chat: ``python tests/integration/screenshot.py [DIRECTORY]``.

By default that is ``docs/chat.png``; a directory also gets the dark page and the narrow one, to be looked at.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL

from browser import Browser
from chatters import Chatter, chat_page, chat_server, slot_of_browser
from harness import adopt_orphans
from midway import clients_of

WORKERS = 4
DOCS = Path(__file__).parent.parent.parent / "docs"
HERE = slot_of_browser(WORKERS)
OTHERS = [slot for slot in range(WORKERS) if slot != HERE]
TALK = [
    ("Grace", "Four workers, one room. Who is served by which?"),
    ("Linus", "Slot {slot} here. I stay on long-polling, and each of my requests finds its way back to process {pid}."),
    ("Margaret", "My worker was killed a moment ago, and here I am: the same slot {slot}, in the new process {pid}."),
    ("Grace", "And you all hear me, with no Redis anywhere."),
    ("Linus", "Loud and clear."),
]


def take(directory: Path, *, all_views: bool) -> None:
    with tempfile.TemporaryDirectory() as memory, ExitStack() as stack:
        server = stack.enter_context(chat_server(Path(memory), WORKERS))
        browser = stack.enter_context(Browser())

        def join(name: str, slot: int, room: str = "lobby", transport: str = "websocket") -> Chatter:
            (address,) = clients_of(slot, 1, workers=WORKERS)
            return stack.enter_context(Chatter(server.port, name, room, address=address, transports=[transport]))

        # What they say is true.
        mark = server.mark()
        os.kill(server.worker_pids[OTHERS[2]], SIGKILL)
        server.wait_for_worker(OTHERS[2], after=mark)
        chatters = {
            "Linus": join("Linus", OTHERS[0], transport="polling"),
            "Grace": join("Grace", OTHERS[1]),
            "Margaret": join("Margaret", OTHERS[2]),
        }
        join("Frances", OTHERS[1])
        join("Ken", OTHERS[0], "deploys")
        join("Barbara", OTHERS[1], "deploys")
        for name, text in TALK:
            chatters[name].say(text.format(**chatters[name].me))
        page = stack.enter_context(chat_page(browser, server.port, "Ada"))
        page.say("Hello from the last to come! I have read all of it.")
        page.wait_for_text(".mine", "Hello")
        page.tab.wait_for("document.querySelector('#state').dataset.transport === 'websocket'")
        grace_types = page.watch_for_text("#typing", "Grace is typing")
        chatters["Grace"].call("typing", typing=True)
        grace_types()
        page.tab.evaluate("document.activeElement.blur()")
        page.tab.screenshot(directory / "chat.png")
        if all_views:
            page.tab.prefer_dark(True)
            page.tab.screenshot(directory / "chat-dark.png")
            page.tab.resize(390, 844)
            page.tab.screenshot(directory / "chat-narrow-dark.png")
            page.tab.prefer_dark(False)
            page.tab.screenshot(directory / "chat-narrow.png")


if __name__ == "__main__":
    adopt_orphans()
    if sys.argv[1:]:
        take(Path(sys.argv[1]), all_views=True)
    else:
        take(DOCS, all_views=False)
