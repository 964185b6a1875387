"""The example chat, as ``make serve`` starts it, on one worker; ``test_example_cluster.py`` has it on several."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import pytest

from browser import Browser
from chatters import CHAT, SECONDS, ChatPage, Chatter, NodeGuest, chat_page, chat_server
from harness import HOST, Script, Server, connect, free_port, get, wait_until

TAG = "<img src=x onerror='window.hurt = true'>"  # 40 characters
TAG_NAME = "<b onclick=alert(1)>"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with chat_server(tmp_path_factory.mktemp("chat")) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def is_list(event: str, data: dict[str, Any]) -> bool:
    """Whether it only says who is there, as it does now and then, and nothing has happened."""
    return event == "people" and "what" not in data


def worker_of(server: Server) -> int:
    """The pid of the one worker."""
    return server.worker_pids[0]


# --- the server ---------------------------------------------------------------------------------------------


def test_page(chat: Server) -> None:
    """The page and all it loads are served, and nothing from elsewhere may be loaded."""
    page = get(chat.port, "/")
    assert page.status == 200
    assert b"/static/socket.io.min.js" in page.body
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    for path in ("/static/socket.io.min.js", "/static/chat.js", "/static/chat.css"):
        assert get(chat.port, path).status == 200


@pytest.mark.parametrize("transport", ["polling", "websocket"])
def test_message(chat: Server, transport: str) -> None:
    """What one participant says reaches the others in the room, with the speaker's name and slot."""
    with (
        Chatter(chat.port, "Ada", f"talk {transport}", transports=[transport]) as listener,
        Chatter(chat.port, "Grace", f"talk {transport}", transports=[transport]) as speaker,
    ):
        speaker.say("  hello,\n all ")
        said = listener.hear("said")
        assert (said["name"], said["text"], said["slot"]) == ("Grace", "hello, all", 0)
        assert said["sid"] == speaker.me["sid"]


@pytest.mark.parametrize(
    "text", ["\N{GRINNING FACE}", "\U0001fae9", "!", "e\u0301", "\u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645"]
)
def test_all_that_is_seen_can_be_said(chat: Server, text: str) -> None:
    """An emoji, be it newer than this Python, is a message; marks and joiners that belong to letters stay."""
    with Chatter(chat.port, text, "scripts") as ada:
        ada.say(text)
        said = ada.hear("said")
        assert (said["name"], said["text"]) == (text, text)


def test_joining(chat: Server) -> None:
    """Who joins learns who is in the room and which process serves each; those in the room learn who came."""
    with Chatter(chat.port, "Ada", "hall") as ada, Chatter(chat.port, "Grace", "hall", address="127.1.1.9") as grace:
        assert grace.me == {"sid": grace.me["sid"], "name": "Grace", "room": "hall", "slot": 0, "pid": worker_of(chat)}
        assert [person["name"] for person in grace.answer["people"]] == ["Ada", "Grace"]
        told = ada.hear_of("joined", "Grace")
        assert told["who"] == grace.me
        assert told["people"] == [ada.me, grace.me]


def test_leaving(chat: Server) -> None:
    """Who goes to another room, or disconnects, is out of the room, and hears nothing of it any more."""
    with Chatter(chat.port, "Ada", "here") as ada, Chatter(chat.port, "Grace", "here") as grace:
        grace.join("there")
        assert ada.hear_of("left", "Grace")["people"] == [ada.me]
        ada.say("she is gone")
        with Chatter(chat.port, "Linus", "there") as linus:
            linus.say("hello")
            grace.hear("said", text="hello")
        assert grace.texts() == ["hello"]
        assert grace.hear_of("left", "Linus")["people"] == [grace.me]


def test_rooms(chat: Server) -> None:
    """Everybody learns of a new room and how many are in it, and that it is gone with its last participant."""
    with Chatter(chat.port, "Ada", "watching") as ada:

        def counts() -> dict[str, int]:
            return {room["room"]: room["people"] for room in ada.hear("rooms")["rooms"]}

        with Chatter(chat.port, "Grace", "brand new"):
            while "brand new" not in (rooms := counts()):
                pass
            assert rooms["brand new"] == 1
        while "brand new" in (rooms := counts()):
            pass
        assert rooms["watching"] == 1


