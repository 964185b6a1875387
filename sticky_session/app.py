"""The gunicorn applications behind ``sticky-session serve`` and ``listen()``."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import sys
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.app.wsgiapp import WSGIApplication

from sticky_session.errors import OptionError
from sticky_session.settings import StickyConfig, check_settings, has_our_workers


def default_workers() -> int:
    """One worker for each processor that this process may use; gunicorn's WEB_CONCURRENCY is stronger."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return multiprocessing.cpu_count()


def speaks_asgi(app: Any) -> bool:
    """Whether an app is one of ASGI's, which the workers can't run."""
    # Not isinstance(): an app that is a proxy would be asked for its class, which may be too early.
    is_function = issubclass(type(app), (FunctionType, MethodType, partial))
    return inspect.iscoroutinefunction(app if is_function else type(app).__call__)


def set_defaults(cfg: Any, worker_class: str | type) -> None:
    """What our own doors take for granted where gunicorn's default is another; every setting can still be set."""
    defaults: dict[str, Any] = {"worker_class": worker_class}
    if "WEB_CONCURRENCY" not in os.environ:
        defaults["workers"] = default_workers()
    for name, value in defaults.items():
        # --help shows it.
        cfg.settings[name].default = value
        cfg.set(name, value)


class ServeApplication(WSGIApplication):  # type: ignore[misc]
    """gunicorn's own command with our options and defaults.

    :ivar command: what SIGUSR2 runs
    """

    def __init__(self, usage: str, prog: str) -> None:
        self.command = [sys.executable, "-m", "sticky_session", "serve", *sys.argv[1:]]
        super().__init__(usage, prog=prog)

    def load_default_config(self) -> None:
        """Make the configuration that flags, environment and files are then read into."""
        self.cfg = StickyConfig(self.usage, prog=self.prog)
        set_defaults(self.cfg, "sticky_session.Worker")

    def load_config(self) -> None:
        """Read flags, environment and files.

        :raises OptionError: a setting can't be used; ``--check-config`` says so, too
        """
        super().load_config()
        check_settings(self.cfg)
        self._check_worker_class()

    def _check_worker_class(self) -> None:
        """A configuration file of before names the workers that it was for, and they know no stickiness."""
        # What can't be imported gunicorn looks for once more when it has set the import path, and has its own words.
        if has_our_workers(self.cfg) is False:
            raise OptionError(
                f"worker_class={self.cfg.worker_class_str}: expected sticky_session.Worker, which is the default, or a "
                "class derived from it. Leave it out, or start gunicorn instead"
            )


class ScriptApplication(BaseApplication):  # type: ignore[misc]
    """An app object with its settings, from a call of ``listen()``.

    :raises OptionError: a setting of ours can't be used
    :raises TypeError: there is no such setting, or its value can't be used
    """

    def __init__(self, app: Any, worker_class: type, settings: dict[str, Any]) -> None:
        self._app = app
        self._worker_class = worker_class
        self._settings = settings
        super().__init__()

    def listen_on(self, descriptor: int) -> None:
        """Use a socket that is bound already, also after a reload."""
        self._settings["bind"] = f"fd://{descriptor}"
        self.cfg.set("bind", self._settings["bind"])

    def do_load_config(self) -> None:
        """Errors are the caller's to handle; gunicorn would end the process."""
        self.load_default_config()
        self.load_config()

    def load_default_config(self) -> None:
        """Make the configuration that the settings go into."""
        self.cfg = StickyConfig(self.usage, prog=self.prog)
        set_defaults(self.cfg, self._worker_class)

    def load_config(self) -> None:
        """Set what the caller gave."""
        for name, value in self._settings.items():
            if name not in self.cfg.settings:
                raise TypeError(f"listen(): there is no setting {name!r}; expected gunicorn's or ours (sticky_...)")
            try:
                self.cfg.set(name, value)
            except OptionError:
                raise
            except (ValueError, TypeError) as error:
                raise TypeError(f"listen(): {name}={value!r}: {error}") from error

    def load(self) -> Any:
        """The app, which the caller made."""
        return self._app
