"""Our options as gunicorn settings, for the doors that are ours: ``serve`` and ``listen()``.

Under the plain ``gunicorn`` command the settings do not exist, and the options come from the environment.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from socket import AF_UNIX
from typing import Any

from gunicorn.config import Config, Setting

from sticky_session.bpf import fits, most_workers
from sticky_session.config import AUTO, KERNEL, OFF, OPTIONS, Option, Options
from sticky_session.errors import OptionError
from sticky_session.generation import Bind
from sticky_session.identify import ByHeader, ByPeer, ByProxyProtocol, identification
from sticky_session.ring import Ring

SECTION = "sticky-session"

_DEFAULT_HEADER = next(option.default for option in OPTIONS if option.name == "client_header")


def _make_setting(option: Option, order: int) -> Any:
    """A gunicorn setting for an option of ours.

    An instance, not a subclass: gunicorn would add every subclass to all configurations in this process.
    """
    setting = Setting()
    setting.name = option.setting
    setting.section = SECTION
    setting.order = order
    setting.cli = [option.flag]
    setting.meta = option.meta
    setting.validator = lambda value: option.parse(value, option.flag)
    setting.default = option.default
    setting.short = setting.desc = f"{option.help} ({option.unit}; {option.environment})"
    return setting


class StickyConfig(Config):  # type: ignore[misc]
    """gunicorn's configuration with our options in it.

    Precedence, lowest first: defaults, ``STICKY_SESSION_*`` variables, configuration file,
    ``GUNICORN_CMD_ARGS``, flags.
    """

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        super().__init__(usage, prog=prog)
        environment = Options.from_environment(os.environ)
        for order, option in enumerate(OPTIONS):
            self.settings[option.setting] = _make_setting(option, order)
            self.set(option.setting, getattr(environment, option.name))

    def parser(self) -> ArgumentParser:
        """gunicorn's parser, with our options in a group of their own."""
        ours = {option.setting: self.settings.pop(option.setting) for option in OPTIONS}
        parser: ArgumentParser = super().parser()
        self.settings.update(ours)
        group = parser.add_argument_group(SECTION)
        for setting in ours.values():
            setting.add_option(group)
        group.add_argument("--no-bus", dest="sticky_bus", action="store_const", const=0, help="The same as --bus 0.")
        return parser


def options_of(cfg: Any) -> Options:
    """The values of our options under a gunicorn configuration.

    :raises OptionError: one of them can't be used
    """
    if isinstance(cfg, StickyConfig):
        return Options.collect(lambda option: (getattr(cfg, option.setting), option.setting))
    return Options.from_environment(os.environ)


def has_our_workers(cfg: Any) -> bool | None:
    """Whether the worker class knows of slots: :class:`sticky_session.Worker`, or one derived from it.

    :returns: None if gunicorn can't import it
    """
    try:
        return hasattr(cfg.worker_class, "arbiter_class")
    except RuntimeError:
        return None


def check_settings(cfg: Any) -> None:
    """Check the settings of gunicorn's that not every value of can be served.

    :raises OptionError: one can't
    """
    options = options_of(cfg)
    Ring(cfg.workers, options.partitions)
    if options.router == KERNEL and (obstacle := kernel_obstacle(cfg, options)):
        raise OptionError(f"router={KERNEL}: {obstacle}")
    if options.bus_socket != OFF and not options.bus:
        raise OptionError(
            f"bus_socket={options.bus_socket} with bus=0: there is no bus to send to. Leave one of them out"
        )
    if cfg.is_ssl and cfg.proxy_protocol == "off" and _wants_header(cfg, options):
        raise OptionError(
            "certfile with a client header of trusted proxies: the listener can't read what is encrypted. End TLS in "
            "the proxy, or have the proxy send the PROXY protocol (proxy_protocol). STICKY_SESSION_CLIENT_HEADER=off "
            "if all of a proxy's clients may share a worker"
        )


def _wants_header(cfg: Any, options: Options) -> bool:
    """Whether the user has said something of headers; gunicorn trusts this machine's own proxies by itself."""
    if options.client_header == OFF or not cfg.forwarded_allow_ips:
        return False
    return options.client_header != _DEFAULT_HEADER or not {"127.0.0.1", "::1"}.issuperset(cfg.forwarded_allow_ips)


def kernel_obstacle(cfg: Any, options: Options) -> str | None:
    """Why the kernel can't route under these settings, and what to do; None if it can, as far as they tell."""
    found = identification(cfg, options)
    if isinstance(found, ByProxyProtocol):
        return f"proxy_protocol={cfg.proxy_protocol}: the kernel can't read it; leave it out, or use the listener"
    if isinstance(found, ByHeader) and options.router == AUTO and cfg.forwarded_allow_ips:
        return (
            f"a proxy may name its clients in {options.client_header}, which the kernel can't read: set client_header="
            "off, or forwarded_allow_ips to nothing, where clients connect directly"
        )
    for address in cfg.address:
        if isinstance(address, str):
            return f"bind=unix:{address}: the kernel knows nothing of its peers; leave it out, or use the listener"
    if cfg.reuse_port:
        return "reuse_port: others may listen on the same address; leave it out, or use the listener"
    if not fits(cfg.workers, options.partitions):
        most = most_workers(options.partitions)
        return f"partitions={options.partitions}: expected at most {most} workers; use fewer, or the listener"
    return None


def warnings(cfg: Any, binds: Iterable[Bind]) -> Iterator[str]:
    """What the user should know of these settings before anybody complains.

    :param binds: of all listening sockets
    """
    if isinstance(identification(cfg, options_of(cfg)), ByPeer):
        for bind in binds:
            if bind.family == AF_UNIX and not bind.for_bus:
                yield (
                    f"unix:{bind.address}: the peers of a Unix socket have no addresses, so all connections go to one "
                    "worker; have the proxy name its clients, in a header (STICKY_SESSION_CLIENT_HEADER) or by "
                    "proxy_protocol"
                )