def test_renaming(chat: Server) -> None:
    """Joining the same room under another name is a change of name, and nobody comes or goes."""
    with Chatter(chat.port, "Ada", "names") as ada, Chatter(chat.port, "Grace", "names") as grace:
        grace.join("names", name="Rear Admiral Hopper")
        told = ada.hear_of("renamed", "Rear Admiral Hopper")
        assert told["was"] == "Grace"
        assert [person["name"] for person in told["people"]] == ["Ada", "Rear Admiral Hopper"]
        whats = [data["what"] for event, data in ada.heard if event == "people" and not is_list(event, data)]
        assert whats == ["joined", "joined", "renamed"]


def test_typing(chat: Server) -> None:
    """The others in the room learn who types and who has stopped; oneself doesn't."""
    with Chatter(chat.port, "Ada", "keys") as ada, Chatter(chat.port, "Grace", "keys") as grace:
        for typing in (True, False):
            assert grace.call("typing", typing=typing) == {"ok": True}
            assert ada.hear("typing") == {"sid": grace.me["sid"], "room": "keys", "typing": typing}
        ada.say("done")
        grace.hear("said", text="done")
        assert "typing" not in [event for event, _ in grace.heard]


def test_history(chat: Server) -> None:
    """Who joins gets the room's last 50 messages, oldest first, and none of another room."""
    with (
        Chatter(chat.port, "Ada", "library") as ada,
        Chatter(chat.port, "Grace", "library") as grace,
        Chatter(chat.port, "Linus", "library") as linus,
        Chatter(chat.port, "Ken", "elsewhere") as ken,
    ):
        ken.say("not for the library")
        for number in range(54):
            (ada, grace, linus)[number % 3].say(f"message {number}")
        history = ken.join("library")["history"]
        assert [said["text"] for said in history] == [f"message {number}" for number in range(4, 54)]
        assert [said["id"] for said in history] == sorted(said["id"] for said in history)
        assert ken.join("elsewhere")["history"][0]["text"] == "not for the library"


def test_history_survives_the_worker(chat: Server) -> None:
    """After the worker is killed its participants are gone, and what was said is still there."""
    with Chatter(chat.port, "Ada", "memory") as ada, Chatter(chat.port, "Grace", "memory") as grace:
        ada.say("remember me")
        grace.hear("said")
        mark = chat.mark()
        os.kill(worker_of(chat), SIGKILL)
        new_pid = chat.wait_for_worker(0, after=mark)
    with Chatter(chat.port, "Linus", "memory") as linus:
        assert [said["text"] for said in linus.answer["history"]] == ["remember me"]
        assert linus.answer["people"] == [linus.me]
        assert linus.me["pid"] == new_pid


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("join", None),
        ("join", "lobby"),
        ("join", ["Ada", "lobby"]),
        ("join", {}),
        ("join", {"name": "Ada"}),
        ("join", {"name": "Ada", "room": ""}),
        ("join", {"name": " \t ", "room": "lobby"}),
        ("join", {"name": ["Ada"], "room": "lobby"}),
        ("join", {"name": "Ada", "room": {"$ne": 1}}),
        ("join", {"name": "A" * 25, "room": "lobby"}),
        ("join", {"name": "Ada", "room": "r" * 25}),
        ("join", {"name": "Ada\x00", "room": "lobby"}),
        ("join", {"name": "Ada", "room": b"lobby"}),
        ("join", {"name": "\u200b", "room": "lobby"}),
        ("join", {"name": "\uffff", "room": "lobby"}),
        ("join", {"name": "Ada", "room": "\u3164"}),
        ("say", None),
        ("say", 7),
        ("say", {"text": None}),
        ("say", {"text": 7}),
        ("say", {"text": "   "}),
        ("say", {"text": "x" * 501}),
        ("say", {"text": " " * 2001}),
        ("say", {"text": "bell \x07"}),
        ("say", {"text": "half of an emoji \ud83d"}),
        ("say", {"text": b"bytes"}),
        ("say", {"text": "\u200d \ufe0f \u2060"}),
        ("say", {"text": "\u0301\u0302"}),
        ("typing", {}),
        ("typing", {"typing": "yes"}),
        ("typing", {"typing": 1}),
        ("say", ("two", "arguments")),
        ("typing", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value)[:40],
)
def test_refusals(chat: Server, event: str, data: Any) -> None:
    """Data that aren't as they should be are refused with a reason, and nobody hears of them."""
    with Chatter(chat.port, "Ada", "strict") as ada, Chatter(chat.port, "Mallory", "strict") as mallory:
        ada.hear_of("joined", "Mallory")
        mark = len(ada.heard)
        answer = mallory.call_with(event, data)
        assert not answer["ok"]
        assert answer["why"]
        mallory.say("sorry")
        ada.hear("said", text="sorry")
        assert [event for event, data in ada.heard[mark:] if event != "rooms" and not is_list(event, data)] == ["said"]


