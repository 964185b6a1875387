"""The arbiter's part where the kernel routes: the groups of listening sockets, the program, and who may accept.

Each slot has a listening socket of its own on every address. The arbiter holds them all, and the kernel chooses among
them by the ring's program (:mod:`.bpf`); the slots' workers accept (:mod:`.acceptor`). There is no listener process.

- A group belongs to an address and not to a generation, and none of its sockets is closed while it is in use. So a
  killed worker, a reload and a ring that shrinks leave the queues as they are.
- Workers accept only while the table of their generation says so: one generation of one arbiter at a time.
- The program follows the ring and the failed slots; it is replaced whole. What has come by the former program is in
  some slot's queue already, and the worker that accepts it passes it on.
- What no worker accepts the arbiter does, at its loop's turns, and delivers it as a listener would: what waits for
  slots that the ring has no more or that have failed, and what waits for a worker that hangs or is full, once it is
  much.
- Where a listener accepts from the same sockets (another generation's, or another arbiter's), the program names the
  first socket alone, which is the listener's.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import resource
import select
import time
from collections.abc import Callable, Container, Iterable, Iterator, MutableMapping, Sequence
from socket import AF_INET, AF_INET6, SOCK_STREAM
from typing import Any, NamedTuple

from gevent.monkey import get_original

from sticky_session import handoff
from sticky_session.bpf import slot_program
from sticky_session.bussocket import BusSocket
from sticky_session.config import KERNEL, LISTENER, Options
from sticky_session.delivery import Delivery, refusal_of
from sticky_session.errors import OptionError, PlatformError, StickySessionError
from sticky_session.generation import Bind, Generation
from sticky_session.listener import (
    BEAT_SECONDS,
    DROPPED,
    EXHAUSTED,
    SPARE_DESCRIPTORS,
    TICK_SECONDS,
    open_files_limit,
)
from sticky_session.refusal import Refusals
from sticky_session.reuseport import ONLY_FIRST, Group, attach
from sticky_session.ring import Ring
from sticky_session.settings import kernel_obstacle
from sticky_session.succession import same_bind

# The siblings of the first sockets, which an arbiter passes on to the one that SIGUSR2 starts: descriptors by slot,
# with commas between them, and semicolons between addresses.
VARIABLE = "_STICKY_SESSION_GROUPS"

_epoll = get_original("select", "epoll")


class Place(NamedTuple):
    """An address that the kernel routes for."""

    group: Group
    bind: Bind


class Target(NamedTuple):
    """The generation that gets what is accepted here."""

    generation: Generation
    delivery: Delivery
    # What workers hand back.
    returned: handoff.Receiver


class KernelRouter:
    """All groups, and which generation's workers accept from them.

    :param log: gunicorn's logger
    :param inherited: siblings of the first sockets, by address, that another arbiter has made
    """

    def __init__(self, log: Any, inherited: Iterable[list[_socket.socket]] = ()) -> None:
        self._log = log
        self._inherited = list(inherited)
        self._tested = False
        # By gunicorn's socket, which is the first slot's.
        self._places: dict[Any, Place] = {}
        # Those that nobody listens on any more.
        self._leaving: list[Place] = []
        # The groups among them that are to be of no use to any process.
        self._ending: list[Group] = []
        # Looked at at the loop's turns: nothing that is in there is urgent.
        self._poll: select.epoll = _epoll()
        self._refusals = Refusals(self._poll, None)
        self._target: Target | None = None
        self._busy = False
        # This process needs a higher one; what it starts is to have what it was given.
        self._soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)

    # --- groups

    def choose(
        self, cfg: Any, options: Options, listening: Sequence[Any], workers: int, shared: Container[Any] = ()
    ) -> list[Group | None]:
        """Who routes for a new generation.

        :param listening: its sockets
        :param shared: those that another arbiter may have siblings of which this one doesn't know of
        :returns: the sockets' groups, None for the bus socket; nothing if the listener routes
        :raises OptionError: the kernel was asked for, and can't
        """
        if options.router == LISTENER:
            return []
        try:
            return self._join(cfg, options, listening, workers, shared)
        except (OSError, StickySessionError) as error:
            if options.router == KERNEL:
                raise OptionError(f"router={KERNEL}: {error}") from error
            self._log.info("The listener routes, not the kernel (router=auto): %s", error)
            return []

    def _join(
        self, cfg: Any, options: Options, listening: Sequence[Any], workers: int, shared: Container[Any]
    ) -> list[Group | None]:
        obstacle = kernel_obstacle(cfg, options)
        if obstacle is not None:
            raise PlatformError(obstacle)
        for it in listening:
            if not isinstance(it, BusSocket) and it.FAMILY not in (AF_INET, AF_INET6):
                raise PlatformError(f"bind={it}: expected TCP addresses only; use the listener")
        try_out(_program(Ring(workers, options.partitions, options.seed).owners, options), connect=not self._tested)
        self._tested = True
        groups: list[Group | None] = []
        for it in listening:
            if isinstance(it, BusSocket):
                groups.append(None)
                continue
            place = self._places.get(it)
            if it in shared and (place is None or len(place.group.members) < workers):
                # The kernel numbers sockets as they come, whosever they are.
                raise PlatformError(
                    f"workers={workers}: no sockets can be added while another arbiter listens on the same address; "
                    "end one of the two first"
                )
            if place is None:
                group = Group(it, self._inherited.pop(0) if self._inherited else ())
                place = self._places[it] = Place(group, Bind(it.FAMILY, it.getsockname(), for_bus=False))
            place.group.grow(workers)
            groups.append(place.group)
        return groups

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], log: Any) -> KernelRouter:
        """Find what the arbiter that has started this one has passed on."""
        said = environ.pop(VARIABLE, "")
        inherited = []
        for place in said.split(";") if said else ():
            siblings = [_socket.socket(fileno=int(number)) for number in place.split(",") if number]
            for sibling in siblings:
                os.set_inheritable(sibling.fileno(), False)
            inherited.append(siblings)
        return cls(log, inherited)

    def close_inherited(self) -> None:
        """Close what has been passed on and is not used."""
        for siblings in self._inherited:
            for sibling in siblings:
                sibling.close()
        self._inherited.clear()

    @contextlib.contextmanager
    def offer(self, listening: Iterable[Any], environ: MutableMapping[str, str]) -> Iterator[None]:
        """Around the fork and exec of a new arbiter: let it have the groups of the sockets that it gets."""
        others = [self._places[it].group.members[1:] if it in self._places else [] for it in listening]
        siblings = [sibling for members in others for sibling in members]
        for sibling in siblings:
            os.set_inheritable(sibling.fileno(), True)
        # What this arbiter was started with may still be in there.
        environ.pop(VARIABLE, None)
        if siblings:
            environ[VARIABLE] = ";".join(",".join(str(it.fileno()) for it in members) for members in others)
        raised = _set_soft_limit(self._soft_limit)
        try:
            yield
        finally:
            _set_soft_limit(raised)
            environ.pop(VARIABLE, None)
            for sibling in siblings:
                os.set_inheritable(sibling.fileno(), False)

    def drop(self, listening: Any, *, everywhere: bool = False) -> None:
        """Nobody listens on a socket any more: close its group when what waits has been taken.

        :param everywhere: also where other processes have it open, as former workers do that hang
        """
        place = self._places.pop(listening, None)
        if place is not None:
            self._leaving.append(place)
            if everywhere:
                self._ending.append(place.group)

    def prune(self, generations: Iterable[Generation]) -> None:
        """Close the groups that no generation has: now a listener accepts there, or nothing was to come of them."""
        used = [group for generation in generations for group in generation.groups]
        for listening, place in list(self._places.items()):
            if place.group not in used:
                self.drop(listening)

    def waiting(self) -> int:
        """How many connections wait beside those in the queues of the first sockets."""
        groups = [place.group for place in self._places.values()]
        return sum(group.waiting(slot) for group in groups for slot in range(1, len(group.members)))

    # --- who accepts

    @property
    def is_open(self) -> bool:
        """Whether workers of this arbiter's may accept."""
        return self._target is not None and self._target.generation.table.admits

    def open(self, generation: Generation) -> None:
        """Have the kernel route by a generation's ring, and let its workers accept, and no others."""
        target = self._target
        if target is not None and target.generation.table.admits:
            if target.generation is not generation:
                target.generation.table.set_admits(False)
            elif target.delivery.ring.workers == generation.ring_size:
                return
        delivery = self._aim_at(generation)
        delivery.look_at_slots(time.monotonic())
        self._attach(generation, delivery)
        generation.table.set_ring(generation.ring_size)
        generation.table.set_admits(True)
        self._log.info("Kernel router ready (slots:%s, pid:%s)", generation.ring_size, os.getpid())

    def gather(self, generation: Generation) -> None:
        """Leave it to a listener to accept from the first sockets, and bring what comes to the others to a generation.

        The listener may be another arbiter's.
        """
        if not self._places:
            self.shut()
            return
        if self._target is not None:
            if self._target.generation is generation and not self.is_open:
                return
            self._target.generation.table.set_admits(False)
        self._aim_at(generation)
        for group, _ in self._places.values():
            if len(group.members) > 1:
                attach(group.members[0], ONLY_FIRST)

    def hand_over(self, generation: Generation) -> None:
        """Before the end: another arbiter gets who comes from now on. It may know of the first sockets alone.

        Who has come is a generation's, as with a listener that ends.
        """
        self.turn()
        self.gather(generation)
        if self._target is not None:
            for place in self._places.values():
                self._take_in(self._target, place, 0)
        self.turn()

    def shut(self) -> None:
        """Let no worker of this arbiter's accept, and accept nothing here."""
        if self._target is not None:
            self._target.generation.table.set_admits(False)
            # Who hangs now is not waited for.
            self._target.delivery.outbox.refuse_all()
            self._target = None

    def _aim_at(self, generation: Generation) -> Delivery:
        """Deliver to a generation from now on, also what waits here."""
        former = self._target
        self._refusals.response = refusal_of(generation)
        fair_share = max(1, (open_files_limit() - SPARE_DESCRIPTORS) // (2 * generation.ring_size))
        queue_size = min(generation.options.queue_size, fair_share)
        delivery = Delivery(generation, self._poll, queue_size, self._refusals, self._log)
        self._target = Target(generation, delivery, handoff.Receiver(generation.returns.receiving_end))
        if former is not None:
            outbox, binds = former.delivery.outbox, former.generation.binds
            for slot in range(outbox.slots):
                for descriptor, message, affinity in outbox.withdraw(slot):
                    frame = handoff.Frame(descriptor, *handoff.decode(message))
                    self._deliver(self._target, descriptor, binds[frame.bind], frame.encode, affinity)
        return delivery

    def _deliver(
        self, target: Target, descriptor: int, bind: Bind, encode: Callable[[int], bytes], affinity: bytes
    ) -> None:
        index = same_bind(bind, target.generation.binds)
        if index is None:
            self._refusals.add(descriptor)
        else:
            target.delivery.deliver(descriptor, encode(index), affinity)

    def _attach(self, generation: Generation, delivery: Delivery) -> None:
        """Have the kernel route as deliveries go."""
        program = _program(delivery.ring.owners_without(delivery.failover.failed), generation.options)
        for group in generation.groups:
            # There is nothing to choose in a group of one.
            if group is not None and len(group.members) > 1:
                try:
                    attach(group.members[0], program)
                except PlatformError as error:
                    self._log.error("Workers pass on what comes to the wrong one of them: %s", error)

    # --- the arbiter's loop

    @property
    def tick_seconds(self) -> float:
        """When the next turn is due."""
        return TICK_SECONDS if self._busy else BEAT_SECONDS

    @property
    def has_connections(self) -> bool:
        """Whether this process has accepted connections that it has not delivered yet."""
        return bool(self._refusals) or (self._target is not None and bool(self._target.delivery.outbox))

    def turn(self) -> None:
        """Look at slots and queues, and deliver what no worker accepts."""
        now = time.monotonic()
        self._busy = False
        if self._target is not None:
            self._serve(self._target, now)
        else:
            for descriptor, _ in self._poll.poll(0):
                self._refusals.handle(descriptor)
            self._refusals.sweep(now)
        for group in self._ending:
            group.end()
        self._ending.clear()
        for group, _ in self._leaving:
            group.close()
        self._leaving.clear()
        self._busy = self._busy or bool(self._refusals)

    def _serve(self, target: Target, now: float) -> None:
        generation, delivery, returned = target
        if self.is_open:
            delivery.take_back(returned)
            if delivery.look_at_slots(now):
                self._attach(generation, delivery)
            self._busy = delivery.failover.any_empty
        for place, slot in self._neglected(delivery, generation.options.queue_size):
            self._take_in(target, place, slot)
        for place in self._leaving:
            for slot in range(len(place.group.members)):
                self._take_in(target, place, slot)
        delivery.tick(now)
        for descriptor, _ in self._poll.poll(0):
            delivery.handle(descriptor)
        self._busy = self._busy or bool(delivery.outbox)

    def _neglected(self, delivery: Delivery, queue_size: int) -> Iterator[tuple[Place, int]]:
        """The queues that no worker takes from, or not fast enough."""
        for place in self._places.values():
            group = place.group
            for slot in range(0 if self.is_open else 1, len(group.members)):
                waiting = group.waiting(slot)
                if not waiting:
                    continue
                self._busy = True
                # Nobody who waits there takes a descriptor.
                most = min(queue_size, group.backlog // 2)
                if (
                    not self.is_open
                    or slot >= delivery.ring.workers
                    or slot in delivery.failover.failed
                    or waiting > most
                    or delivery.outbox.holds(slot)
                ):
                    yield place, slot

    def _take_in(self, target: Target, place: Place, slot: int) -> None:
        """Accept what waits for a slot, and deliver it."""
        key = target.delivery.masks.key
        try:
            for descriptor, peer in place.group.accept(slot):
                self._deliver(target, descriptor, place.bind, handoff.encode, key(peer[0]))
        except OSError as error:
            if error.errno not in DROPPED | EXHAUSTED:
                raise
            # The next turn goes on.

    # --- the end

    def refuse_all(self) -> None:
        """Deliver nothing any more of what waits here."""
        if self._target is not None:
            self._target.delivery.outbox.refuse_all()

    def close(self) -> None:
        """Close all groups in this process."""
        for group, _ in (*self._places.values(), *self._leaving):
            group.close()
        self._places.clear()
        self._leaving.clear()

    def close_in_child(self, keep: Sequence[Group | None] = ()) -> None:
        """In a child: close what is the arbiter's, and the groups that are not in ``keep``."""
        # First: what is closed from here on would be taken out of the arbiter's, too.
        self._poll.close()
        _set_soft_limit(self._soft_limit)
        self._refusals.forget()
        if self._target is not None:
            self._target.delivery.outbox.forget()
        for group, _ in (*self._places.values(), *self._leaving):
            if group not in keep:
                group.close()
        self.close_inherited()


def _set_soft_limit(descriptors: int) -> int:
    """Limit the descriptors of this process, and of what it starts from now on.

    :returns: the limit before
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    return soft


def _program(owners: Sequence[int], options: Options) -> list[Any]:
    return list(slot_program(owners, options.seed, options.ipv4_prefix, options.ipv6_prefix))


def try_out(program: Sequence[Any], *, connect: bool = True) -> None:
    """See whether this machine's kernel takes a program.

    :param connect: also whether it does as programs say, with a few connections by loopback
    :raises PlatformError: it doesn't
    :raises OSError: there can't be such sockets
    """
    listening = _socket.socket(AF_INET, SOCK_STREAM)
    group = Group(listening)
    try:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        group.grow(2)
        attach(listening, program)
        if not connect:
            return
        ring = Ring(2, 2)
        attach(listening, slot_program(ring.owners))
        for number in range(1, 9):
            host = f"127.0.0.{number}"
            with contextlib.closing(_socket.socket(AF_INET, SOCK_STREAM)) as client:
                client.bind((host, 0))
                client.connect(listening.getsockname())
                slots = []
                for slot in range(2):
                    for descriptor, _ in group.accept(slot):
                        handoff.close(descriptor)
                        slots.append(slot)
                if slots != [ring.slot(_socket.inet_aton(host))]:
                    raise PlatformError("the kernel doesn't choose sockets by the router's program; use the listener")
    finally:
        group.close()
        listening.close()
