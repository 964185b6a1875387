"""The socket of a client: a greenlet that receives, and what the app is given."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest
from gevent.exceptions import ConcurrentObjectUseError

from sticky_session.transport import Transport

Ends = tuple[Transport, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Ours, and the client's."""
    one, other = socket.socketpair()
    transport = Transport(one.detach(), one.family)
    with other:
        yield transport, other
        transport.close()


def receiver(transport: Transport) -> gevent.Greenlet:
    """A greenlet that waits for something."""
    greenlet = gevent.spawn(transport.receive, 100)
    gevent.sleep(0)
    assert not greenlet.ready()
    return greenlet


def test_a_greenlet_waits_for_what_comes(ends: Ends) -> None:
    """It gets that, or nothing at the end."""
    transport, client = ends
    waiting = receiver(transport)
    client.send(b"hello")
    assert waiting.get() == b"hello"
    waiting = receiver(transport)
    client.close()
    assert waiting.get() == b""


def test_a_wait_that_is_given_up(ends: Ends) -> None:
    """Nothing is lost: whoever receives next has it."""
    transport, client = ends
    receiver(transport).kill()
    with gevent.Timeout(0.001, False):
        transport.receive(100)
    client.send(b"hello")
    assert transport.receive(100) == b"hello"


def test_a_greenlet_that_is_woken_for_nothing(ends: Ends) -> None:
    """It waits on."""
    transport, client = ends
    waiting = receiver(transport)
    gevent.get_hub().loop.run_callback(waiting.switch)
    gevent.sleep(0)
    assert not waiting.ready()
    client.send(b"hello")
    assert waiting.get() == b"hello"


def test_two_greenlets_that_receive(ends: Ends) -> None:
    """The second is told, and the first goes on; who would get what can't be said."""
    transport, client = ends
    waiting = receiver(transport)
    with pytest.raises(ConcurrentObjectUseError):
        transport.receive(100)
    client.send(b"hello")
    assert waiting.get() == b"hello"


def test_a_limit_for_waiting(ends: Ends) -> None:
    """A TimeoutError."""
    transport, _ = ends
    transport.settimeout(0.001)
    with pytest.raises(TimeoutError):
        transport.receive(100)


def test_an_app_takes_the_socket_that_is_waited_for(ends: Ends) -> None:
    """What comes still comes."""
    transport, client = ends
    waiting = receiver(transport)
    assert transport.app_socket.fileno() == transport.fileno()
    client.send(b"hello")
    assert waiting.get() == b"hello"


def test_an_app_closes_the_socket_that_is_waited_for(ends: Ends) -> None:
    """Nobody waits for ever."""
    transport, _ = ends
    waiting = receiver(transport)
    transport.app_socket.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        waiting.get(timeout=10)


def test_the_end_comes_while_a_greenlet_of_the_app_waits(ends: Ends) -> None:
    """It is told; nobody waits for ever."""
    transport, _ = ends
    waiting = receiver(transport)
    transport.close()
    with pytest.raises(OSError, match="closed in another greenlet"):
        waiting.get(timeout=10)
    gevent.sleep(0)
    assert transport.closed


def test_something_comes_in_the_turn_of_the_end(ends: Ends) -> None:
    """Whoever is woken by it, and would wait for more, is told as well."""
    transport, client = ends

    def receive_all() -> None:
        while transport.receive(100):
            pass

    waiting = gevent.spawn(receive_all)
    gevent.sleep(0)
    client.send(b"hello")
    # As its watcher would.
    gevent.get_hub().loop.run_callback(waiting.switch)
    transport.close()
    assert transport.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        waiting.get(timeout=10)


def test_an_app_uses_its_socket_after_the_end(ends: Ends) -> None:
    """It is closed, as any socket is: it can be closed once more, and nothing else."""
    transport, _ = ends
    given = transport.app_socket
    transport.close()
    given.close()
    assert given.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        given.send(b"late")