@pytest.mark.parametrize("data", [("say", {"text": "hello"}), ("typing", {"typing": True})], ids=lambda data: data[0])
def test_joining_comes_first(chat: Server, data: tuple[str, dict[str, Any]]) -> None:
    """Who is in no room can't say anything."""
    with Chatter(chat.port, "Mallory", room="") as mallory:
        assert mallory.call_with(*data) == {"ok": False, "why": "join a room first"}


def spam(mallory: Chatter, *between: Any) -> list[dict[str, Any]]:
    """Say 300 things without a pause, with an event before each, if one is given; returns the answers."""
    answers: list[dict[str, Any]] = []
    all_in = threading.Event()

    def answered(answer: dict[str, Any]) -> None:
        answers.append(answer)
        if len(answers) == 300:
            all_in.set()

    for number in range(300):
        if between:
            mallory.emit(*between)
        mallory.emit("say", {"text": f"spam {number}"}, answered)
    assert all_in.wait(SECONDS)
    return answers


def test_too_fast(chat: Server) -> None:
    """A client that sends too much at once has the rest refused, and others can go on."""
    with Chatter(chat.port, "Ada", "busy") as ada, Chatter(chat.port, "Mallory", "busy") as mallory:
        answers = spam(mallory)
        assert sum(answer["ok"] for answer in answers) >= 20
        assert {answer["why"] for answer in answers if not answer["ok"]} == {"too many events; wait a few seconds"}
        ada.say("still here")
        ada.hear("said", text="still here")


@pytest.mark.parametrize("data", [(), {}, "x", ("x", "y")], ids=repr)
@pytest.mark.parametrize("event", ["connect", "disconnect"])
def test_connecting_is_not_for_clients_to_tell(chat: Server, event: str, data: Any) -> None:
    """A client's event that is called like one of Socket.IO's own changes nothing: neither its rate nor its room."""
    with Chatter(chat.port, "Ada", "forged") as ada, Chatter(chat.port, "Mallory", "forged") as mallory:
        ada.hear_of("joined", "Mallory")
        answers = spam(mallory, event, data)
        assert {answer.get("why") for answer in answers} == {None, "too many events; wait a few seconds"}
        wait_until(lambda: mallory.call("typing", typing=False)["ok"], what="it may send again")
        wait_until(lambda: mallory.call("join", name="Mallory", room="elsewhere")["ok"], what="it is in another room")
        assert ada.hear_of("left", "Mallory")["people"] == [ada.me]
        ada.say("not for Mallory")
        ada.hear("said", text="not for Mallory")
        with Chatter(chat.port, "Linus", "elsewhere") as linus:
            linus.say("hello")
            mallory.hear("said", text="hello")
        assert "not for Mallory" not in mallory.texts()


def test_a_room_is_nobodys_private_channel(chat: Server) -> None:
    """A room named like another client's session id doesn't reach that client."""
    with Chatter(chat.port, "Ada", "home") as ada, Chatter(chat.port, "Mallory", "home") as mallory:
        mallory.join(ada.me["sid"])
        mallory.say("psst")
        mallory.hear("said", text="psst")
        ada.say("nothing heard")
        ada.hear("said", text="nothing heard")
        assert ada.texts() == ["nothing heard"]


def test_guests(tmp_path: Path) -> None:
    """``guests.py`` brings company to the lobby, which answers when spoken to and leaves with Ctrl-C."""
    with chat_server(tmp_path) as server, Script(CHAT / "guests.py", f"http://127.0.0.1:{server.port}") as guests:
        with Chatter(server.port, "Ada") as ada:
            here = ada.answer["people"]
            while len(here) < 5:
                here = ada.hear("people")["people"]
            assert {person["name"] for person in here} == {"Ada", "Grace", "Linus", "Margaret", "Ken"}
            ada.say("anybody here?")
            guest = ada.hear("typing", typing=True)["sid"]
            assert f"slot 0, process {worker_of(server)}" in ada.hear("said", sid=guest)["text"]
            assert guests.stop(SIGINT) == 0
            while len(here) > 1:
                here = ada.hear("people", what="left")["people"]


