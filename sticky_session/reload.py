"""Which configuration is in force in gunicorn's arbiter: one that is read anew, or a former one again.

It is the arbiter's ``app`` and ``cfg``, the number of its workers, its pid file, and what is around its process. These
are gunicorn's own; nothing else of the arbiter's is known here. What sockets and what generation a configuration gets,
and when, the arbiter decides.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.pidfile import Pidfile

from sticky_session.bussocket import BusSocket
from sticky_session.errors import OptionError
from sticky_session.generation import Generation
from sticky_session.settings import check_settings, has_our_workers
from sticky_session.surroundings import Surroundings


def read(arbiter: Arbiter, former: Generation, listening: Iterable[Any]) -> None:
    """Have the arbiter's app read its configuration anew. What fails here, or later, is for :func:`return_to`.

    :param former: the generation whose configuration is in force
    :param listening: the sockets that are listened on
    :raises OptionError: it can't be used; gunicorn raises other errors
    :raises SystemExit: gunicorn has said what is wrong
    """
    former.surroundings, former.wanted = Surroundings.now(), arbiter.num_workers
    _unset_environment(arbiter.cfg)
    arbiter.app.reload()
    # gunicorn's setup() does it, too late for the options that are looked at before.
    os.environ.update(arbiter.app.cfg.env)
    _check(arbiter.app.cfg, listening)


def put_in_force(arbiter: Arbiter) -> None:
    """Have the arbiter work by the configuration that its app has.

    :raises OSError: the pid file can't be written; gunicorn, and the app where it is preloaded, raise other errors
    :raises RuntimeError: the pid file is another arbiter's, or has no directory
    """
    arbiter.setup(arbiter.app)
    _rewrite_pidfile(arbiter)


def return_to(arbiter: Arbiter, generation: Generation) -> None:
    """Put a generation's configuration in force again, which was so before a later one was read."""
    assert generation.surroundings is not None
    generation.surroundings.restore()
    generation.surroundings = None
    arbiter.app.__dict__.update(generation.app.__dict__)
    if generation.bus_socket is not None:
        with contextlib.suppress(OSError):
            generation.bus_socket.admit(generation.options, generation.cfg)
    if arbiter.cfg is not generation.cfg:
        arbiter.setup(arbiter.app)
        arbiter._num_workers = generation.wanted
        try:
            _rewrite_pidfile(arbiter)
        except (OSError, RuntimeError) as error:
            arbiter.log.error("The pid file can't be written: %s", error)


def give_up(arbiter: Arbiter, generation: Generation) -> None:
    """Do the same when the later one has been in force, but its workers can't boot."""
    resting = arbiter.num_workers == 0
    return_to(arbiter, generation)
    # After SIGWINCH it was to have none, and SIGHUP asked for some.
    arbiter._num_workers = 0 if resting else generation.wanted or generation.ring_size


def _unset_environment(cfg: Any) -> None:
    """Take back what ``raw_env`` has set."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)


def _check(cfg: Any, listening: Iterable[Any]) -> None:
    """Check a new configuration.

    :raises OptionError: it can't be used
    """
    check_settings(cfg)
    buses = {it.cfg_addr for it in listening if isinstance(it, BusSocket)}
    for address in cfg.address:
        # gunicorn would replace the file, and we would take the socket for one that is listened on already.
        if isinstance(address, str) and os.path.abspath(address) in buses:
            raise OptionError(f"bind=unix:{address}: the bus socket is there; choose another path, or restart")
    if not has_our_workers(cfg):
        raise OptionError(f"worker_class={cfg.worker_class_str}: a reload can't change to that; restart")


def _rewrite_pidfile(arbiter: Arbiter) -> None:
    """Have the process id in the configuration's file, and nowhere else.

    :raises OSError: the file can't be written; the former one stays
    :raises RuntimeError: the file is another arbiter's, or has no directory; the former one stays
    """
    former, arbiter.pidfile = arbiter.pidfile, None
    if former is not None:
        former.unlink()
    try:
        if arbiter.cfg.pidfile is not None:
            pidfile = Pidfile(f"{arbiter.cfg.pidfile}.2" if arbiter.master_pid else arbiter.cfg.pidfile)
            pidfile.create(arbiter.pid)
            arbiter.pidfile = pidfile
    except (OSError, RuntimeError):
        arbiter.pidfile = former
        if former is not None:
            former.create(arbiter.pid)
        raise
