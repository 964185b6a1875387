"""A worker's process from the fork to its end."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn import util
from gunicorn.errors import AppImportError

from sticky_session.children import keep_signals

if TYPE_CHECKING:
    from sticky_session.arbiter import StickyArbiter
    from sticky_session.worker import Worker


def run_worker(arbiter: StickyArbiter, worker: Worker) -> NoReturn:
    """Boot, serve, and end.

    :raises SystemExit: always
    """
    log = worker.log
    try:
        util._setproctitle(f"worker [{arbiter.proc_name}]")
        log.info("Booting worker with pid: %s", worker.pid)
        keep_signals(worker.early_signals)
        worker.cfg.post_fork(arbiter, worker)
        worker.init_process()
        sys.exit(0)
    except SystemExit:
        raise
    except Exception as error:
        if not worker.booted:
            # All workers fail alike when the app is broken: only the first says so.
            if worker.seat.generation.table.boot_report.take():
                report_failure(log, error)
            sys.exit(arbiter.APP_LOAD_ERROR if isinstance(error, AppImportError) else arbiter.WORKER_BOOT_ERROR)
        log.exception("Exception in worker process")
        sys.exit(1)
    finally:
        log.info("Worker exiting (pid: %s)", worker.pid)
        try:
            worker.tmp.close()
            worker.cfg.worker_exit(arbiter, worker)
        except Exception:
            log.warning("Exception during worker exit:\n%s", traceback.format_exc())


def report_failure(log: Any, error: Exception) -> None:
    """Say in one line why the app can't be loaded, with a traceback if it is the app's own code that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    is_apps = any(not is_machinery(frame.filename) for frame in frames) and not isinstance(error, AppImportError)
    log.error("Can't load the app: %s: %s", type(error).__name__, error, exc_info=error if is_apps else None)


def is_machinery(filename: str) -> bool:
    """Whether a traceback's frame is gunicorn's, ours or the import system's, so not the app's."""
    return "importlib" in filename or any(
        filename.startswith(os.path.dirname(module.__file__) + os.sep)
        for module in (sys.modules["gunicorn"], sys.modules["sticky_session"])
        if module.__file__
    )