def test_guests_wait_for_a_server(tmp_path: Path) -> None:
    """``guests.py`` says that it waits while there is no server, and comes once there is; Ctrl-C ends it meanwhile."""
    port = free_port()
    url = f"http://{HOST}:{port}"
    with Script(CHAT / "guests.py", url) as guests:
        guests.wait_for(f"^waiting for {url}; Ctrl-C ends it$", SECONDS)
        assert guests.stop(SIGINT) == 0
        assert len(guests.lines()) == 1
    with Script(CHAT / "guests.py", url) as guests:
        guests.wait_for("^waiting", SECONDS)
        with Script(CHAT / "app.py", env={"PORT": str(port), "CHAT_DATABASE": str(tmp_path / "chat")}) as script:
            guests.wait_for("^Grace, Linus, Margaret, Ken are in the lobby$", SECONDS)
            assert guests.stop(SIGINT) == 0
            assert len(guests.lines()) == 2
            assert script.stop(SIGTERM) == -SIGTERM


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    """The start fails with one line that says what was given, on workers and in a single process."""
    (tmp_path / "letter").write_text("Dear SQLite, this is no database.")
    for path, why in [(tmp_path / "nowhere" / "chat", "unable to open"), (tmp_path / "letter", "not a database")]:
        env, complaint = {"CHAT_DATABASE": str(path)}, f"CHAT_DATABASE='{path}': .*{why}"
        with (
            Server("app:app", door="serve", workers=3, cwd=CHAT, env=env, ready=False) as server,
            Script(CHAT / "app.py", env={"PORT": "0", **env}) as script,
        ):
            for started in (server, script):
                assert started.wait() != 0
                assert len(started.find(complaint)) == 1
                assert not started.find("Traceback")
            assert len(script.lines()) == 1


def test_single_process(tmp_path: Path, browser: Browser) -> None:
    """``python app.py`` is the same chat without workers: it says that there is no slot, and all else is as ever."""
    port = free_port()

    def serves() -> bool:
        with contextlib.suppress(ConnectionRefusedError), connect(port):
            return True
        return False

    with Script(CHAT / "app.py", env={"PORT": str(port), "CHAT_DATABASE": str(tmp_path / "chat")}) as script:
        wait_until(serves, what=f"{HOST}:{port} is served")
        with chat_page(browser, port, "Ada") as page:
            with NodeGuest(port, "Grace") as grace, Chatter(port, "Linus", transports=["polling"]) as linus:
                assert page.pid == grace.me["pid"] == linus.me["pid"] == script.pid
                page.wait_for_text(".worker-group .slot", "no slot")
                grace_types = page.watch_for_text("#typing", "Grace is typing…")
                page.say("Grace: type")
                grace_types()
                linus.say("Grace: say hello")
                page.wait_for_message("hello")
                linus.hear("said", text="hello")
                assert page.messages() == linus.texts()
            page.wait_for_text(".event", "Linus left")
            page.tab.wait_for("document.querySelector('#count').textContent === '1'")
            assert page.people() == ["Ada"]
        assert script.stop(SIGTERM) == -SIGTERM


# --- the page -----------------------------------------------------------------------------------------------


def test_page_shows_who_is_served_by_which_worker(chat: Server, browser: Browser) -> None:
    """The page shows its own slot and process, and those of participants with other clients, as they come and go."""
    pid = worker_of(chat)
    with chat_page(browser, chat.port, "Ada") as page:
        assert (page.slot, page.pid) == (0, pid)
        with NodeGuest(chat.port, "Grace"), Chatter(chat.port, "Linus"):
            for name in ("Ada", "Grace", "Linus"):
                page.wait_for_person(name, 0, pid)
            page.wait_for_text(".event", "Grace joined on slot 0")
        for name in ("Grace", "Linus"):
            page.wait_for_text(".event", f"{name} left")
        assert page.people() == ["Ada"]


