"""Configurations of proxies that stand before us, for ``sticky-session proxy-config``.

Pure, but for the templates that it reads. These are in ``proxyconfigs/`` and look like the files they become. In them

- ``@name`` or ``@{name}`` is a value; a line with a value of a server (``@server``, ``@number``, ``@command``) is there
  once for each server;
- the lines between ``@if word ...`` and ``@end`` are there if every word is one of the configuration's; ``!word`` is
  one that must not be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address

from sticky_session.errors import OptionError

HEADER, PROXY_PROTOCOL = "header", "proxy-protocol"
VIAS = (HEADER, PROXY_PROTOCOL)
STICKINESS = ("hash", "ip-hash", "cookie")

MARGIN_SECONDS = 15  # what a proxy waits longer than an Engine.IO client needs to answer a ping
IDLE_SECONDS = 60  # what a proxy keeps an idle connection to us
# Longer than that: the end that closes an idle connection has to be the one that sends the requests, or one is lost.
KEEP_ALIVE_SECONDS = 75


class Server:
    """Where one of us listens, HOST:PORT or unix:/PATH.

    :raises OptionError: it is neither
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.path = self.host = ""
        self.port = 0
        if text.startswith("unix:"):
            self.path = text.removeprefix("unix:")
            if not re.fullmatch(r"/[\w./+-]+", self.path, re.ASCII):
                raise OptionError(f"--server={text}: expected unix: and an absolute path of letters, digits and ._/+-")
        else:
            self.host, self.port = _host_and_port(text, "--server", "HOST:PORT or unix:/PATH")
            if not self.host:
                raise OptionError(f"--server={text}: expected HOST:PORT or unix:/PATH")

    @property
    def trusted(self) -> str:
        """The address that a proxy on the same machine connects from; empty if it isn't known here."""
        if self.host == "localhost":
            return "127.0.0.1,::1"
        try:
            address = ip_address(self.host.strip("[]"))
        except ValueError:
            return ""
        if not address.is_loopback:
            return ""
        return "127.0.0.1" if address.version == 4 else "::1"


def _host_and_port(text: str, flag: str, expected: str) -> tuple[str, int]:
    """Split HOST:PORT, :PORT or PORT; an IPv6 address keeps its brackets, and no host is the empty string."""
    found = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+]|[\w.-]+|\*|):)?(\d{1,5})", text, re.ASCII)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise OptionError(f"{flag}={text}: expected {expected}")
    host = "" if found[1] in (None, "*") else found[1]
    if host.startswith("["):
        try:
            ip_address(host[1:-1])
        except ValueError:
            raise OptionError(f"{flag}={text}: {host} is no IPv6 address") from None
    return host, int(found[2])


@dataclass(frozen=True)
class Proxy:
    """What a proxy can do, and how it writes where a server is.

    :ivar templates: one for each way that it can tell us the client's address
    :ivar stickiness: the means that it has, by the same ways; the first is what it gets by itself
    :ivar server: writes a :class:`Server` and its number
    :ivar protocol: the version of the PROXY protocol that it sends
    :ivar listen: where it listens by default; empty if that isn't a matter of this configuration
    :ivar named: the ways in which it tells sites apart by their names
    """

    templates: Mapping[str, str]
    stickiness: Mapping[str, Sequence[str]]
    server: Callable[[Server, int], str]
    protocol: str = "v2"
    listen: str = ":80"
    server_default: str = "127.0.0.1:8000"
    unix: bool = True
    named: Sequence[str] = (HEADER,)


def _nginx(server: Server, _number: int) -> str:
    return server.text


def _haproxy(server: Server, _number: int) -> str:
    return f"unix@{server.path}" if server.path else server.text


def _apache(server: Server, number: int) -> str:
    # The name after the path only tells servers apart; Host is passed on as the client sent it.
    return f"unix:{server.path}|http://machine{number}" if server.path else f"http://{server.text}"


def _caddy(server: Server, _number: int) -> str:
    return f"unix/{server.path}" if server.path else server.text


def _plain(server: Server, _number: int) -> str:
    return server.text


