"""The arbiter: gunicorn's master process, which also fills numbered slots and watches the listener, if there is one.

It runs in gunicorn's loop: :meth:`StickyArbiter.manage_workers` is called at every turn, looks at what there is,
and takes the next step towards what there should be. Nothing else decides. What it works with:

- The generations, one after another: :mod:`.succession`.
- The configuration in force, which SIGHUP changes: :mod:`.reload`.
- A worker holds its slot from the moment it has booted until it leaves or dies (:class:`slots.Table`). One that is
  booting or holds its slot keeps others from being started for it.
- The listener is one process, replaced whole whenever its sockets, ring or channels change. The next one is started
  when the former one accepts no more, so that no client is thrown to and fro between the old ring and the new.
- Where the kernel routes there is no listener: the workers accept, and the arbiter changes the kernel's program; see
  :mod:`.kernelrouter`.
- Children ring the doorbell, a pipe with O_ASYNC, when something has changed: SIGIO ends the loop's wait.

An old arbiter and the new one that SIGUSR2 started agree over a socket pair who accepts; see :mod:`.upgrade`.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import math
import os
import queue
import signal
import sys
import time
from collections.abc import Container, Iterable, Iterator
from socket import AF_UNIX
from typing import TYPE_CHECKING, Any, NoReturn

import gevent
from gevent.monkey import get_original, is_module_patched
from gunicorn import sock, util
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from sticky_session import boot, bussocket, reload, sockets
from sticky_session.bussocket import BusSocket
from sticky_session.children import fork, is_lost, original_fork
from sticky_session.errors import PlatformError, StickySessionError
from sticky_session.generation import Generation, Seat
from sticky_session.handoff import close
from sticky_session.kernelrouter import KernelRouter
from sticky_session.listener import EXHAUSTED, FLUSH_SECONDS, Listener
from sticky_session.listeners import Listeners
from sticky_session.settings import check_settings, options_of, warnings
from sticky_session.succession import Succession
from sticky_session.upgrade import Upgrade

if TYPE_CHECKING:
    from sticky_session.worker import Worker

# How long a slot waits for the next try after its worker failed to boot for the first, second ... time.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
# How long processes get that a second signal has told to hurry, as in gunicorn.
QUICK_SECONDS = 2.0


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
    pidfile: Any
    reexec_pid: int
    _last_logged_active_worker_count: int | None

    # --- taking over

    @classmethod
    def adopt(cls, arbiter: Arbiter) -> None:
        """Turn gunicorn's running arbiter, whose workers have not been started yet, into ours."""
        arbiter.__class__ = cls
        try:
            arbiter.start_cluster()
        except StickySessionError as error:
            arbiter.log.error("%s", error)
            sockets.close(arbiter.LISTENERS, unlink=arbiter.owns_socket_files())
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
        self._listeners = Listeners(self.log, self._be_listener)
        self._router = KernelRouter.from_environment(os.environ, self.log)
        # The workers whose end has not been noted yet.
        self._workers: dict[int, Worker] = {}
        inherited = bussocket.inherit(os.environ)
        bus_socket = bussocket.listen(options_of(self.cfg), self.cfg, inherited)
        sockets.close([it for it in inherited if it not in bus_socket], unlink=False)
        first = self._new_generation([*self.LISTENERS, *bus_socket])
        self._router.close_inherited()
        self._generations = Succession(first, self._workers, self._listeners, self.log)
        self._has_served = False
        self._stopping = False

        self._doorbell, self._doorbell_push = os.pipe()
        os.set_blocking(self._doorbell, False)
        os.set_blocking(self._doorbell_push, False)
        signal.signal(signal.SIGIO, self._rung)
        self._watch_children()
        self._watch_descriptor(self._doorbell)
        # Nothing is ever written here: children see it close when the arbiter is gone, however it went.
        self._lifeline, self._lifeline_end = os.pipe()
        self._upgrade = Upgrade.from_environment(os.environ, self._watch_descriptor)

    def owns_socket_files(self) -> bool:
        """Whether the files of the Unix sockets that requests come to go when this arbiter goes."""
        return self._is_alone() and self._makes_socket_files()

    def _makes_socket_files(self) -> bool:
        return not self.systemd and not self.cfg.reuse_port

    def _socket_files(self) -> list[str]:
        """The paths of the Unix sockets that this arbiter, or the one before it, has made."""
        made = [it for it in self._generations.sockets() if isinstance(it, BusSocket) or self._makes_socket_files()]
        # One without a file has bytes for a name, unix(7).
        return [name for it in made if isinstance(name := it.getsockname(), str) and it.FAMILY == AF_UNIX]

    def _is_alone(self) -> bool:
        """Whether there is no other arbiter that has the same sockets."""
        return bool(self.reexec_pid == self.master_pid == 0)

    def _close_sockets(self, listening: Iterable[Any]) -> None:
        """Close listening sockets, with their files where these are ours; nobody else makes the bus socket's."""
        for it in listening:
            owned = self._is_alone() and it.is_in_place if isinstance(it, BusSocket) else self.owns_socket_files()
            sockets.close([it], unlink=owned)

    def _leave(self, listening: Iterable[Any]) -> None:
        """Listen on some sockets no longer; who waits there is served."""
        for it in listening:
            self._router.drop(it, everywhere=self._is_alone())
            self._close_sockets([it])

    def _rung(self, *_: object) -> None:
        self.wakeup()

    @staticmethod
    def _watch_descriptor(descriptor: int) -> None:
        """Have the kernel send this process SIGIO whenever something arrives (fcntl(2), F_SETOWN)."""
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)

    def _watch_children(self) -> None:
        """Where gevent is patched in, and a hook has run a subprocess, gevent has taken SIGCHLD for itself."""
        if is_module_patched("os"):
            get_original("signal", "signal")(signal.SIGCHLD, self.signal_chld)
            # It takes it again for the next subprocess, and would wait for ever if it believed that it still has it.
            gevent.get_hub().loop.reset_sigchld()

    def _new_generation(self, listening: list[Any], shared: Container[Any] = ()) -> Generation:
        options = options_of(self.cfg)
        groups = self._router.choose(self.cfg, options, listening, self.num_workers, shared)
        generation = Generation(copy.copy(self.app), options, self.num_workers, listening, groups)
        for warning in warnings(self.cfg, generation.binds):
            self.log.warning("%s", warning)
        return generation

    # --- gunicorn's loop

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        """Wait for the next turn."""
        return super().wait_for_signals(min(timeout, self._router.tick_seconds))

    def manage_workers(self) -> None:
        """Take the next step towards what there should be. Called at every turn of the loop."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._doorbell, 4096)
        self.reap_workers()
        self._note_ready_workers()
        if self._stopping:
            return
        generations = self._generations
        with self._closing_unused_sockets():
            generations.change_over()
        self._resize()
        for generation, slot in list(generations.to_fill(self.num_workers)):
            # The worker before may have shown that a reload can't be completed.
            if generation is generations.current or generation is generations.next:
                self._spawn(generation, slot)
        generations.introduce()
        self._route()
        for worker in generations.surplus(self.num_workers):
            worker.told_to_stop = True
            self.kill_worker(worker.pid, signal.SIGTERM)
        self._router.prune(generations)
        self._router.turn()
        generations.run_dry(self.num_workers)
        self._tell_metrics()
        self._watch_children()

    def reap_workers(self) -> None:
        """Reap children; a worker that can't boot ends the server only if none has ever served."""
        self._listeners.reap()
        while True:
            try:
                super().reap_workers()
                break
            except HaltServer as halt:
                self._note_failed_boot(halt)
        # One that ended meanwhile has been taken by gunicorn's waitpid(-1).
        self._listeners.reap()
        self._reap_lost()
        self._forget()

    def _note_failed_boot(self, halt: HaltServer) -> None:
        """Do what gunicorn leaves undone for a worker that could not boot.

        :raises HaltServer: none has ever served
        """
        failed = [w for pid, w in self._workers.items() if pid not in self.WORKERS and not is_closed(w)]
        for worker in failed:
            worker.tmp.close()
            self.cfg.child_exit(self, worker)
        if self._stopping:
            return
        if not self._has_served:
            raise halt
        self.log.error("%s The others go on serving", halt.reason)
        if any(worker.seat.generation is self._generations.next for worker in failed):
            self._give_up_reload()

    def _reap_lost(self) -> None:
        """Note the end of workers whose exit status somebody else has taken, as gevent does while a hook waits."""
        for pid, worker in list(self.WORKERS.items()):
            if is_lost(pid):
                self.log.info("Worker (pid:%s) has ended", pid)
                del self.WORKERS[pid]
                worker.tmp.close()
                self.cfg.child_exit(self, worker)
        if self.reexec_pid and is_lost(self.reexec_pid):
            self.reexec_pid = 0

    def murder_workers(self) -> None:
        """Kill the workers, and the listeners, that have not been heard of for too long."""
        for pid, worker in list(self.WORKERS.items()):
            # gunicorn would judge those of the former configuration by the timeout of the new one.
            timeout = worker.cfg.timeout
            if timeout and time.monotonic() - worker.tmp.last_update() > timeout:
                if not worker.aborted:
                    self.log.critical("WORKER TIMEOUT (pid:%s)", pid)
                self.kill_worker(pid, signal.SIGKILL if worker.aborted else signal.SIGABRT)
                worker.aborted = True
        self._listeners.murder()

    # --- SIGHUP

    def reload(self) -> None:
        """SIGHUP: build a new generation beside the current one, with new configuration and code.

        All that gunicorn's own does but for the end: nothing waits for the old workers here. What can't be used
        changes nothing.
        """
        self._stats["reloads"] += 1
        former = self._generations.newest
        before, listening = self._generations.sockets(), list[Any]()
        try:
            reload.read(self, former, before)
            changed = self.app.cfg.address != former.cfg.address
            listening += sockets.listen_on(self.app.cfg, self.log, before) if changed else self.LISTENERS
            listening += bussocket.listen(options_of(self.app.cfg), self.app.cfg, before)
            reload.put_in_force(self)
            generation = self._new_generation(listening, () if self._is_alone() else before)
        except (Exception, SystemExit) as error:
            # gunicorn has said why before SystemExit.
            reason = "" if isinstance(error, SystemExit) else error
            self.log.error("Reload failed, the old configuration stays in force. %s", reason)
            self._leave(it for it in listening if it not in before)
            reload.return_to(self, former)
            return
        try:
            self.log.reopen_files()
        except OSError as error:
            self.log.error("The logs can't be reopened: %s", error)
        with self._closing_unused_sockets():
            self._generations.abandon()
            if changed:
                self.LISTENERS = generation.gunicorns_sockets()
                self.log.info("Listening at: %s", ",".join(map(str, self.LISTENERS)))
            self._generations.begin(generation)
        try:
            self.cfg.on_reload(self)
        except Exception:
            self.log.exception("Exception in on_reload hook")
        util._setproctitle(f"master [{self.proc_name}]")

    def _give_up_reload(self) -> None:
        """The next generation can't boot: go on with the current one and its configuration."""
        with self._closing_unused_sockets():
            self._generations.abandon()
            self.LISTENERS = self._generations.current.gunicorns_sockets()
        reload.give_up(self, self._generations.current)

    @contextlib.contextmanager
    def _closing_unused_sockets(self) -> Iterator[None]:
        """Around a change of generations: close the listening sockets that no generation needs after it."""
        before = self._generations.sockets()
        yield
        needed = self._generations.sockets()
        self._leave(it for it in before if it not in needed)

    # --- other signals

    def stop(self, graceful: bool = True) -> None:
        """Stop the listener first, then the workers."""
        if self._stopping:
            # gunicorn calls it once more at the end of a quick shutdown.
            return
        self._stopping = True
        # The arbiter that started this one may have gone a moment ago.
        self.maybe_promote_master()
        if graceful:
            # The listener may have ended a moment ago, and connections wait in the kernel's queues for the next one. Or
            # the other arbiter has.
            self.reap_workers()
            self._route(pause=False)
        for generation in self._generations:
            # Before the listener goes: nobody else takes what workers pass on to slots that are newer than they are.
            generation.table.set_final(True)
        shared_files = [] if self._is_alone() else self._socket_files()
        if self._router.is_open and not self._is_alone():
            self._router.hand_over(self._generations.current)
        elif graceful and self._router.is_open:
            self._router.turn()
            # They accept what waits, and need the sockets for it.
            self._spawn_for_the_rest()
        self._close_sockets(self._generations.sockets())
        self._router.close()
        self.LISTENERS = []
        for generation in self._generations:
            generation.sockets.clear()
            generation.groups.clear()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        flushed_at = time.monotonic() + FLUSH_SECONDS if graceful else 0.0
        self._listeners.stop(signal.SIGTERM if graceful else signal.SIGQUIT)
        while (self._listeners or self._router.has_connections) and time.monotonic() < deadline:
            if graceful and self._wants_quick_end():
                graceful = False
                deadline = min(deadline, time.monotonic() + QUICK_SECONDS)
                flushed_at = 0.0
                self._listeners.kill(signal.SIGQUIT)
            self._listeners.reap()
            self._router.turn()
            if time.monotonic() > flushed_at:
                self._router.refuse_all()
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
        for path in shared_files:
            # The other arbiter has ended meanwhile, or knows nothing of what a reload has opened here.
            sockets.remove_stale(path)

    def _wants_quick_end(self) -> bool:
        """Whether SIGINT or SIGQUIT has come during a graceful shutdown; all other signals come too late."""
        with contextlib.suppress(queue.Empty):
            return self.SIG_QUEUE.get_nowait() in (signal.SIGINT, signal.SIGQUIT)
        return False

    def _spawn_for_the_rest(self) -> None:
        """Have a worker for every channel that holds connections but whose worker is gone."""
        self.reap_workers()
        for generation, slot in list(self._generations.to_rescue()):
            self._spawn(generation, slot)

    def handle_winch(self) -> None:
        """SIGWINCH: a daemon rests, its listener before its workers."""
        if self.cfg.daemon:
            self.log.info("graceful stop of workers")
            self.num_workers = 0
        else:
            self.log.debug("SIGWINCH ignored. Not daemonized")

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
        for listening in self._generations.sockets():
            # During a reload there may be others, which the new arbiter would hold open and know nothing of.
            os.set_inheritable(listening.fileno(), listening in self.LISTENERS)
        bus_socket, environ = self._generations.newest.bus_socket, self.cfg.env_orig
        try:
            with (
                self._upgrade.offer(environ),
                bussocket.offer(bus_socket, environ),
                self._router.offer(self.LISTENERS, environ),
                original_fork(),
            ):
                super().reexec()
        except Exception:
            self.log.exception("The new arbiter can't be started")
            if os.getpid() != self.pid:
                # The child, which would go on as a second arbiter of the same workers.
                os._exit(1)

    # --- steps

    def _resize(self) -> None:
        """SIGTTIN and SIGTTOU; leave out SIGTTIN's that are too many."""
        generations, current = self._generations, self._generations.current
        most, why = current.capacity, f"with {current.options.partitions} partitions"
        if current.groups and not self._is_alone():
            # The kernel numbers sockets as they come, whosever they are.
            most, why = len(current.channels), "while another arbiter listens on the same addresses"
        if generations.next is None and self.num_workers > most:
            self.log.error("workers=%s: expected at most %s %s", self.num_workers, most, why)
            self.num_workers = most
        try:
            generations.resize(self.num_workers)
        except (OSError, PlatformError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self.log.error("workers=%s: %s", self.num_workers, reason)
            self.num_workers = current.ring_size

    def _note_ready_workers(self) -> None:
        for worker in self.WORKERS.values():
            seat = worker.seat
            if not worker.held_slot and seat.generation.table.last_holder(seat.slot) == worker.pid:
                worker.held_slot = True
                self._has_served = True
                seat.generation.failures.pop(seat.slot, None)
                seat.generation.table.boot_report.renew()
                self.log.info("Worker ready (slot:%s, pid:%s)", worker.seat.slot, worker.pid)

    def _tell_metrics(self) -> None:
        """gunicorn's own gauges, under gunicorn's names."""
        count = len(self.WORKERS)
        if self._last_logged_active_worker_count != count:
            self._last_logged_active_worker_count = count
            extra = {"metric": "gunicorn.workers", "value": count, "mtype": "gauge"}
            self.log.debug("%s workers", count, extra=extra)
        if self.cfg.enable_backlog_metric:
            backlog = sum(listening.get_backlog() or 0 for listening in self.LISTENERS) + self._router.waiting()
            if backlog >= 0:
                extra = {"metric": "gunicorn.backlog", "value": backlog, "mtype": "histogram"}
                self.log.debug("socket backlog: %s", backlog, extra=extra)

    # --- workers

    def _spawn(self, generation: Generation, slot: int) -> None:
        self.worker_age += 1
        cfg = generation.cfg
        umask = os.umask(0)
        os.umask(umask)
        try:
            worker: Worker = cfg.worker_class(
                self.worker_age,
                self.pid,
                generation.sockets,
                generation.app,
                cfg.timeout / 2.0,
                cfg,
                self.log,
                seat=Seat(slot, generation, self._doorbell_push),
            )
        except Exception as error:
            # It has a temporary file.
            if isinstance(error, OSError) and error.errno in EXHAUSTED | {errno.ENOSPC, errno.EDQUOT}:
                self._put_off(generation, slot, error.strerror)
            else:
                self._note_unstartable(generation, slot, error)
            return
        finally:
            # gunicorn's, in which it makes the file, stays in force where it can't be made.
            os.umask(umask)
        worker.options = generation.options
        try:
            cfg.pre_fork(self, worker)
        except Exception as error:
            worker.tmp.close()
            self._note_unstartable(generation, slot, error, exc_info=error)
            return
        try:
            pid = fork()
        except OSError as error:
            self._put_off(generation, slot, error.strerror)
            worker.tmp.close()
            return
        if pid == 0:
            self._be_worker(worker)
        worker.pid = pid
        self.WORKERS[pid] = self._workers[pid] = worker
        self._stats["workers_spawned"] += 1

    def _note_unstartable(
        self, generation: Generation, slot: int, error: Exception, exc_info: Exception | None = None
    ) -> None:
        """A worker can't be started as its configuration says.

        :param exc_info: the error again if it is that of code of the user's, for the log
        :raises Exception: the error, if none has ever served
        """
        if not self._has_served:
            raise error
        if generation is self._generations.next:
            self.log.error("Reload failed, the old configuration stays in force. %r", error, exc_info=exc_info)
            self._give_up_reload()
        else:
            self._put_off(generation, slot, repr(error), exc_info)

    def _put_off(self, generation: Generation, slot: int, why: str | None, exc_info: Exception | None = None) -> None:
        self.log.error("No worker can be started for slot %s: %s; trying again", slot, why, exc_info=exc_info)
        generation.retry_at[slot] = time.monotonic() + RETRY_SECONDS[-1]

    def _be_worker(self, worker: Worker) -> NoReturn:
        """The child's side of the fork."""
        worker.pid = os.getpid()
        if worker.seat.generation.surroundings is not None:
            worker.seat.generation.surroundings.restore()
        self.cfg = worker.cfg
        for sibling in self.WORKERS.values():
            sibling.tmp.close()
        self._close_in_child()
        self._router.close_in_child(keep=worker.seat.generation.groups)
        self._close_generations(keep=worker.seat.generation)
        worker.seat.close_others()
        self.run_worker(worker)

    def run_worker(self, worker: Worker) -> NoReturn:
        """Boot, serve, and end; ``listen()`` does it later, from another place."""
        boot.run_worker(self, worker)

    def _forget(self) -> None:
        """Note the workers that are gone."""
        for pid, worker in list(self._workers.items()):
            if pid in self.WORKERS:
                continue
            del self._workers[pid]
            seat = worker.seat
            seat.generation.table.vacate(seat.slot, pid)
            if not worker.held_slot and not worker.told_to_stop:
                failures = seat.generation.failures.get(seat.slot, 0)
                seat.generation.failures[seat.slot] = failures + 1
                pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                seat.generation.retry_at[seat.slot] = time.monotonic() + pause

    # --- who accepts

    def _route(self, *, pause: bool = True) -> None:
        """Have a listener that feeds the current generation, or let its workers accept, unless this arbiter rests.

        :param pause: whether to wait a moment if one has just failed
        """
        current = self._generations.current
        ready = self._has_served and current.is_filled(current.ring_size)
        by_kernel = bool(current.groups)

        def may_accept() -> bool:
            accepting = self._listeners.is_accepting() or self._router.is_open
            return self._upgrade.may_accept(ready, accepting, by_kernel=by_kernel)

        if not may_accept() or self.num_workers == 0:
            self._listeners.stop(signal.SIGTERM)
            if self._upgrade.yields_to_listener:
                self._router.gather(current)
            else:
                self._router.shut()
            # The other one need not wait for the next turn, unless a listener has still to accept what is left.
            may_accept()
        elif by_kernel:
            self._listeners.stop(signal.SIGTERM)
            if not self._listeners.is_accepting():
                self._router.open(current)
        else:
            self._router.gather(current)
            self._listeners.start(current, pause=pause)

    def _be_listener(self, generation: Generation) -> NoReturn:
        """The listener's side of the fork."""
        status = 1
        try:
            cfg = generation.cfg
            for worker in self.WORKERS.values():
                worker.tmp.close()
            self._router.close_in_child()
            self._close_generations(keep=generation)
            generation.close_buses()
            util._setproctitle(f"listener [{self.proc_name}]")
            lifeline = os.dup(self._lifeline)
            self._close_in_child()
            util.set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)
            listener = Listener(generation, lifeline=lifeline, doorbell=self._doorbell_push, log=self.log)
            # It has its own, and when it closes them they must be closed: nobody would accept any more.
            sockets.close(generation.sockets, unlink=False)
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
        """In a child: close what belongs to other generations."""
        sockets.close([it for it in self._generations.sockets() if it not in keep.sockets], unlink=False)
        for generation in self._generations:
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