def test_page_talks_with_other_clients(chat: Server, browser: Browser) -> None:
    """What the page says reaches a Python and a Node client; what they say is in the page, in the same order."""
    with (
        chat_page(browser, chat.port, "Ada", "&room=mixed") as page,
        NodeGuest(chat.port, "Grace", "mixed") as grace,
        Chatter(chat.port, "Linus", "mixed") as linus,
    ):
        page.say("Grace: say hello from Node")
        linus.hear("said", text="hello from Node")
        linus.say("hello from Python")
        grace.wait_for_event("said", "hello from Python")
        page.wait_for_message("hello from Python")
        linus.hear("said", text="hello from Python")
        assert page.messages() == linus.texts()
        assert page.messages() == ["Grace: say hello from Node", "hello from Node", "hello from Python"]
        assert page.tab.evaluate("document.querySelectorAll('.mine').length") == 1
        page.tab.wait_for("document.querySelector('#messages').lastElementChild.matches('.message')")
        assert page.tab.evaluate("document.querySelector('#text').value") == ""


def test_page_shows_who_types(chat: Server, browser: Browser) -> None:
    """The page shows who types until they have said it, and tells the others when its own user does."""
    with (
        chat_page(browser, chat.port, "Ada", "&room=typing") as page,
        Chatter(chat.port, "Linus", "typing") as linus,
        NodeGuest(chat.port, "Grace", "typing"),
    ):
        grace_types = page.watch_for_text("#typing", "Grace is typing…")
        page.say("Grace: type")
        grace_types()
        linus_types = page.watch_for_text("#typing", "Linus")
        linus.call("typing", typing=True)
        linus_types()
        linus.say("that was all")
        page.tab.wait_for("!document.querySelector('#typing').textContent.includes('Linus')")

        me = {person["name"]: person["sid"] for person in linus.answer["people"]}["Ada"]
        page.tab.focus("#text")
        page.tab.type("x")
        linus.hear("typing", sid=me, typing=True)
        page.tab.press("Backspace")
        linus.hear("typing", sid=me, typing=False)


def test_page_shows_text_as_text(chat: Server, browser: Browser) -> None:
    """Tags in names, rooms and messages are shown as they were written, now and in the history."""
    with Chatter(chat.port, TAG_NAME, "<i>tags</i>") as linus:
        linus.say(f"before {TAG}")
        with chat_page(browser, chat.port, "<s>Ada</s>") as page:
            page.tab.wait_for("document.querySelectorAll('#rooms button').length >= 2")
            page.tab.evaluate(
                "[...document.querySelectorAll('#rooms button')].find((b) => b.textContent.includes('tags')).click()"
            )
            page.wait_for_text("#room", "<i>tags</i>")
            linus.say(f"after {TAG}")
            page.wait_for_message(f"after {TAG}")
            tag_types = page.watch_for_text("#typing", TAG_NAME)
            linus.call("typing", typing=True)
            tag_types()
            linus.join("<i>tags</i>", name="<u>Linus</u>")
            page.wait_for_text(".event", "<u>Linus</u>")
            assert page.messages() == [f"before {TAG}", f"after {TAG}"]
            assert page.people() == ["<u>Linus</u>", "<s>Ada</s>"]
            assert page.tab.evaluate("document.querySelectorAll('img, b, i, u, s, [onclick]').length") == 0
            assert page.tab.evaluate("window.hurt") is None


def test_page_changes_rooms(chat: Server, browser: Browser) -> None:
    """A room is made by its name, entered by a click, and left for the lobby; its history comes with it."""
    with Chatter(chat.port, "Linus", "kitchen") as linus:
        linus.say("coffee is ready")
        with chat_page(browser, chat.port, "Ada") as page:
            page.wait_for_text("#rooms", "kitchen")
            page.tab.click("#rooms li[data-key=kitchen] button")
            page.wait_for_message("coffee is ready")
            linus.hear_of("joined", "Ada")
            assert page.tab.evaluate("document.querySelector('[aria-current]').textContent").startswith("kitchen")
            page.tab.click("#leave")
            linus.hear_of("left", "Ada")
            page.wait_for_text("#room", "lobby")
            assert "coffee is ready" not in page.messages()
            page.tab.focus("#new-room")
            page.tab.type("garden")
            page.tab.press("Enter")
            page.wait_for_text("#room", "garden")
            while "garden" not in [room["room"] for room in linus.hear("rooms")["rooms"]]:
                pass
            assert "room=garden" in page.tab.evaluate("location.search")
            page.tab.focus("#name")
            page.tab.evaluate("document.querySelector('#name').select()")
            page.tab.type("Countess")
            page.tab.press("Enter")
            page.wait_for_text(".event", "Ada is now Countess")