PROXIES: Mapping[str, Proxy] = {
    "nginx": Proxy(
        templates={HEADER: "nginx.conf", PROXY_PROTOCOL: "nginx-stream.conf"},
        stickiness={HEADER: ("hash", "ip-hash", "cookie"), PROXY_PROTOCOL: ("hash",)},
        server=_nginx,
        protocol="v1",
    ),
    "haproxy": Proxy(
        templates={HEADER: "haproxy.cfg", PROXY_PROTOCOL: "haproxy-tcp.cfg"},
        stickiness={HEADER: ("hash", "ip-hash", "cookie"), PROXY_PROTOCOL: ("hash", "ip-hash")},
        server=_haproxy,
        named=(),
    ),
    "apache": Proxy(
        templates={HEADER: "apache.conf"},
        stickiness={HEADER: ("cookie",)},
        server=_apache,
    ),
    "caddy": Proxy(
        templates={HEADER: "Caddyfile", PROXY_PROTOCOL: "Caddyfile"},
        stickiness={HEADER: ("ip-hash", "cookie"), PROXY_PROTOCOL: ("ip-hash", "cookie")},
        server=_caddy,
        named=(HEADER, PROXY_PROTOCOL),
    ),
    "traefik": Proxy(
        templates={HEADER: "traefik.yaml", PROXY_PROTOCOL: "traefik-tcp.yaml"},
        stickiness={HEADER: ("cookie", "hash"), PROXY_PROTOCOL: ()},
        server=_plain,
        unix=False,
    ),
    "ingress-nginx": Proxy(
        templates={HEADER: "ingress-nginx.yaml"},
        stickiness={HEADER: ("hash", "cookie")},
        server=_plain,
        listen="",
        server_default="sticky-session:8000",
        unix=False,
    ),
}


def timeout_seconds(ping_interval: float, ping_timeout: float) -> int:
    """How long a proxy has to put up with silence.

    A long-polling request, or a WebSocket, is silent for one ping interval at most, and a client that is still there
    has answered after the ping timeout. Whoever gives up first must not be the proxy.
    """
    return math.ceil(ping_interval + ping_timeout) + MARGIN_SECONDS


def configure(
    name: str,
    *,
    servers: Sequence[str] = (),
    listen: str | None = None,
    server_name: str | None = None,
    via: str = HEADER,
    stickiness: str | None = None,
    ping_interval: float = 25,
    ping_timeout: float = 20,
    made_by: str = "sticky-session proxy-config",
) -> str:
    """The text of a proxy's configuration.

    :param name: one of :data:`PROXIES`
    :param servers: where we listen, HOST:PORT or unix:/PATH, one for each machine
    :param listen: where the proxy listens, [HOST]:PORT
    :param server_name: the site's name; None for all
    :param via: one of :data:`VIAS`, how we learn the client's address
    :param stickiness: one of :data:`STICKINESS`, how clients stay on one of several machines
    :param ping_interval: Engine.IO's, in seconds
    :param ping_timeout: Engine.IO's, in seconds
    :param made_by: the command line that asks for it, for the first line
    :raises OptionError: the proxy can't do it, or a value can't be used
    """
    proxy = PROXIES[name]
    if via not in proxy.templates:
        raise OptionError(f"--via={via}: {_LACKS_PROXY_PROTOCOL[name]}; expected --via={HEADER}")
    parsed = [Server(text) for text in servers or (proxy.server_default,)]
    _check_servers(name, parsed, via)
    method = _stickiness(name, stickiness, via, len(parsed))
    for flag, seconds in (("--ping-interval", ping_interval), ("--ping-timeout", ping_timeout)):
        if not 0 < seconds <= 86400:
            raise OptionError(f"{flag}={seconds:g}: expected more than 0 and up to 86400 (seconds)")
    if server_name is not None:
        if via not in proxy.named:
            raise OptionError(f"--server-name={server_name}: this configuration of {name} serves every name; leave it")
        if not re.fullmatch(r"[\w.-]+", server_name, re.ASCII):
            raise OptionError(f"--server-name={server_name}: expected a name like www.example.com")
    if listen is not None and not proxy.listen:
        raise OptionError(f"--listen={listen}: where {name} listens is not a matter of this configuration; leave it")
    host, port = _host_and_port(listen or proxy.listen, "--listen", "[HOST]:PORT") if proxy.listen else ("", 0)
    facts = {
        via: True,
        "several": len(parsed) > 1,
        "one": len(parsed) == 1,
        "host": bool(host),
        "named": server_name is not None,
        "unix": any(server.path for server in parsed),
        "remote": any(not server.path and not server.trusted for server in parsed),
        "port80": port == 80,
        **{word: word == method for word in STICKINESS},
    }
    values = {
        "made_by": made_by,
        "host": host,
        "port": str(port or parsed[0].port),
        "service": parsed[0].host,
        "server_name": server_name or "",
        "timeout": str(timeout_seconds(ping_interval, ping_timeout)),
        "idle": str(IDLE_SECONDS),
        "ping": f"{ping_interval:g} + {ping_timeout:g}",
    }
    each = [
        {
            "server": proxy.server(server, number),
            "number": str(number),
            "command": _command(proxy, server, via),
        }
        for number, server in enumerate(parsed, start=1)
    ]
    template = (files("sticky_session") / "proxyconfigs" / proxy.templates[via]).read_text(encoding="utf-8")
    return render(template, {word for word, true in facts.items() if true}, values, each)


