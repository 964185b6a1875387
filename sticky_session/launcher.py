"""``listen()``: a script becomes a cluster.

Processes. The script's process is the *master*; it forks the arbiter and goes on with the script. The arbiter forks
workers, and each leaves the arbiter's stack by an exception, so that it too comes out of ``listen()`` and goes on with
the script. When the script ends, the master waits for the arbiter and passes signals on, and a worker serves.

What runs when the script ends is registered with ``threading._register_atexit``, which runs in the main thread while
threads and forks are still allowed; ``atexit`` proper is too late for both (from Python 3.12 on).
"""

from __future__ import annotations

import atexit

# Registers its own exit function, which must run after ours: they run in reverse order.
import concurrent.futures.thread  # noqa: F401
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

from gevent import monkey
from gunicorn.arbiter import Arbiter
from gunicorn.util import parse_address

from sticky_session import boot, handoff, sockets
from sticky_session.app import ScriptApplication, speaks_asgi
from sticky_session.arbiter import StickyArbiter
from sticky_session.errors import ListenError, OptionError
from sticky_session.settings import check_settings
from sticky_session.system import check_platform
from sticky_session.worker import Worker, current_worker

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
)

# These forbid fork() from the moment the script has ended (python/cpython issue 113964).
_NO_FORK_AT_END = (3, 12, 0) <= sys.version_info[:3] < (3, 12, 3)

# What this process is after listen(), None before.
_role: _Master | _ScriptWorker | None = None


class _Departure(BaseException):
    """Takes a worker out of the arbiter's stack; no `except Exception` on the way may stop it."""

    def __init__(self, arbiter: ScriptArbiter, worker: Worker) -> None:
        super().__init__()
        self.arbiter = arbiter
        self.worker = worker


class ScriptArbiter(StickyArbiter):
    """An arbiter whose workers go on with the script before they serve."""

    def run_worker(self, worker: Worker) -> NoReturn:
        """Leave for the script; :class:`_ScriptWorker` serves later."""

        def end_or_keep(number: int, _: object) -> None:
            """Until the worker serves it has nothing to finish but what may wait for it in its channel."""
            if worker.seat.has_connections:
                worker.early_signals.append(number)
            else:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        # The arbiter's handlers would swallow them.
        signal.signal(signal.SIGTERM, end_or_keep)
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # What the script starts must not inherit the port.
        sockets.close(worker.sockets, unlink=False)
        worker.sockets = []
        raise _Departure(self, worker)

    def manage_workers(self) -> None:
        """Also end when the master is gone."""
        if os.getppid() != self.script_pid:
            self.log.error("The script's process (pid:%s) is gone: shutting down", self.script_pid)
            raise StopIteration
        super().manage_workers()

    def handle_usr2(self) -> None:
        """SIGUSR2 would run the script once more, with the port still taken."""
        self.log.error("SIGUSR2 does not work under listen(): start the script again instead")


class ScriptWorker(Worker):
    """The worker class of ``listen()``."""

    arbiter_class = ScriptArbiter


class _ScriptWorker:
    """This process is a worker."""

    def __init__(self, departure: _Departure) -> None:
        self.worker = departure.worker
        self._arbiter = departure.arbiter
        self._served = False
        self._script_failed = False
        show = sys.excepthook

        def note(*details: Any) -> None:
            self._script_failed = True
            # All workers fail alike: only the first says so.
            if self.worker.seat.generation.table.boot_report.take():
                show(*details)

        sys.excepthook = note

    def serve(self) -> None:
        """Serve until told to stop, and end the process."""
        if self._served:
            return
        self._served = True
        status = 1
        try:
            if self._script_failed:
                status = self._arbiter.WORKER_BOOT_ERROR
            else:
                boot.run_worker(self._arbiter, self.worker)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            _end_process(status)