def test_page_takes_what_is_typed_while_a_message_is_under_way(chat: Server, browser: Browser) -> None:
    """Each message is said once, however fast the next one is typed and however often Enter is pressed."""
    with chat_page(browser, chat.port, "Ada", "&room=hurry") as page, Chatter(chat.port, "Linus", "hurry") as linus:
        os.kill(worker_of(chat), SIGSTOP)  # nothing is answered meanwhile
        try:
            page.tab.focus("#text")
            for text in ("one", "two", "three"):
                page.tab.type(text)
                page.tab.press("Enter")
                page.tab.press("Enter")
            page.tab.type("fo")
        finally:
            os.kill(worker_of(chat), SIGCONT)
        page.wait_for_message("three")
        page.tab.type("ur")
        page.tab.press("Enter")
        linus.hear("said", text="four")
        assert linus.texts() == ["one", "two", "three", "four"]


def test_page_gives_back_what_was_refused(chat: Server, browser: Browser) -> None:
    """A message that isn't taken is in the field again, unless something else is by now."""
    field = "document.querySelector('#text').value"
    refused = "[...document.querySelectorAll('.event')].filter((item) => item.textContent.includes('Not done')).length"
    with chat_page(browser, chat.port, "Ada", "&room=strict") as page:
        page.say("\u200b")
        page.tab.wait_for(f"{refused} === 1")
        assert page.tab.evaluate(field) == "\u200b"
        os.kill(worker_of(chat), SIGSTOP)
        try:
            page.say("\u200b")
            page.tab.type("next")
        finally:
            os.kill(worker_of(chat), SIGCONT)
        page.tab.wait_for(f"{refused} === 2")
        assert page.tab.evaluate(field) == "next"


@pytest.mark.parametrize(
    ("name", "query"),
    [("", ""), ("x" * 40, ""), ("\u200b", "&room=cellar"), ("Ada", "&room=%20"), ("Ada", "&room=" + "r" * 40)],
    ids=repr,
)
def test_page_finds_a_way_in(chat: Server, browser: Browser, name: str, query: str) -> None:
    """With a name or a room that the server refuses, the page is in the lobby as a guest, and says why."""
    with chat_page(browser, chat.port, name, query) as page, Chatter(chat.port, "Linus") as linus:
        page.wait_for_text("#room", "lobby")
        me = page.tab.evaluate("document.querySelector('#name').value")
        assert me.startswith("Guest ")
        refused = page.tab.evaluate("document.querySelector('#messages').textContent").count("Not done: ")
        assert refused == (name != "")
        page.say("here I am")
        assert linus.hear("said")["name"] == me
        assert page.tab.evaluate("document.querySelector('#rooms [aria-current]').textContent").startswith("lobby")


def test_page_keeps_its_name_until_another_is_taken(chat: Server, browser: Browser) -> None:
    """A new name that is refused isn't remembered, so the page comes back under the old one; one that is taken is."""

    def rename(name: str) -> None:
        page.tab.focus("#name")
        page.tab.evaluate("document.querySelector('#name').select()")
        page.tab.type(name)
        page.tab.press("Enter")

    remembered = "[localStorage.getItem('name'), document.querySelector('#name').value]"
    with chat_page(browser, chat.port, "Ada", "&room=study") as page:
        rename("   ")
        page.wait_for_text(".event", "Not done: name")
        assert page.tab.evaluate(remembered) == [None, "Ada"]
        page.tab.evaluate("void socket.io.engine.close()")
        page.wait_for_text(".event", "You are back on slot 0")
        page.wait_for_text("#room", "study")
        assert page.people() == ["Ada"]
        rename("Countess")
        page.wait_for_text(".event", "Ada is now Countess")
        page.tab.wait_for("localStorage.getItem('name')")
        assert page.tab.evaluate(remembered) == ["Countess", "Countess"]
        assert "name=Countess" in page.tab.evaluate("location.search")


