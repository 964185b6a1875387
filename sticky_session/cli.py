"""The ``sticky-session`` command."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from typing import NoReturn

from sticky_session import __version__, proxyconfig
from sticky_session.address import Masks
from sticky_session.config import OPTIONS, Option, Options
from sticky_session.errors import ClusterError, OptionError, StickySessionError, UnconfirmedError
from sticky_session.ring import Ring
from sticky_session.strictjson import parse

_USAGE = """\
usage: sticky-session COMMAND [ARGUMENT ...]

commands:
  serve APP   run a WSGI app on all processors, every client on its own worker
  ring        show which slot an address maps to, and how even the ring is
  proxy-config PROXY
              print a configuration of nginx, haproxy, ... that puts it before us
  emit EVENT [JSON]
              emit to the clients of a server that has a bus socket

sticky-session COMMAND --help tells more; sticky-session --version.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the process with its status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(_USAGE, end="")
    elif command in ("-V", "--version"):
        print(f"sticky-session {__version__}")
    elif command == "serve":
        serve(arguments[1:])
    elif command == "ring":
        show_ring(arguments[1:])
    elif command == "proxy-config":
        show_proxy_config(arguments[1:])
    elif command == "emit":
        emit(arguments[1:])
    else:
        sys.exit(
            f"sticky-session: there is no command {command!r}; expected serve, ring, proxy-config or emit. "
            "See sticky-session --help"
        )


def serve(arguments: Sequence[str]) -> None:
    """``sticky-session serve``: gunicorn's command with our worker and our options as flags."""
    try:
        from sticky_session.system import check_platform

        check_platform()
        from gunicorn import __version__ as gunicorn_version

        from sticky_session.app import ServeApplication
    except StickySessionError as error:
        sys.exit(f"sticky-session: {error}")
    if arguments and arguments[0] in ("-v", "--version"):
        # gunicorn would give its own for ours.
        print(f"sticky-session {__version__} (gunicorn {gunicorn_version})")
        return
    # gunicorn reads its flags from here, now and after SIGHUP.
    sys.argv[1:] = arguments
    ServeApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="sticky-session serve").run()


def show_ring(arguments: Sequence[str]) -> None:
    """``sticky-session ring``: where addresses go."""
    parser = argparse.ArgumentParser(
        prog="sticky-session ring",
        description="Show which slot each address maps to, each slot's share, and how many keys move "
        "when one worker is added.",
    )
    parser.add_argument("addresses", nargs="*", metavar="ADDRESS", help="an IPv4 or IPv6 address")
    parser.add_argument("-w", "--workers", type=int, required=True, metavar="N", help="how many workers")
    names = {"partitions", "seed", "ipv4_prefix", "ipv6_prefix"}
    for option in (option for option in OPTIONS if option.name in names):
        help_text = f"{option.help} ({option.environment}) [{option.default}]"
        parser.add_argument(option.flag, dest=option.name, metavar="N", help=help_text)
    given = parser.parse_args(arguments)

    def lookup(option: Option) -> tuple[object, str]:
        value = getattr(given, option.name, None)
        return (getattr(environment, option.name), option.environment) if value is None else (value, option.flag)

    try:
        environment = Options.from_environment(os.environ)
        options = Options.collect(lookup)
        ring = Ring(given.workers, options.partitions, options.seed)
        masks = Masks(options.ipv4_prefix, options.ipv6_prefix)
        slots = [(address, ring.slot(masks.key(str(ip_address(address))))) for address in given.addresses]
    except (OptionError, ValueError) as error:
        parser.error(str(error))
    for address, slot in slots:
        print(f"{address}  slot {slot}")
    if slots:
        print()
    for slot, share in enumerate(ring.shares()):
        print(f"slot {slot}  {share:.2%}")
    if ring.workers < ring.partitions:
        grown = Ring(ring.workers + 1, options.partitions, options.seed)
        moved = sum(before != after for before, after in zip(ring.owners, grown.owners, strict=True))
        print(
            f"\n{ring.workers} -> {grown.workers} workers: {moved / ring.partitions:.2%} of the keys move, "
            f"all of them to slot {ring.workers}"
        )