class _Master:
    """This process runs the script and watches the arbiter."""

    def __init__(self, arbiter_pid: int) -> None:
        self.arbiter_pid = arbiter_pid
        self._former_handlers = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}
        self._script_failed = False
        show = sys.excepthook

        def note(*details: Any) -> None:
            self._script_failed = True
            show(*details)

        sys.excepthook = note

    def _pass_on(self, number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.arbiter_pid, number)

    def serve(self) -> None:
        """Wait for the arbiter, and end the process with its status if that is not 0.

        A script that has failed takes the cluster with it, as in Node.
        """
        if not self.arbiter_pid:
            return
        if self._script_failed:
            os.kill(self.arbiter_pid, signal.SIGTERM)
        pidfd = os.pidfd_open(self.arbiter_pid)
        # Where gevent has patched it, this lets the script's greenlets run. It ends every second, because a signal that
        # arrives just before it begins to wait does not interrupt it, and its handler would never run.
        while not select.select([pidfd], [], [], 1.0)[0]:
            pass
        handoff.close(pidfd)
        for number, handler in self._former_handlers.items():
            # None is a handler that Python did not install and can't put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _, status = os.waitpid(self.arbiter_pid, 0)
        self.arbiter_pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code:
            _end_process(code if code > 0 else 128 - code)


def listen(
    app: Any,
    address: int | str | tuple[str, int],
    *,
    workers: int | None = None,
    env: dict[str, str] | None = None,
    **settings: Any,
) -> bool:
    """Serve an app on several processes, every client on its own.

    Returns in every process, and every process goes on with the script: in the master, which only watches, once the
    port is listening; and in each worker, also in one that replaces another. No process ends with the script's last
    line; :func:`wait` says so explicitly.

    :param app: a WSGI app
    :param address: a port (on all interfaces), ``"host:port"``, ``(host, port)``, or ``"unix:PATH"``
    :param workers: how many; by default one for each processor
    :param env: environment variables for the workers
    :param settings: any setting of gunicorn's, and our options as ``sticky_...``
    :returns: False in the master, True in a worker
    :raises OSError: the address can't be listened on
    :raises ListenError: called twice, or in a worker
    :raises OptionError: an option of ours, or ``workers``, can't be used
    :raises TypeError: there is no such setting, or its value can't be used
    """
    global _role
    check_platform()
    if _role is not None:
        where = "in a worker" if isinstance(_role, _ScriptWorker) else "twice"
        raise ListenError(f"listen() was called {where}; call it once, in the script's own process")
    if threading.current_thread() is not threading.main_thread():
        raise ListenError("listen() was called in a thread or greenlet; call it in the main thread")
    if not monkey.is_module_patched("socket"):
        print(
            "sticky_session.listen(): the standard library is not patched by gevent, so what was imported "
            "before may block a whole worker; "
            "make `from gevent import monkey; monkey.patch_all()` the script's first line",
            file=sys.stderr,
        )
    if _NO_FORK_AT_END:
        print(
            "sticky_session.listen(): on Python 3.12.0 to 3.12.2 an app can start no subprocess after the script's "
            "last line; make sticky_session.wait() that line, or use a later Python",
            file=sys.stderr,
        )
    application = _make_application(app, workers, env, settings)
    listening = _bind(address, application.cfg)
    forked = _fork_arbiter(application, listening)
    _role = _ScriptWorker(forked) if isinstance(forked, _Departure) else _Master(forked)
    threading._register_atexit(wait)  # type: ignore[attr-defined]
    return isinstance(_role, _ScriptWorker)


def wait() -> None:
    """Serve in a worker, and wait for the cluster's end in the master. Called by itself after the script's last line.

    :raises ListenError: ``listen()`` has not been called
    """
    if _role is None:
        raise ListenError("wait() was called before listen()")
    # What the script has printed would otherwise come out at the end, where it is not a terminal.
    _flush()
    _role.serve()


def close() -> None:
    """Retire this worker: it takes no new connection, its slot is refilled, it ends when its last request is done.

    :raises ListenError: this process is no worker
    """
    worker = current_worker()
    if worker is None:
        raise ListenError("close() was called outside a worker; call it in a request or in a greenlet of the app")
    worker.retire()


def worker_id() -> int | None:
    """The number of the slot that this process fills, 0 to workers-1; None if it is no worker."""
    if isinstance(_role, _ScriptWorker):
        return _role.worker.seat.slot
    worker = current_worker()
    return None if worker is None else worker.seat.slot


