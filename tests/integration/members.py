"""Socket.IO clients at addresses of their own, whose handlers run in the order of the messages."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import engineio
import requests
import requests.adapters
import socketio

from harness import connect, wait_until

WAIT_SECONDS = 20.0


class SourceAddress(requests.adapters.HTTPAdapter):
    """Makes the connections of a ``requests`` session come from an address."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, source_address=(self._address, 0), **options)


class _EngineClient(engineio.Client):  # type: ignore[misc]
    """python-engineio's client; by itself it starts a thread for each message, and their order is lost."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.in_order = ThreadPoolExecutor(1)

    def _trigger_event(self, event: str, *args: Any, **options: Any) -> Any:
        if event != "message":
            return super()._trigger_event(event, *args, **options)
        return self.in_order.submit(super()._trigger_event, event, *args)


class OrderedClient(socketio.Client):  # type: ignore[misc]
    """python-socketio's client, whose handlers run one after the other; :meth:`stop` ends their thread."""

    def _engineio_client_class(self) -> type:
        return _EngineClient

    def stop(self) -> None:
        """Disconnect, and run no more handlers."""
        with contextlib.suppress(Exception):
            self.disconnect()
        self.eio.in_order.shutdown()


class Member:
    """One client; a context manager.

    :param transport: ``polling`` or ``websocket``
    :ivar events: what it has received and not been asked for, in order: (namespace, event, arguments)
    """

    def __init__(self, port: int, address: str, transport: str, namespaces: Iterable[str] = ("/",)) -> None:
        self.address = address
        self.namespaces = list(namespaces)
        self.events: queue.Queue[tuple[str, str, tuple[Any, ...]]] = queue.Queue()
        self._session = requests.Session()
        self._session.mount("http://", SourceAddress(address))
        # To decode a text finds out whether it is UTF-8, too; websocket-client looks at each byte in Python.
        options: dict[str, Any] = {"skip_utf8_validation": True}
        if transport == "websocket":
            options["socket"] = connect(port, address)
        self._client = OrderedClient(
            http_session=self._session,
            websocket_extra_options=options,
            request_timeout=WAIT_SECONDS,
            reconnection=False,
            handle_sigint=False,
        )
        for namespace in self.namespaces:
            self._client.on("*", self._receiver(namespace), namespace=namespace)
            self._client.on("disconnect", self._receiver(namespace, "disconnect"), namespace=namespace)
        self._client.connect(
            f"http://127.0.0.1:{port}", transports=[transport], namespaces=self.namespaces, wait_timeout=WAIT_SECONDS
        )
        assert self._client.transport() == transport

    def _receiver(self, namespace: str, named: str = "") -> Any:
        def receive(*args: Any) -> Any:
            event, *rest = (named, *args) if named else args
            self.events.put((namespace, event, tuple(rest)))
            return ("ack", *rest)

        return receive

    def sid(self, namespace: str = "/") -> str:
        """Its id, as the server knows it."""
        return str(self._client.get_sid(namespace))

    def next(self, namespace: str = "/") -> tuple[str, tuple[Any, ...]]:
        """The next event and its arguments; the namespace must be this one."""
        came_in, event, args = self.events.get(timeout=WAIT_SECONDS)
        assert came_in == namespace
        return event, args

    def until(self, event: str, namespace: str = "/") -> list[tuple[str, tuple[Any, ...]]]:
        """What comes before an event."""
        found = []
        while (following := self.next(namespace))[0] != event:
            found.append(following)
        return found

    def call(self, event: str, *args: Any, namespace: str = "/") -> Any:
        """Emit, and return the server's answer."""
        return self._client.call(event, args, namespace=namespace, timeout=WAIT_SECONDS)

    def do(self, method: str, *args: Any, on: str = "/", **options: Any) -> Any:
        """Have the client's worker call a method of its server.

        :param on: the namespace that the request goes by
        :returns: what the method returns; an error is raised as an AssertionError
        """
        outcome, value = self.call("do", method, list(args), options, namespace=on)
        assert outcome == "done", f"{outcome}: {value}"
        return value

    def failure(self, method: str, *args: Any, **options: Any) -> str:
        """Have a method called that fails, and return the error's name."""
        outcome, _ = self.call("do", method, list(args), options)
        assert outcome != "done"
        return str(outcome)

    def who(self, namespace: str = "/") -> Any:
        """Whom it is served by."""
        return self.call("who", namespace=namespace)

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop()
        self._session.close()


@contextlib.contextmanager
def members(
    port: int, addresses: Iterable[str], transport: str, namespaces: Iterable[str] = ("/",)
) -> Iterator[list[Member]]:
    """A member at each address."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Member(port, address, transport, namespaces)) for address in addresses]


def fenced(
    sender: Member, receivers: Iterable[Member], namespace: str = "/"
) -> list[list[tuple[str, tuple[Any, ...]]]]:
    """What each has received by now; messages of the sender's worker that were sent before this are among it."""
    sender.do("emit", "fence", namespace=namespace, on=namespace)
    return [receiver.until("fence", namespace) for receiver in receivers]


def hear_each_other(sender: Member, receivers: Iterable[Member]) -> list[list[tuple[str, tuple[Any, ...]]]]:
    """Wait until what one emits reaches all: with Redis a worker hears the others only some time after it has begun.

    :returns: what each has received meanwhile, "probe" some times and what else there was
    """
    receivers = list(receivers)

    def all_heard() -> bool:
        sender.do("emit", "probe")
        return all(not receiver.events.empty() for receiver in receivers)

    wait_until(all_heard, WAIT_SECONDS, "all hear what one emits")
    return fenced(sender, receivers)
