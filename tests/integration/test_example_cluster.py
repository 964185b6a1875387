"""The example chat on several workers: what one of them is told reaches the participants of the others.

The page is a client of its own address, 127.0.0.1; the others are put on the slots that a test wants them on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGHUP, SIGKILL

import pytest

from browser import Browser
from chatters import (
    SECONDS,
    ChatPage,
    Chatter,
    NodeGuest,
    chat_page,
    chat_server,
    slot_of_browser,
)
from harness import Server
from midway import clients_of
from store import Person, Store

WORKERS = 3
HERE = slot_of_browser(WORKERS)
OTHER, THIRD = (slot for slot in range(WORKERS) if slot != HERE)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def chat(memory: Path) -> Iterator[Server]:
    with chat_server(memory, WORKERS) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def address_on(slot: int, number: int = 0) -> str:
    """An address that the slot serves, the one of this number among them; no page has it."""
    return clients_of(slot, number + 1, workers=WORKERS)[number]


@pytest.mark.parametrize("transport", ["polling", "websocket"])
def test_everybody_hears_everybody(chat: Server, browser: Browser, transport: str) -> None:
    """On every worker participants see all the others with their slots and processes, and hear what they say."""
    room = f"all by {transport}"
    query = f"&room={room}".replace(" ", "+") + ("&transports=polling" if transport == "polling" else "")
    with ExitStack() as stack:
        page = stack.enter_context(chat_page(browser, chat.port, "Page", query))
        chatters = [
            stack.enter_context(
                Chatter(chat.port, f"Python {slot}", room, address=address_on(slot), transports=[transport])
            )
            for slot in range(WORKERS)
        ]
        guests = [
            stack.enter_context(
                NodeGuest(chat.port, f"Node {slot}", room, address=address_on(slot, 1), transports=[transport])
            )
            for slot in range(WORKERS)
        ]
        pids = chat.worker_pids
        assert (page.slot, page.pid) == (HERE, pids[HERE])
        for slot in range(WORKERS):
            for participant in (chatters[slot], guests[slot]):
                assert (participant.me["slot"], participant.me["pid"]) == (slot, pids[slot])
            page.wait_for_person(f"Python {slot}", slot, pids[slot])
            page.wait_for_person(f"Node {slot}", slot, pids[slot])

        expected = set()
        for slot, chatter in enumerate(chatters):
            chatter.say(f"Node {slot}: say Node on slot {slot}")
            expected |= {f"Node {slot}: say Node on slot {slot}", f"Node on slot {slot}"}
        page.say("from the page")
        expected.add("from the page")
        for text in expected:
            page.wait_for_message(text)
            for guest in guests:
                guest.wait_for_event("said", f'"text":"{text}"')
        for chatter in chatters:
            while set(chatter.texts()) != expected:
                chatter.hear("said")
            assert len(chatter.texts()) == len(expected), "a message came twice"
        assert sorted(page.messages()) == sorted(expected)


def test_coming_and_going_is_seen_on_all_workers(chat: Server, browser: Browser) -> None:
    """Who joins, changes the name, goes to another room or disconnects does so for the participants of all workers."""
    with (
        chat_page(browser, chat.port, "Ada", "&room=doors") as page,
        Chatter(chat.port, "Linus", "doors", address=address_on(OTHER)) as linus,
    ):
        with NodeGuest(chat.port, "Grace", "doors", address=address_on(THIRD)) as grace:
            page.wait_for_text(".event", f"Grace joined on slot {THIRD}")
            linus.join("doors", name="Torvalds")
            page.wait_for_text(".event", "Linus is now Torvalds")
            page.say("Grace: go balcony")
            page.wait_for_text(".event", "Grace left")
            page.wait_for_text("#rooms", "balcony")
            assert linus.hear_of("left", "Grace")["people"][0]["name"] in ("Ada", "Torvalds")
            grace.wait_for_event("join", "balcony")
            mark = grace.mark()
            page.say("not for the balcony")
            linus.hear("said", text="not for the balcony")
            with Chatter(chat.port, "Ken", "balcony", address=address_on(HERE)) as ken:
                ken.say("nice up here")
                grace.wait_for_event("said", "nice up here", after=mark)
            assert "not for the balcony" not in "\n".join(grace.lines(mark))
        page.tab.wait_for("!document.querySelector('#rooms').textContent.includes('balcony')")
        assert page.people() in (["Ada", "Torvalds"], ["Torvalds", "Ada"])  # by slot


def test_typing_is_seen_on_all_workers(chat: Server, browser: Browser) -> None:
    """The page shows who types on another worker, and is shown to type there."""
    with (
        chat_page(browser, chat.port, "Ada", "&room=keys") as page,
        NodeGuest(chat.port, "Grace", "keys", address=address_on(OTHER)) as grace,
    ):
        grace_types = page.watch_for_text("#typing", "Grace is typing…")
        page.say("Grace: type")
        grace_types()
        page.say("Grace: say that was it")
        page.tab.wait_for("document.querySelector('#typing').textContent === ''")
        page.wait_for_message("that was it")
        mark = grace.mark()
        page.tab.type("hm")
        grace.wait_for_event("typing", "true", after=mark)


def test_one_order_for_all(chat: Server, browser: Browser) -> None:
    """Messages that workers are told at the same time are in the same order in the history of all, and in the page."""
    with ExitStack() as stack:
        page = stack.enter_context(chat_page(browser, chat.port, "Ada", "&room=order"))
        chatters = [
            stack.enter_context(Chatter(chat.port, f"{slot}", "order", address=address_on(slot)))
            for slot in range(WORKERS)
        ]
        for number in range(15):
            for chatter in chatters:
                chatter.emit("say", {"text": f"{number} from slot {chatter.name}"})
        count = 15 * WORKERS
        page.tab.wait_for(f"document.querySelectorAll('.text').length === {count}")
        histories = []
        for slot in range(WORKERS):
            with Chatter(chat.port, "newcomer", "order", address=address_on(slot, 1)) as newcomer:
                histories.append([said["text"] for said in newcomer.answer["history"]])
        assert len(histories[0]) == count
        assert all(history == histories[0] for history in histories)
        assert page.messages() == histories[0]


def test_a_worker_dies(chat: Server, browser: Browser) -> None:
    """The page of a killed worker comes back and has all that was said meanwhile; the others see it go and come."""
    page = ChatPage(browser, chat.port, "Ada", "&room=phoenix")
    with (
        NodeGuest(chat.port, "Grace", "phoenix", address=address_on(THIRD)) as grace,
        Chatter(chat.port, "Linus", "phoenix", address=address_on(OTHER)) as linus,
    ):
        page.wait_for_person("Linus", OTHER, chat.worker_pids[OTHER])
        mark, heard = chat.mark(), grace.mark()
        old = page.pid
        os.kill(old, SIGKILL)
        linus.say("while you were away")
        lost = linus.hear_of("lost", "Ada")
        assert lost["who"]["pid"] == old
        new = chat.wait_for_worker(HERE, after=mark)
        assert linus.hear_of("joined", "Ada")["who"]["pid"] == new
        grace.wait_for_event("people", '"what":"joined".*"name":"Ada"', after=heard)
        page.wait_for_text(".event", f"You are back on slot {HERE}")
        page.wait_for_message("while you were away")
        page.say("Grace: say welcome back")
        page.wait_for_message("welcome back")
        linus.hear("said", text="welcome back")
        assert page.messages() == linus.texts()
        assert page.messages() == ["while you were away", "Grace: say welcome back", "welcome back"]
        assert not grace.find(r'^\["disconnect"'), "a worker that lives lost its client"
    page.tab.close()


def test_another_worker_dies(chat: Server, browser: Browser) -> None:
    """The page stays connected while the worker of others is killed. Those who don't come back are taken out of the
    lists, though nobody else does a thing; those who do are in another process.
    """
    with (
        chat_page(browser, chat.port, "Ada", "&room=ashes") as page,
        Chatter(chat.port, "Linus", "ashes", address=address_on(OTHER)),
        Chatter(chat.port, "Ken", "attic", address=address_on(OTHER, 1)),
        Chatter(chat.port, "Grace", "ashes", address=address_on(THIRD)) as grace,
    ):
        old = chat.worker_pids[OTHER]
        page.wait_for_person("Linus", OTHER, old)
        page.wait_for_person("Grace", THIRD, chat.worker_pids[THIRD])
        page.wait_for_text("#rooms", "attic")
        mark = chat.mark()
        os.kill(old, SIGKILL)
        page.wait_for_text(".event", f"Linus was cut off: process {old} of slot {OTHER} has ended")
        assert grace.hear_of("lost", "Linus")["who"]["pid"] == old
        page.tab.wait_for("!document.querySelector('#rooms').textContent.includes('attic')")
        assert sorted(page.people()) == ["Ada", "Grace"]
        new = chat.wait_for_worker(OTHER, after=mark)
        with Chatter(chat.port, "Linus", "ashes", address=address_on(OTHER)) as linus:
            page.wait_for_person("Linus", OTHER, new)
            linus.say("I am back")
            page.wait_for_message("I am back")
        assert "Connection lost" not in page.tab.evaluate("document.querySelector('#messages').textContent")


def test_lists_are_set_right(chat: Server, browser: Browser, memory: Path) -> None:
    """What nobody has told this worker's clients is soon in their lists: here, what another process has written."""
    store = Store(memory / "chat")
    ghost = Person("a sid", "Ghost", "cellar", None, os.getpid())
    with chat_page(browser, chat.port, "Ada", "&room=cellar") as page:
        page.tab.wait_for("document.querySelector('#count').textContent === '1'")
        store.arrive(ghost)
        page.tab.wait_for("document.querySelector('#count').textContent === '2'")
        assert sorted(page.people()) == ["Ada", "Ghost"]
        page.tab.wait_for("document.querySelector('#rooms [data-key=cellar] .count').textContent === '2'")
        store.depart(ghost.sid)
        page.tab.wait_for("document.querySelector('#count').textContent === '1'")
        assert page.people() == ["Ada"]


def test_a_reload(chat: Server, browser: Browser) -> None:
    """After a reload those who come back are on the same slots in the new processes; those who don't are gone."""
    page = ChatPage(browser, chat.port, "Ada", "&room=morning")
    with (
        NodeGuest(chat.port, "Grace", "morning", address=address_on(OTHER)) as grace,
        Chatter(chat.port, "Linus", "morning", address=address_on(THIRD)),
    ):
        page.wait_for_person("Linus", THIRD, chat.worker_pids[THIRD])
        mark = chat.mark()
        chat.signal(SIGHUP)
        chat.wait_for(r"Worker ready", SECONDS, count=WORKERS, after=mark)
        page.wait_for_text(".event", f"You are back on slot {HERE}")
        page.wait_for_person("Ada", HERE, chat.worker_pids[HERE])
        page.wait_for_person("Grace", OTHER, chat.worker_pids[OTHER])
        page.tab.wait_for("document.querySelector('#count').textContent === '2'")
        assert sorted(page.people()) == ["Ada", "Grace"]
        grace.wait_for(r'^\["join"', SECONDS, count=2)
        page.say("Grace: say good morning")
        page.wait_for_message("good morning")
    page.tab.close()