def test_page_that_is_in_no_room_says_so(chat: Server, browser: Browser) -> None:
    """If a page that comes back is refused, it doesn't show the room it was in, and the lobby can be entered."""
    with chat_page(browser, chat.port, "Ada", "&room=study") as page:
        page.tab.evaluate("state.name = ''; void socket.io.engine.close()")
        page.wait_for_text(".event", "Not done: name")
        page.tab.wait_for("document.querySelector('#room').textContent === '…'")
        assert page.tab.evaluate("document.querySelector('#rooms [aria-current]')") is None
        page.tab.evaluate("state.name = 'Ada'")
        page.tab.click("#rooms li[data-key=lobby] button")
        page.wait_for_text("#room", "lobby")


def test_page_comes_back_after_its_worker_died(chat: Server, browser: Browser) -> None:
    """The page says that it reconnects, is back in its room on the same slot in the new process, and lost nothing."""
    with Chatter(chat.port, "Linus", "phoenix") as linus:
        linus.say("before")
    page = ChatPage(browser, chat.port, "Ada", "&room=phoenix")
    page.watch_for_state("connected")()
    page.say("mine")
    page.wait_for_message("mine")
    reconnecting = page.watch_for_state("reconnecting")
    stale = page.watch_for_text(".stale #people-title", "Last seen")
    old, mark = page.pid, chat.mark()
    os.kill(old, SIGKILL)
    reconnecting()
    stale()
    page.wait_for_text(".event", "You are back on slot 0")
    page.wait_for_text(".event", "Connection lost; trying to get it back.")
    page.wait_for_text("body:not(.stale) #people-title", "Here, by worker")
    assert page.pid == chat.wait_for_worker(0, after=mark) != old
    page.watch_for_state("connected")()
    assert page.messages() == ["before", "mine"]
    assert page.people() == ["Ada"]
    with Chatter(chat.port, "Linus", "phoenix") as linus:
        linus.say("after")
        page.wait_for_message("after")
        page.say("still mine")
        assert linus.hear("said", text="still mine")["name"] == "Ada"
    page.tab.wait_for("document.querySelectorAll('.mine').length === 2")
    assert not [
        complaint for complaint in page.tab.complaints if "WebSocket" not in complaint and "net::" not in complaint
    ]
    page.tab.close()


@pytest.mark.parametrize(("query", "transport", "words"), [
    ("&transports=polling", "polling", "Connected · long-polling"),
    ("", "websocket", "Connected · WebSocket"),
    ("&transports=foo", "websocket", "Connected · WebSocket"),
    ("&transports=foo,polling", "polling", "Connected · long-polling"),
])  # fmt: skip
def test_page_shows_its_transport(chat: Server, browser: Browser, query: str, transport: str, words: str) -> None:
    """The page says which transport it uses; ``?transports=polling`` stays on that one, unknown ones don't count."""
    with chat_page(browser, chat.port, "Ada", f"&room=by+{transport}{query}") as page:
        page.tab.wait_for(f"document.querySelector('#state').dataset.transport === '{transport}'")
        page.say("which way?")
        page.wait_for_message("which way?")
        assert page.tab.evaluate("document.querySelector('#state').textContent") == words


def test_page_by_keyboard(chat: Server, browser: Browser) -> None:
    """With nothing but keys one skips to the message, says it, and goes to another room."""
    with Chatter(chat.port, "Linus", "study") as linus, chat_page(browser, chat.port, "Ada") as page:
        page.wait_for_text("#rooms", "study")
        page.tab.evaluate("document.activeElement.blur()")

        def tab_to(test: str) -> None:
            for _ in range(12):
                page.tab.press("Tab")
                if page.tab.evaluate(f"(({test})(document.activeElement))"):
                    return
            raise AssertionError(f"Tab doesn't come to {test}")

        tab_to("(e) => e.closest('#rooms')?.textContent && e.textContent.startsWith('study')")
        page.tab.press("Enter")
        linus.hear_of("joined", "Ada")
        page.wait_for_text("#room", "study")
        page.tab.evaluate("document.activeElement.blur(); document.getSelection().removeAllRanges(); scrollTo(0, 0)")
        tab_to("(e) => e.className === 'skip'")
        page.tab.press("Enter")
        page.tab.type("no mouse")
        page.tab.press("Enter")
        linus.hear("said", text="no mouse")


