"""Chromium, headless, driven by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).

A test does what a user does, with keys, and waits for what a user sees::

    with Browser() as browser:
        page = browser.open("http://127.0.0.1:8000/")
        page.wait_for("document.title === 'Chat'")
        page.type("hello")
        page.press("Enter")

What a page complains about on its console is collected in ``page.complaints``.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import websocket

from harness import STOP_SECONDS, Process

ANSWER_SECONDS = 40.0
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Backspace": (8, "")}  # name: key code, text

# Waits until an expression is true, without asking again and again: it can only become so when the page changes.
_WAIT = """new Promise((resolve) => {
  const look = () => {
    const value = %s;
    if (!value) return false;
    observer.disconnect();
    resolve(value);
    return true;
  };
  const observer = new MutationObserver(look);
  look() || observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
})"""


class Browser(Process):
    """A Chromium with a profile of its own; a context manager."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._number = 0
        self._pages: dict[str, Page] = {}
        command = [
            "chromium",
            "--headless=new",
            "--no-sandbox",  # root, as in a container, has no other choice
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-breakpad",
            "--no-first-run",
            "--log-level=3",  # fatal errors; there is no D-Bus in a container, and it has much to say about that
            "--no-proxy-server",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]
        super().__init__(command, env={"HOME": self._profile.name})

    def _wait_ready(self) -> None:
        url = self.wait_for(r"DevTools listening on (ws://\S+)", ANSWER_SECONDS)[1]
        self._devtools = websocket.create_connection(url, timeout=ANSWER_SECONDS, suppress_origin=True)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Send a command and return its result; events that come before it go to their pages."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if session:
            command["sessionId"] = session
        self._devtools.send(json.dumps(command))
        while True:
            message = json.loads(self._devtools.recv())
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            if "method" in message and (page := self._pages.get(message.get("sessionId", ""))) is not None:
                page.take_event(message["method"], message["params"])

    def open(self, url: str, width: int = 1200, height: int = 800, *, dark: bool = False) -> Page:
        """Open a page in a tab that shares nothing, such as storage, with the others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.prefer_dark(dark)
        page.call("Page.navigate", url=url)
        page.evaluate(
            "new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )
        return page

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.call("Browser.close")
                self.wait(STOP_SECONDS)
            self.kill()  # its helpers need a moment more, and nobody waits for them
        finally:
            self._devtools.close()
            self._profile.cleanup()


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target
        self._watches = 0
        self.complaints: list[str] = []

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol to the tab."""
        return self._browser.call(method, self._session, **parameters)

    def take_event(self, method: str, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.complaints.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"console.{event['type']}: {event['args']}")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it becomes."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true of the document, and return its value."""
        return self._await(_WAIT % expression, expression)

    def _await(self, promise: str, expression: str) -> Any:
        try:
            return self.evaluate(promise)
        except websocket.WebSocketTimeoutException:
            # The answer may still come; its number is no longer waited for.
            shown = self.evaluate("document.body.innerText")
            raise AssertionError(f"not within {ANSWER_SECONDS:g} s: {expression}; the page says:\n{shown}") from None

    def watch(self, expression: str) -> Callable[[], Any]:
        """Begin to wait for what may be over soon; calling what is returned is :meth:`wait_for`."""
        self._watches += 1
        watched = f"window.watched{self._watches}"
        self.evaluate(f"{watched} = {_WAIT % expression}; null")
        return lambda: self._await(watched, expression)

    def focus(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        x, y = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release a key."""
        code, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer_dark(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Write what the tab shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)
