"""The ``sticky-session`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from ipaddress import ip_address

from sticky_session import __version__
from sticky_session.address import Masks
from sticky_session.config import OPTIONS, Option, Options
from sticky_session.errors import OptionError, StickySessionError
from sticky_session.ring import Ring

_USAGE = """\
usage: sticky-session COMMAND [ARGUMENT ...]

commands:
  serve APP   run a WSGI app on all processors, every client on its own worker
  ring        show which slot an address maps to, and how even the ring is

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
    else:
        sys.exit(f"sticky-session: there is no command {command!r}; expected serve or ring. See sticky-session --help")


def serve(arguments: Sequence[str]) -> None:
    """``sticky-session serve``: gunicorn's command with our worker and our options as flags."""
    try:
        from sticky_session.system import check_platform

        check_platform()
        from sticky_session.app import ServeApplication
    except StickySessionError as error:
        sys.exit(f"sticky-session: {error}")
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