# --- how listen() does it


def _make_application(
    app: Any, workers: int | None, env: dict[str, str] | None, settings: dict[str, Any]
) -> ScriptApplication:
    for name, instead in (("bind", "the address is its second argument"), ("worker_class", "the workers are its own")):
        if name in settings:
            raise TypeError(f"listen(): {name!r} can't be set here; {instead}")
    if not callable(app):
        raise TypeError(f"listen(): {app!r} is no WSGI app; expected a callable, as in listen(app, 3000)")
    if speaks_asgi(app):
        raise TypeError(f"listen(): {app!r} is an ASGI app; expected one of WSGI, such as socketio.WSGIApp")
    if workers is not None:
        settings["workers"] = workers
    if env is not None:
        settings["raw_env"] = [f"{name}={value}" for name, value in env.items()]
    application = ScriptApplication(app, ScriptWorker, settings)
    check_settings(application.cfg)
    return application


def _parse(address: int | str | tuple[str, int]) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """The family of an address, and what ``bind`` takes: a path, or host and port."""
    match address:
        case int(port):
            host = "0.0.0.0"  # noqa: S104 - as a port alone means in Node
        case str(path) if path.startswith("unix:"):
            return socket.AF_UNIX, str(parse_address(path))
        case str(text) if text.rpartition(":")[2].isdecimal() and not text.startswith("fd:"):
            host, port = parse_address(text)
        case (str(host), int(port)):
            pass
        case _:
            raise OptionError(f"listen(): {address!r}: expected a port, 'host:port', (host, port) or 'unix:PATH'")
    if not 0 <= port <= 65535:
        raise OptionError(f"listen(): port {port}; expected 0 to 65535")
    return socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)


def _bind(address: int | str | tuple[str, int], cfg: Any) -> socket.socket:
    """Listen on the address in the script's own process, so that the error is the caller's."""
    family, place = _parse(address)
    make_socket = monkey.get_original("socket", "socket")
    listening: socket.socket = make_socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            sockets.bind_unix(listening, str(place), cfg, cfg.umask)
            return listening
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if cfg.reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(place)
        listening.listen(cfg.backlog)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"{error.strerror}: {place!r}; choose another or stop who has it") from None
    return listening


def _fork_arbiter(application: ScriptApplication, listening: socket.socket) -> int | _Departure:
    """Fork the arbiter.

    :returns: its process id in the script's process, once it is ready; the departure in a worker
    """
    script_pid = os.getpid()
    ready, report = os.pipe()
    _flush()
    pid: int = monkey.get_original("os", "fork")()
    if pid == 0:
        handoff.close(ready)
        try:
            _run_arbiter(application, script_pid, listening, report)
        except _Departure as departure:
            return departure
    handoff.close(report)
    listening.close()
    try:
        if os.read(ready, 1):
            return pid
    finally:
        handoff.close(ready)
    waitpid = monkey.get_original("os", "waitpid")
    _, status = waitpid(pid, 0)
    raise ListenError(
        f"the cluster could not be started (status {os.waitstatus_to_exitcode(status)}); the log above says why"
    )


def _run_arbiter(application: ScriptApplication, script_pid: int, listening: socket.socket, report: int) -> NoReturn:
    """The arbiter's process, and that of every worker until it departs."""
    application.listen_on(listening.detach())
    cfg = application.cfg
    when_ready = cfg.when_ready

    def tell(arbiter: Arbiter) -> None:
        when_ready(arbiter)
        os.write(report, b"r")
        handoff.close(report)

    cfg.set("when_ready", tell)
    status = 1
    try:
        arbiter = Arbiter(application)
        arbiter.script_pid = script_pid
        arbiter.run()
    except _Departure:
        raise
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    # Not in a finally clause: a worker must get past here.
    _end_process(status, exit_functions=False)


def _end_process(status: int, *, exit_functions: bool = True) -> NoReturn:
    """End this process now, with a status that the interpreter's normal end can't be given."""
    if exit_functions:
        atexit._run_exitfuncs()
    _flush()
    os._exit(status)


def _flush() -> None:
    """Write out what has been printed, as far as somebody reads it; a process without a console has no streams."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