def emit(arguments: Sequence[str]) -> None:
    """``sticky-session emit``: for shell scripts.

    Ends with status 2 if nothing has been sent, and 1 if nobody can tell.
    """
    parser = _EmitParser(
        prog="sticky-session emit",
        description="Emit to the clients of all workers of a server on this machine that was started with "
        "--bus-socket. Ends with status 0 when it is on its way to every worker, 2 if it is not and will not be, and 1 "
        "if a worker took it but was killed, or was silent for ten seconds, before it said so.",
    )
    parser.add_argument("event", metavar="EVENT", help="the event's name")
    parser.add_argument(
        "data",
        metavar="JSON",
        nargs="?",
        help="its data, a text in double quotes; - reads them from standard input; -- before them if they begin with - "
        "[none]",
    )
    parser.add_argument("--room", metavar="R", help="only to this room, or to the client with this session id")
    parser.add_argument("--namespace", metavar="N", default="/", help="the namespace [/]")
    parser.add_argument("--channel", metavar="NAME", help="the server's channel, if it has not the usual one")
    parser.add_argument("--path", help="the bus socket's path [STICKY_SESSION_BUS_SOCKET]")
    for each in arguments:
        try:
            each.encode()
        except UnicodeEncodeError:
            parser.error(f"{each!r:.100}: expected UTF-8")
    given = parser.parse_args(arguments)
    origin = "standard input" if given.data == "-" else f"{given.data!r:.100}"
    try:
        text = _read_standard_input() if given.data == "-" else given.data
        data = None if text is None else parse(text)
    except (OSError, ValueError, RecursionError) as error:
        parser.error(f"{origin}: expected JSON: {error}")
    # Only now: what is wrong with the arguments is said at once.
    from sticky_session.cluster import DEFAULT_CHANNEL, ClusterManager, default_path

    # An empty one is a variable that the shell didn't have.
    if given.path == "" or (given.path is None and not default_path()):
        parser.error("expected the server's bus socket, --path or STICKY_SESSION_BUS_SOCKET")
    try:
        manager = ClusterManager(given.channel or DEFAULT_CHANNEL, write_only=True, path=given.path)
        manager.emit(given.event, data, namespace=given.namespace, room=given.room)
    except UnconfirmedError as error:
        parser.fail(1, str(error))
    except ClusterError as error:
        parser.error(str(error))
    except RecursionError:
        parser.error(f"{origin}: too many lists or objects within each other")


class _EmitParser(argparse.ArgumentParser):
    """Says what is wrong in one line, for the log of a cron job."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        self.fail(2, message)

    def fail(self, status: int, message: str) -> NoReturn:
        """End with a status."""
        self.exit(status, f"{self.prog}: {' '.join(message.splitlines())}\n")


def _read_standard_input() -> bytes:
    # A process that was started without one has none.
    return b"" if sys.stdin is None else sys.stdin.buffer.read()


def show_proxy_config(arguments: Sequence[str]) -> None:
    """``sticky-session proxy-config``: the other side's configuration."""
    parser = argparse.ArgumentParser(
        prog="sticky-session proxy-config",
        description="Print a complete configuration of a proxy that stands before one or many machines running us, "
        "and the command that starts us behind it.",
    )
    parser.add_argument("name", choices=proxyconfig.PROXIES, metavar="PROXY", help=", ".join(proxyconfig.PROXIES))
    parser.add_argument(
        "--server",
        action="append",
        dest="servers",
        default=[],
        metavar="HOST:PORT",
        help="where we listen, or unix:/PATH; once for each machine [127.0.0.1:8000]",
    )
    parser.add_argument("--listen", metavar="[HOST]:PORT", help="where the proxy listens [:80]")
    parser.add_argument("--server-name", metavar="NAME", help="the site's name [every name]")
    parser.add_argument(
        "--via",
        choices=proxyconfig.VIAS,
        default=proxyconfig.HEADER,
        help="how we learn the client's address: X-Forwarded-For, or the PROXY protocol [header]",
    )
    parser.add_argument(
        "--stickiness",
        choices=proxyconfig.STICKINESS,
        help="how clients stay on one of several machines: by a consistent hash of their address, by the proxy's "
        "simple hash of it, or by a cookie [the first of these that the proxy has; traefik: cookie]",
    )
    for flag, default, what in (
        ("--ping-interval", 25.0, "how often the Engine.IO server pings"),
        ("--ping-timeout", 20.0, "how long it waits for the answer"),
    ):
        help_text = f"{what}; the proxy's timeouts are longer than both together [{default:g}]"
        parser.add_argument(flag, type=float, default=default, metavar="SECONDS", help=help_text)
    given = parser.parse_args(arguments)
    made_by = " ".join(shlex.join(["sticky-session", "proxy-config", *arguments]).split())
    try:
        text = proxyconfig.configure(**vars(given), made_by=made_by)
    except OptionError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(text, end="")
