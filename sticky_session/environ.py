"""The WSGI environ of a request (PEP 3333), with gunicorn's additions. Knows no sockets."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote_to_bytes

from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import VERSION

from sticky_session.request import BadRequest, Head
from sticky_session.trust import Trust


def bind_environ(cfg: Any, address: Any, slot: int) -> dict[str, Any]:
    """What all requests of a bind have in common.

    :param address: where it listens: ``(host, port, ...)``, or a Unix socket's path
    """
    environ = {
        **base_environ(cfg),
        "GATEWAY_INTERFACE": "CGI/1.1",
        # gunicorn's gevent worker's: simple-websocket looks for "gevent" in it.
        "SERVER_SOFTWARE": VERSION,
        "SCRIPT_NAME": os.environ.get("SCRIPT_NAME", ""),
        "wsgi.multithread": True,
        "wsgi.url_scheme": "https" if cfg.is_ssl else "http",
        "sticky_session.slot": slot,
    }
    if isinstance(address, tuple):
        environ["SERVER_NAME"] = address[0]
        environ["SERVER_PORT"] = str(address[1])
    return environ


def request_environ(base: dict[str, Any], head: Head, peer: Any, trust: Trust | None) -> dict[str, Any]:
    """Everything but ``wsgi.input`` and ``gunicorn.sock``.

    :param base: its bind's share
    :param peer: ``(host, port, ...)``, or an empty string for a Unix socket's peer
    :param trust: what the peer's forwarding headers mean; None if they don't count
    :raises BadRequest: contradictory scheme headers, a path outside SCRIPT_NAME, or a target of another scheme
    """
    environ = base.copy()
    environ.update(head.environ)
    path = head.path
    if "%" in path:
        path = str(unquote_to_bytes(path.encode("latin-1")), "latin-1")
    environ["REQUEST_METHOD"] = head.method
    environ["PATH_INFO"] = path
    environ["QUERY_STRING"] = head.query
    environ["RAW_URI"] = head.target
    environ["SERVER_PROTOCOL"] = head.version
    if isinstance(peer, tuple):
        environ["REMOTE_ADDR"] = peer[0]
        environ["REMOTE_PORT"] = str(peer[1])
    else:
        environ["REMOTE_ADDR"] = ""
    if trust is not None:
        _believe(environ, head, trust)
    elif head.scheme not in ("", "http", environ["wsgi.url_scheme"]):
        # RFC 9110 section 7.4: only a trusted gateway may ask for https over what isn't.
        raise BadRequest(421, f"target {head.target[:200]!r} over {environ['wsgi.url_scheme']}")
    if "SERVER_NAME" not in environ:
        host, port = split_host(environ.get("HTTP_HOST", ""))
        environ["SERVER_NAME"] = host
        environ["SERVER_PORT"] = port or ("443" if environ["wsgi.url_scheme"] == "https" else "80")
    script_name = environ["SCRIPT_NAME"]
    if script_name:
        if not path.startswith(script_name):
            raise BadRequest(400, f"path {path!r} outside SCRIPT_NAME {script_name!r}")
        environ["PATH_INFO"] = path[len(script_name) :]
    return environ


def _believe(environ: dict[str, Any], head: Head, trust: Trust) -> None:
    """Take the scheme and the script name from a trusted peer's headers."""
    scheme = trust.scheme(environ, head)
    if scheme is not None:
        environ["wsgi.url_scheme"] = scheme
    if "HTTP_SCRIPT_NAME" in environ:
        # Not Script-Name, which a proxy may pass on from anybody.
        said = [value for name, value in head.fields if name.upper() == "SCRIPT_NAME"]
        if said:
            environ["SCRIPT_NAME"] = said[-1]


def split_host(host: str) -> tuple[str, str]:
    """The host and the port of a Host field; the port is empty where there is none that is a number.

    An IPv6 address keeps its brackets, as a CGI's SERVER_NAME has them (RFC 3875 section 4.1.14).
    """
    end = host.rfind("]") + 1
    name, _, port = host[end:].partition(":")
    return host[:end] + name, port if port.isdecimal() else ""
