"""What we need of the operating system."""

from __future__ import annotations

import sys

from sticky_session.errors import PlatformError


def check_platform() -> None:
    """Check that this system has what serving needs.

    :raises PlatformError: it lacks something
    """
    if not sys.platform.startswith("linux"):
        raise PlatformError(
            f"serving needs Linux (epoll, SOCK_SEQPACKET, O_ASYNC on pipes); this is {sys.platform}. "
            "Here, use the app's own development server, or run this in a Linux container"
        )