_LACKS_PROXY_PROTOCOL = {
    "apache": "apache reads the PROXY protocol but can't send it",
    "ingress-nginx": "ingress-nginx is nginx's http module, which can't send the PROXY protocol",
}


def _check_servers(name: str, servers: Sequence[Server], via: str) -> None:
    for server in servers:
        if server.path and not PROXIES[name].unix:
            raise OptionError(f"--server={server.text}: {name} can't connect to a Unix socket; expected HOST:PORT")
    if len({server.text for server in servers}) < len(servers):
        raise OptionError("--server: the same server is given twice")
    if name == "ingress-nginx" and len(servers) > 1:
        raise OptionError("--server: given twice; ingress-nginx takes one SERVICE:PORT, and its pods are the machines")
    if name == "ingress-nginx" and not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", servers[0].host):
        raise OptionError(f"--server={servers[0].text}: expected SERVICE:PORT, as in sticky-session:8000")
    if len(servers) > 1 and not PROXIES[name].stickiness[via]:
        raise OptionError(
            f"--server: given twice; {name} can't keep clients on one of several machines with --via={via}"
        )


def _stickiness(name: str, given: str | None, via: str, servers: int) -> str | None:
    """How clients stay on one machine; None if there is just one."""
    known = PROXIES[name].stickiness[via]
    if given is not None and given not in known:
        expected = f"expected {' or '.join(known)}" if known else "leave it"
        raise OptionError(f"--stickiness={given}: {name} has no such thing with --via={via}; {expected}")
    # An Ingress's one server is a Service, and nobody knows how many pods it will have.
    if given is None and known and (servers > 1 or name == "ingress-nginx"):
        return known[0]
    return given


def _command(proxy: Proxy, server: Server, via: str) -> str:
    """The command line that starts us behind the proxy."""
    bind = server.text
    if not proxy.listen:
        bind = f"0.0.0.0:{server.port}"
    words = ["sticky-session serve app:app", f"--bind {bind}"]
    trusted = server.trusted or "PROXY_ADDRESS"
    reads_http = via == HEADER or proxy.templates[via] == proxy.templates[HEADER]
    if reads_http:
        words.append(f"--keep-alive {KEEP_ALIVE_SECONDS}")
    if via == PROXY_PROTOCOL:
        words.append(f"--proxy-protocol {proxy.protocol}")
        if not server.path:
            words.append(f"--proxy-allow-from {trusted}")
    if not reads_http:
        # The headers come from the client as it wrote them.
        words.append("--forwarded-allow-ips ''")
    elif not server.path:
        words.append(f"--forwarded-allow-ips {trusted}")
    return " ".join(words)


# Not with $, % or {: these are all taken by one proxy or another.
_VALUE = re.compile(r"@(\w+|{\w+})")


def render(template: str, words: set[str], values: Mapping[str, str], servers: Sequence[Mapping[str, str]]) -> str:
    """Fill a template in, as the module's docstring says.

    :param words: what ``@if`` asks for
    :param values: by name
    :param servers: the values of each server
    """
    lines: list[str] = []
    for line in _chosen(template, words):
        names = {name.strip("{}") for name in _VALUE.findall(line)}
        for server in servers if names & servers[0].keys() else servers[:1]:
            known = {**values, **server}
            lines.append(_VALUE.sub(lambda name: known[name[1].strip("{}")], line))  # noqa: B023  (called at once)
    # Where lines were left out, there may be two blank ones in a row.
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def _chosen(template: str, words: set[str]) -> Iterator[str]:
    """The lines of a template whose conditions hold."""
    wanted = True
    for line in template.splitlines():
        directive = line.strip()
        if directive.startswith("@if "):
            wanted = all((word.lstrip("!") in words) != word.startswith("!") for word in directive.split()[1:])
        elif directive == "@end":
            wanted = True
        elif wanted:
            yield line