def test_page_names_its_controls(chat: Server, browser: Browser) -> None:
    """Every field, button and list that a screen reader meets has a name, and news is announced."""
    with chat_page(browser, chat.port, "Ada", "&room=aloud") as page:
        nodes = page.tab.call("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node["ignored"]]
        roles = {node["role"]["value"] for node in shown}
        assert {"banner", "navigation", "main", "complementary", "log", "status", "textbox", "button"} <= roles
        for node in shown:
            if node["role"]["value"] in ("textbox", "button", "log", "navigation", "complementary", "link"):
                assert node["name"]["value"].strip(), node
        assert page.tab.evaluate("document.querySelector('#messages').getAttribute('aria-live')") == "polite"


# What in the page doesn't stand out: text whose contrast with what is behind it is below 4.5, the least of WCAG 2.2,
# 1.4.3, and edges of fields with less than 3 inside or outside (1.4.11).
FAINT = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => rgb(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    while (rgb(getComputedStyle(element).backgroundColor)[3] < 255) element = element.parentElement;
    return getComputedStyle(element).backgroundColor;
  };
  const contrast = (one, other) => {
    const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = [...document.body.querySelectorAll("*")]
    .filter((element) => !element.disabled && [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((element) => [4.5, getComputedStyle(element).color, element, element]);
  const edges = [...document.body.querySelectorAll("input")].flatMap((element) =>
    [element, element.parentElement].map((beside) => [3, getComputedStyle(element).borderTopColor, beside, element]));
  return [...texts, ...edges]
    .map(([least, colour, beside, element]) => [least, contrast(colour, behind(beside)), element.outerHTML])
    .filter(([least, contrast]) => contrast < least);
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 844), (320, 568)])
def test_page_is_readable(chat: Server, browser: Browser, width: int, height: int, dark: bool) -> None:
    """On wide and narrow screens, light and dark: nothing is cut off, and all text stands out, on 16 slots' colours."""
    room = f"{width} {dark}"
    with (
        Chatter(chat.port, "Wolfeschlegelsteinhausen", room) as linus,
        chat_page(
            browser, chat.port, "Ada", f"&room={room}".replace(" ", "+"), width=width, height=height, dark=dark
        ) as page,
    ):
        linus.say("donaudampfschifffahrtsgesellschaft" * 14)
        page.wait_for_text(".text", "donaudampf")
        page.tab.evaluate(
            "for (let slot = 0; slot < 16; slot += 1) { showEvent(chip(slot));"
            " showMessage({id: 1e6 + slot, sid: 'x', name: 'Ada', slot, text: 'hello', at: 0}); }"
        )
        assert page.tab.evaluate(FAINT) == []
        assert page.tab.evaluate("document.documentElement.scrollWidth") == width
        for selector in ("#say button", "#messages", "#state", "#worker", "#leave", "#rename label"):
            box = page.tab.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
            assert 0 <= box["left"] < box["right"] <= width, selector
            assert 0 <= box["top"] < box["bottom"] <= height, selector
            assert box["width"] > 10, f"{selector} is for screen readers only"
        background = page.tab.evaluate("getComputedStyle(document.querySelector('main')).backgroundColor")
        assert background == ("rgb(27, 29, 35)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize(("width", "height"), [(667, 375), (844, 390), (320, 480)])
def test_page_on_a_low_screen(chat: Server, browser: Browser, width: int, height: int) -> None:
    """On a phone's side, or above its keyboard, most of the screen is for messages, and rooms can still be changed."""
    room = f"low+{width}"
    with chat_page(browser, chat.port, "Ada", f"&room={room}", width=width, height=height) as page:
        assert page.tab.evaluate("document.querySelector('#messages').clientHeight") > height / 2
        page.tab.click("#rooms li[data-key=lobby] button")
        page.wait_for_text("#rooms [aria-current]", "lobby")


@pytest.mark.parametrize("field", ["#new-room", "#name"])
def test_page_keeps_the_field_in_use_above_the_keyboard(chat: Server, browser: Browser, field: str) -> None:
    """A phone's keyboard may make the window low; the field that it writes into stays."""
    with chat_page(browser, chat.port, "Ada", "&room=keyboard", width=390, height=844) as page:
        page.tab.focus(field)
        page.tab.resize(390, 400)
        page.tab.wait_for("matchMedia('(max-height: 30rem)').matches")
        shown = "[...document.querySelectorAll('nav input')].filter((input) => input.checkVisibility())"
        assert page.tab.evaluate(f"{shown}.map((input) => '#' + input.id)") == [field]
        assert page.tab.evaluate(f"document.activeElement === document.querySelector('{field}')")
