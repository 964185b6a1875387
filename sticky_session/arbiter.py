"""The arbiter: gunicorn's master process, which also fills numbered slots and watches the listener.

It runs in gunicorn's loop: :meth:`StickyArbiter.manage_workers` is called at every turn, looks at what there is,
and takes the next step towards what there should be. Nothing else decides. What it works with:

- ``_current``: the generation that the listener feeds. ``_next``: one being built after SIGHUP; when workers fill all
  of its slots, the listener is replaced and it becomes the current one. ``_old``: those that run dry; their workers are
  told to stop as soon as the last listener that feeds them is gone.
- A worker holds its slot from the moment it has booted until it leaves or dies (:class:`slots.Table`). One that is
  booting or holds its slot keeps others from being started for it.
- The listener is one process, replaced whole whenever its sockets, ring or channels change. The next one is started
  when the former one accepts no more, so that no client is thrown to and fro between the old ring and the new.
- Children ring the doorbell, a pipe with O_ASYNC, when something has changed: SIGIO ends the loop's wait.

An old arbiter and the new one that SIGUSR2 started agree over a socket pair who accepts; see :mod:`.upgrade`.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import queue
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import gevent
from gevent.monkey import get_original, is_module_patched
from gunicorn import sock, util
from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError, HaltServer

from sticky_session.address import Masks
from sticky_session.bootreport import report_boot_failure
from sticky_session.children import fork, keep_signals, original_fork
from sticky_session.errors import OptionError, StickySessionError
from sticky_session.handoff import Frame, close
from sticky_session.listener import Listener, peer_host
from sticky_session.listeners import Listeners
from sticky_session.ring import Ring
from sticky_session.settings import check_settings, options_of
from sticky_session.slots import Generation, Seat, pour
from sticky_session.upgrade import Upgrade

if TYPE_CHECKING:
    from sticky_session.worker import Worker

# How long a slot waits for the next try after its worker failed to boot for the first, second ... time.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
# How long processes get that a second signal has told to hurry, as in gunicorn.
QUICK_SECONDS = 2.0


class _ReloadedError(Exception):
    """Leaves gunicorn's reload() where it begins to wait for the old workers, deaf to everything else."""


class StickyArbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's arbiter with numbered slots and a listener."""

    # gunicorn's attributes, untyped there.
    app: Any
    cfg: Any
    log: Any
    worker_class: Any
    num_workers: int
    LISTENERS: list[Any]
    WORKERS: dict[int, Worker]
    _last_logged_active_worker_count: int | None

    _current: Generation
    _next: Generation | None
    _old: list[Generation]

    # --- taking over

    @classmethod
    def adopt(cls, arbiter: Arbiter) -> None:
        """Turn gunicorn's running arbiter, whose workers have not been started yet, into ours."""
        arbiter.__class__ = cls
        try:
            arbiter.start_cluster()
        except StickySessionError as error:
            arbiter.log.error("%s", error)
            sock.close_sockets(arbiter.LISTENERS, arbiter.owns_socket_files())
            if arbiter.pidfile is not None:
                arbiter.pidfile.unlink()
            sys.exit(1)

    def start_cluster(self) -> None:
        """Make what survives every child, before the first one is started.

        :raises OptionError: an option or gunicorn setting can't be used
        """
        check_settings(self.cfg)
        # gunicorn would run the file of `python -m ...`, with another import path.
        self.START_CTX["args"] = getattr(self.app, "command", self.START_CTX["args"])
        if self.cfg.reuse_port and not self.LISTENERS:
            # gunicorn leaves these to the workers, and ours have none; after SIGUSR2 the old arbiter's are meant.
            inherited = self.cfg.env_orig.get("GUNICORN_FD", "") if self.master_pid else ""
            self.LISTENERS = sock.create_sockets(self.cfg, self.log, [int(fd) for fd in inherited.split(",") if fd])
            self.log.info("Listening at: %s (%s)", ",".join(map(str, self.LISTENERS)), self.pid)
        if is_module_patched("os"):
            # gevent's os.close has put off what gunicorn closed of inherited sockets: no child may have a copy.
            gevent.idle()
        self._old = []
        self._next = None
        self._listeners = Listeners(self.log, self._be_listener)
        self._has_served = False
        self._stopping = False
        self._reloading = False
        self._current = self._new_generation()

        self._doorbell, self._doorbell_push = os.pipe()
        os.set_blocking(self._doorbell, False)
        os.set_blocking(self._doorbell_push, False)
        signal.signal(signal.SIGIO, self._rung)
        # Where gevent is patched in, its signal() tells about its own children only.
        get_original("signal", "signal")(signal.SIGCHLD, self.signal_chld)
        self._watch_descriptor(self._doorbell)
        # Nothing is ever written here: children see it close when the arbiter is gone, however it went.
        self._lifeline, self._lifeline_end = os.pipe()
        self._upgrade = Upgrade.from_environment(os.environ, self._watch_descriptor)

    def owns_socket_files(self) -> bool:
        """Whether the Unix sockets in the file system go when this arbiter goes."""
        alone = self.reexec_pid == self.master_pid == 0
        return alone and not self.systemd and not self.cfg.reuse_port

    def _rung(self, *_: object) -> None:
        self.wakeup()

    @staticmethod
    def _watch_descriptor(descriptor: int) -> None:
        """Have the kernel send this process SIGIO whenever something arrives (fcntl(2), F_SETOWN)."""
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)

    def _new_generation(self) -> Generation:
        binds = [(listening.FAMILY, listening.getsockname()) for listening in self.LISTENERS]
        return Generation(options_of(self.cfg), self.num_workers, binds)

    # --- gunicorn's loop

    def manage_workers(self) -> None:
        """Take the next step towards what there should be. Called at every turn of the loop."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._doorbell, 4096)
        self._note_ready_workers()
        if self._stopping:
            return
        self._change_over()
        self._resize()
        for generation in self._building():
            self._fill(generation)
        self._watch_listener()
        self._run_dry()
        self._tell_metrics()

    def reap_workers(self) -> None:
        """Reap children; a worker that can't boot ends the server only if none has ever served."""
        if self._reloading:
            raise _ReloadedError
        self._listeners.reap()
        before = dict(self.WORKERS)
        while True:
            try:
                super().reap_workers()
                break
            except HaltServer as halt:
                failed = next(w for pid, w in before.items() if pid not in self.WORKERS and not is_closed(w))
                failed.tmp.close()
                self.cfg.child_exit(self, failed)
                if self._stopping:
                    continue
                if not self._has_served:
                    raise
                self.log.error("%s The others go on serving", halt.reason)
                if failed.seat.generation is self._next:
                    self._abandon_next()
        # One that ended meanwhile has been taken by gunicorn's waitpid(-1).
        self._listeners.reap()
        self._forget(before)

    def murder_workers(self) -> None:
        """Kill the workers, and the listeners, that have not been heard of for too long."""
        super().murder_workers()
        if self.timeout:
            self._listeners.murder(self.timeout)

    def reload(self) -> None:
        """SIGHUP: build a new generation beside the current one, with new configuration and code."""
        former = self.app.cfg
        self._reloading = True
        try:
            super().reload()
        except _ReloadedError:
            # The rest is done step by step in the loop, where signals are handled.
            return
        except (SystemExit, OptionError) as error:
            if isinstance(error, SystemExit) and self.cfg is not former:
                # gunicorn has closed the old listening sockets and can't open the new ones.
                raise
            reason = "" if isinstance(error, SystemExit) else error
            self.log.error("Reload failed, the old configuration stays in force. %s", reason)
            self.app.cfg = former
        finally:
            self._reloading = False

    def setup(self, app: Any) -> None:
        """Read the new configuration on a reload.

        :raises OptionError: it can't be used; nothing has changed
        """
        check_settings(app.cfg)
        options_of(app.cfg)
        try:
            fits = hasattr(app.cfg.worker_class, "arbiter_class")
        except RuntimeError:
            # gunicorn's answer to a class that can't be imported.
            fits = False
        if not fits:
            raise OptionError(f"worker_class={app.cfg.worker_class_str}: a reload can't change to that; restart")
        if self._next is not None:
            self._abandon_next()
        super().setup(app)

    def stop(self, graceful: bool = True) -> None:
        """Stop the listener first, then the workers."""
        if self._stopping:
            # gunicorn calls it once more at the end of a quick shutdown.
            return
        self._stopping = True
        # The arbiter that started this one may have gone a moment ago.
        self.maybe_promote_master()
        sock.close_sockets(self.LISTENERS, self.owns_socket_files())
        self.LISTENERS = []
        deadline = time.monotonic() + self.cfg.graceful_timeout
        self._listeners.stop(signal.SIGTERM if graceful else signal.SIGQUIT)
        while self._listeners and time.monotonic() < deadline:
            if graceful and self._wants_quick_end():
                graceful = False
                deadline = min(deadline, time.monotonic() + QUICK_SECONDS)
                self._listeners.kill(signal.SIGQUIT)
            self._listeners.reap()
            if not self._listeners.is_accepting():
                # Another arbiter, if there is one, may accept from now on.
                self._upgrade.close()
            time.sleep(0.01)
        self._listeners.kill(signal.SIGKILL)
        self._upgrade.close()
        if graceful:
            self._spawn_for_the_rest()
        # gunicorn takes the timeout from here, and begins to count only now.
        self.cfg.set("graceful_timeout", max(0, math.ceil(deadline - time.monotonic())))
        super().stop(graceful)
        self._listeners.reap()

    def _wants_quick_end(self) -> bool:
        """Whether SIGINT or SIGQUIT has come during a graceful shutdown; all other signals come too late."""
        with contextlib.suppress(queue.Empty):
            return self.SIG_QUEUE.get_nowait() in (signal.SIGINT, signal.SIGQUIT)
        return False

    def _spawn_for_the_rest(self) -> None:
        """Have a worker for every channel that holds connections but whose worker is gone."""
        self.reap_workers()
        for generation in [*self._old, self._current]:
            occupied = self._occupied(generation)
            for slot, channel in enumerate(generation.channels):
                if slot not in occupied and not channel.is_empty:
                    self._spawn(generation, slot)

    def handle_usr1(self) -> None:
        """SIGUSR1: reopen the logs, the listener's too."""
        super().handle_usr1()
        self._listeners.kill(signal.SIGUSR1)

    def reexec(self) -> None:
        """SIGUSR2: start a new arbiter, and agree with it over who accepts."""
        # The one before may have ended a moment ago.
        self.reap_workers()
        if self.reexec_pid != 0 or self.master_pid != 0:
            super().reexec()
            return
        try:
            with self._upgrade.offer(self.cfg.env_orig), original_fork():
                super().reexec()
        except Exception:
            if os.getpid() == self.pid:
                raise
            # The child, which would go on as a second arbiter of the same workers.
            self.log.exception("The new arbiter can't be started")
            os._exit(1)

    # --- steps

    def _building(self) -> Iterator[Generation]:
        yield self._current
        if self._next is not None:
            yield self._next

    def _wanted(self, generation: Generation) -> int:
        """How many slots of the current or next generation should have a worker."""
        return self.num_workers if self._next is None else generation.ring_size

    def _note_ready_workers(self) -> None:
        for worker in self.WORKERS.values():
            seat = worker.seat
            if not worker.held_slot and seat.generation.table.last_holder(seat.slot) == worker.pid:
                worker.held_slot = True
                self._has_served = True
                seat.generation.failures.pop(seat.slot, None)
                seat.generation.table.renew_boot_report()
                self.log.info("Worker ready (slot:%s, pid:%s)", worker.seat.slot, worker.pid)

    def _occupied(self, generation: Generation) -> set[int]:
        """The slots that a worker serves, or is about to."""
        return {
            worker.seat.slot
            for worker in self.WORKERS.values()
            if worker.seat.generation is generation
            and not worker.told_to_stop
            and (not worker.held_slot or generation.table.holder(worker.seat.slot) == worker.pid)
        }

    def _fill(self, generation: Generation) -> None:
        occupied = self._occupied(generation)
        now = time.monotonic()
        for slot in range(self._wanted(generation)):
            if slot not in occupied and now >= generation.retry_at.get(slot, 0.0):
                self._spawn(generation, slot)

    def _change_over(self) -> None:
        """When all of the next generation's slots are filled, let the listener feed it."""
        upcoming = self._next
        if upcoming is None or not upcoming.is_filled(upcoming.ring_size):
            return
        self._old.append(self._current)
        self._current, self._next = upcoming, None
        self._listeners.stop(signal.SIGTERM)

    def _resize(self) -> None:
        """SIGTTIN and SIGTTOU: the ring grows when the new slots are filled, and shrinks before they are emptied."""
        current = self._current
        if self._next is None and self.num_workers > current.capacity:
            self.log.error(
                "workers=%s: expected at most %s, the number of partitions", self.num_workers, current.capacity
            )
            self.num_workers = current.capacity
        if self._next is not None or self.num_workers == current.ring_size:
            return
        if self.num_workers == 0:
            # SIGWINCH: this arbiter rests.
            self._listeners.stop(signal.SIGTERM)
            return
        current.grow(self.num_workers)
        if current.is_filled(self.num_workers):
            current.ring_size = self.num_workers
            self._listeners.stop(signal.SIGTERM)

    def _run_dry(self) -> None:
        """Tell the workers that are too many to stop, once no listener feeds them."""
        for generation in [*self._old, self._current]:
            if self._listeners.still_feed(generation):
                continue
            keep = max(self._wanted(generation), generation.ring_size) if generation is self._current else 0
            members = [w for w in self.WORKERS.values() if w.seat.generation is generation]
            for worker in members:
                if worker.seat.slot >= keep and not worker.told_to_stop:
                    worker.told_to_stop = True
                    self.kill_worker(worker.pid, signal.SIGTERM)
            served = {worker.seat.slot for worker in members}
            if generation is self._current:
                for slot in range(keep, len(generation.channels)):
                    if slot not in served:
                        self._pour(generation, slot)
            elif not members:
                for slot in range(len(generation.channels)):
                    self._pour(generation, slot)
                if all(channel.is_empty for channel in generation.channels):
                    self._old.remove(generation)
                    generation.close()

    def _pour(self, generation: Generation, slot: int) -> None:
        """Give the connections left in a channel that nobody will read to the current ring."""
        current = self._current
        options = current.options
        ring = Ring(current.ring_size, options.partitions, options.seed)
        masks = Masks(options.ipv4_prefix, options.ipv6_prefix)

        def route(frame: Frame) -> int:
            return ring.slot(masks.key(frame.address[0] if frame.address else peer_host(frame.descriptor)))

        lost = pour(generation.channels[slot], current.channels, route)
        if lost:
            self.log.error("%s connections of slot %s were lost: no descriptors left in the arbiter", lost, slot)

    def _tell_metrics(self) -> None:
        """gunicorn's own gauges, under gunicorn's names."""
        count = len(self.WORKERS)
        if self._last_logged_active_worker_count != count:
            self._last_logged_active_worker_count = count
            extra = {"metric": "gunicorn.workers", "value": count, "mtype": "gauge"}
            self.log.debug("%s workers", count, extra=extra)
        if self.cfg.enable_backlog_metric:
            backlog = sum(listening.get_backlog() or 0 for listening in self.LISTENERS)
            if backlog >= 0:
                extra = {"metric": "gunicorn.backlog", "value": backlog, "mtype": "histogram"}
                self.log.debug("socket backlog: %s", backlog, extra=extra)

    # --- workers

    def spawn_worker(self) -> None:
        """gunicorn's reload() wants one more worker: the first call starts a new generation."""
        if self._next is None:
            self._next = self._new_generation()

    def _spawn(self, generation: Generation, slot: int) -> None:
        self.worker_age += 1
        seat = Seat(slot, generation, self._doorbell_push)
        worker: Worker = self.worker_class(
            self.worker_age, self.pid, self.LISTENERS, self.app, self.timeout / 2.0, self.cfg, self.log, seat=seat
        )
        worker.options = generation.options
        self.cfg.pre_fork(self, worker)
        pid = fork()
        if pid == 0:
            self._be_worker(worker)
        worker.pid = pid
        self.WORKERS[pid] = worker
        self._stats["workers_spawned"] += 1

    def _be_worker(self, worker: Worker) -> NoReturn:
        """The child's side of the fork."""
        worker.pid = os.getpid()
        for sibling in self.WORKERS.values():
            sibling.tmp.close()
        self._close_in_child()
        self._close_generations(keep=worker.seat.generation)
        worker.seat.close_others()
        self.run_worker(worker)

    def run_worker(self, worker: Worker) -> NoReturn:
        """Boot, serve, and end; ``listen()`` does it later, from another place."""
        try:
            util._setproctitle(f"worker [{self.proc_name}]")
            self.log.info("Booting worker with pid: %s", worker.pid)
            worker.early_signals = keep_signals()
            self.cfg.post_fork(self, worker)
            worker.init_process()
            sys.exit(0)
        except SystemExit:
            raise
        except Exception as error:
            if not worker.booted:
                # All workers fail alike when the app is broken: only the first says so.
                if worker.seat.generation.table.claim_boot_report():
                    report_boot_failure(self.log, error)
                sys.exit(self.APP_LOAD_ERROR if isinstance(error, AppImportError) else self.WORKER_BOOT_ERROR)
            self.log.exception("Exception in worker process")
            sys.exit(1)
        finally:
            self._end_worker(worker)

    def _end_worker(self, worker: Worker) -> None:
        """What is left to do in a worker that ends."""
        self.log.info("Worker exiting (pid: %s)", worker.pid)
        try:
            worker.tmp.close()
            self.cfg.worker_exit(self, worker)
        except Exception:
            self.log.warning("Exception during worker exit:\n%s", traceback.format_exc())

    def _forget(self, before: dict[int, Worker]) -> None:
        """Note the workers that are gone."""
        for pid, worker in before.items():
            if pid in self.WORKERS or worker.forgotten:
                continue
            worker.forgotten = True
            seat = worker.seat
            seat.generation.table.vacate(seat.slot, pid)
            if not worker.held_slot and not worker.told_to_stop:
                failures = seat.generation.failures.get(seat.slot, 0)
                seat.generation.failures[seat.slot] = failures + 1
                pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                seat.generation.retry_at[seat.slot] = time.monotonic() + pause

    def _abandon_next(self) -> None:
        """Give up the generation being built; the current one goes on."""
        assert self._next is not None
        self._old.append(self._next)
        self._next = None
        self._num_workers = self._current.ring_size

    # --- the listener

    def _watch_listener(self) -> None:
        """Have a listener that feeds the current generation, unless this arbiter rests."""
        ready = self._has_served and self._current.is_filled(self._current.ring_size)
        if not self._upgrade.may_accept(ready, self._listeners.is_accepting()) or self.num_workers == 0:
            self._listeners.stop(signal.SIGTERM)
        else:
            self._listeners.start(self._current)

    def _be_listener(self, generation: Generation) -> NoReturn:
        """The listener's side of the fork."""
        status = 1
        try:
            for worker in self.WORKERS.values():
                worker.tmp.close()
            self._close_generations(keep=generation)
            util._setproctitle(f"listener [{self.proc_name}]")
            lifeline = os.dup(self._lifeline)
            self._close_in_child()
            util.set_owner_process(self.cfg.uid, self.cfg.gid, initgroups=self.cfg.initgroups)
            listener = Listener(
                self.LISTENERS,
                generation,
                lifeline=lifeline,
                doorbell=self._doorbell_push,
                secure=bool(self.cfg.is_ssl),
                log=self.log,
            )
            for listening in self.LISTENERS:
                # It has its own, and when it closes them they must be closed: nobody would accept any more.
                listening.close()
            listener.run()
            status = 0
        except BaseException:
            self.log.exception("The listener failed")
        finally:
            # Nothing of the arbiter's or a preloaded app's may run at exit in here.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _close_generations(self, keep: Generation) -> None:
        for generation in [*self._old, *self._building()]:
            if generation is not keep:
                generation.close()

    def _close_in_child(self) -> None:
        close(self._doorbell)
        close(self._lifeline)
        close(self._lifeline_end)
        self._upgrade.close()


def is_closed(worker: Worker) -> bool:
    """Whether the arbiter has finished with a worker that ended."""
    try:
        worker.tmp.fileno()
    except ValueError:
        return True
    return False
