"""The errors of this package, one tree::

    StickySessionError
     ├── OptionError     an option's value can't be used
     ├── PlatformError   this operating system or library lacks something we need
     ├── ListenError     listen(), wait() or close() was called where it can't work
     └── ClusterError    a message can't be sent to the other workers
          └── UnconfirmedError    nobody can tell whether it has been

Every message says what was given, what was expected and what to do.
"""


class StickySessionError(Exception):
    """The base of all errors raised by this package."""


class OptionError(StickySessionError, ValueError):
    """An option's value can't be used."""


class PlatformError(StickySessionError, RuntimeError):
    """This operating system or an installed library lacks something we need.

    gunicorn prints RuntimeErrors as one line.
    """


class ListenError(StickySessionError):
    """``listen()``, ``wait()`` or ``close()`` was called where it can't work."""


class ClusterError(StickySessionError):
    """A message can't be sent to the other workers."""


class UnconfirmedError(ClusterError):
    """A message was handed in from outside, and the worker that took it is gone: it may have been sent, or not."""
