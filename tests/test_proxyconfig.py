"""``sticky-session proxy-config``, as far as it needs no proxy: flags, errors, what is computed, what is parsed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import product
from typing import Any

import engineio
import pytest
import yaml

from sticky_session import proxyconfig
from sticky_session.cli import main
from sticky_session.proxyconfig import PROXIES, PROXY_PROTOCOL, STICKINESS, configure, render, timeout_seconds

TWO = ("192.0.2.11:8000", "192.0.2.12:8000")


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints; it must succeed."""
    main(["proxy-config", *arguments])
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says when it fails, with status 2 and nothing printed."""
    with pytest.raises(SystemExit) as end:
        main(["proxy-config", *arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert end.value.code == 2
    return printed.err


def everything() -> Iterator[tuple[str, str, str | None, str]]:
    """Each proxy, way, stickiness and number of servers that go together, and the configuration."""
    for name, proxy in PROXIES.items():
        for via in proxy.templates:
            for stickiness, servers in product([None, *proxy.stickiness[via]], [(), TWO]):
                if len(servers) > 1 and (name == "ingress-nginx" or not proxy.stickiness[via]):
                    continue
                yield name, via, stickiness, configure(name, via=via, stickiness=stickiness, servers=servers)


def active(configuration: str) -> str:
    """A configuration without its comments."""
    return re.sub(r"^\s*#.*\n", "", configuration, flags=re.MULTILINE)


def test_everything_is_filled_in() -> None:
    """No configuration has anything of its template left, two blank lines in a row, or trailing blanks."""
    for *_, configuration in everything():
        assert "@" not in configuration
        assert "\n\n\n" not in configuration
        assert not re.search(r"[ \t]$", configuration, re.MULTILINE)
        assert configuration.endswith("\n")


def test_braces_are_balanced() -> None:
    """What opens a block, closes it."""
    for name, *_, configuration in everything():
        if name in ("nginx", "caddy"):
            assert active(configuration).count("{") == active(configuration).count("}")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the configuration, and the command itself in the first line."""
    printed = output(capsys, "nginx", "--server", "192.0.2.11:8000", "--listen", ":8080", "--server-name", "a.example")
    assert printed.splitlines()[0].endswith(
        "Printed by: sticky-session proxy-config nginx --server 192.0.2.11:8000 --listen :8080 --server-name a.example"
    )
    assert "    server 192.0.2.11:8000;\n" in printed
    assert "    listen 8080;\n    listen [::]:8080;\n" in printed
    assert "    server_name a.example;\n" in printed


@pytest.mark.parametrize("name", PROXIES)
def test_defaults(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """With nothing but its name, each proxy has one server of ours behind it."""
    printed = output(capsys, name)
    assert ("127.0.0.1:8000" in active(printed)) == (name != "ingress-nginx")
    if name != "ingress-nginx":
        assert "--forwarded-allow-ips 127.0.0.1" in printed


@pytest.mark.parametrize("word", ["--server", "--stickiness {hash,ip-hash,cookie}", *PROXIES, "[127.0.0.1:8000]"])
def test_help(capsys: pytest.CaptureFixture[str], word: str) -> None:
    """--help names the flags, their values and the proxies."""
    with pytest.raises(SystemExit) as end:
        main(["proxy-config", "--help"])
    assert end.value.code == 0
    assert word in re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nginx", "--server", "8000"), "--server=8000: expected HOST:PORT or unix:/PATH"),
        (("nginx", "--server", ":8000"), "--server=:8000: expected HOST:PORT or unix:/PATH"),
        (("nginx", "--server", "host"), "--server=host: expected HOST:PORT or unix:/PATH"),
        (("nginx", "--server", "host:0"), "--server=host:0: expected HOST:PORT or unix:/PATH"),
        (("nginx", "--server", "host:65536"), "--server=host:65536: expected HOST:PORT or unix:/PATH"),
        (("nginx", "--server", "http://host:80"), "--server=http://host:80: expected HOST:PORT or unix:/PATH"),
        (("nginx", "--server", "[::g]:80"), "--server=[::g]:80: expected HOST:PORT or unix:/PATH"),
        (("nginx", "--server", "[1.2.3]:80"), "--server=[1.2.3]:80: [1.2.3] is no IPv6 address"),
        (("nginx", "--server", "unix:run/a.sock"), "--server=unix:run/a.sock: expected unix: and an absolute path"),
        (("nginx", "--server", "unix:/a b"), "--server=unix:/a b: expected unix: and an absolute path"),
        (("nginx", "--server", "a:1;"), "--server=a:1;: expected HOST:PORT or unix:/PATH"),
        (("nginx", "--server", "a:1", "--server", "a:1"), "--server: the same server is given twice"),
        (("nginx", "--listen", "http"), "--listen=http: expected [HOST]:PORT"),
        (("nginx", "--server-name", "a b"), "--server-name=a b: expected a name like www.example.com"),
        (("nginx", "--server-name", "a;}"), "--server-name=a;}: expected a name like www.example.com"),
        (("nginx", "--ping-interval", "0"), "--ping-interval=0: expected more than 0 and up to 86400 (seconds)"),
        (("nginx", "--ping-timeout", "nan"), "--ping-timeout=nan: expected more than 0 and up to 86400 (seconds)"),
        (("haproxy", "--server-name", "a.example"), "--server-name=a.example: this configuration of haproxy serves"),
        (("nginx", "--via", "proxy-protocol", "--server-name", "a"), "this configuration of nginx serves every name"),
        (("apache", "--via", "proxy-protocol"), "apache reads the PROXY protocol but can't send it; expected --via="),
        (("ingress-nginx", "--via", "proxy-protocol"), "which can't send the PROXY protocol; expected --via=header"),
        (("ingress-nginx", "--listen", ":80"), "--listen=:80: where ingress-nginx listens is not a matter of this"),
        (("ingress-nginx", "--server", "a:1", "--server", "b:1"), "--server: given twice; ingress-nginx takes one"),
        (("ingress-nginx", "--server", "192.0.2.1:80"), "--server=192.0.2.1:80: expected SERVICE:PORT"),
        (("ingress-nginx", "--server", "unix:/a"), "--server=unix:/a: ingress-nginx can't connect to a Unix socket"),
        (("traefik", "--server", "unix:/a"), "--server=unix:/a: traefik can't connect to a Unix socket"),
        (
            ("traefik", "--via", "proxy-protocol", "--server", "a:1", "--server", "b:1"),
            "--server: given twice; traefik can't keep clients on one of several machines with --via=proxy-protocol",
        ),
        (("apache", "--stickiness", "hash"), "apache has no such thing with --via=header; expected cookie"),
        (("caddy", "--stickiness", "hash"), "caddy has no such thing with --via=header; expected ip-hash or cookie"),
        (("nginx", "--via", "proxy-protocol", "--stickiness", "cookie"), "with --via=proxy-protocol; expected hash"),
        (("traefik", "--via", "proxy-protocol", "--stickiness", "hash"), "with --via=proxy-protocol; leave it"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    """What can't be, is one clear line."""
    said = refusal(capsys, *arguments)
    assert said.startswith("sticky-session proxy-config: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "PROXY"),
        (("squid",), "invalid choice: 'squid'"),
        (("nginx", "--via", "pigeon"), "invalid choice: 'pigeon'"),
        (("nginx", "--ping-interval", "soon"), "invalid float value: 'soon'"),
        (("nginx", "--nonsense"), "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    """What is no argument of the command at all is refused with the usage."""
    assert message in refusal(capsys, *arguments).splitlines()[-1]


def test_stickiness() -> None:
    """Whatever a proxy is said to have, it has a configuration for, and it differs from the others."""
    for name, proxy in PROXIES.items():
        for via in proxy.templates:
            servers = () if name == "ingress-nginx" else TWO
            kinds = proxy.stickiness[via]
            made = {active(configure(name, via=via, stickiness=kind, servers=servers)) for kind in kinds}
            assert len(made) == len(kinds)
            assert set(kinds) <= set(STICKINESS)


@pytest.mark.parametrize(("interval", "timeout", "seconds"), [(25, 20, 60), (0.5, 0.25, 16), (60, 60, 135)])
def test_timeouts(interval: float, timeout: float, seconds: int) -> None:
    """A proxy's timeouts are longer than a ping interval and a ping timeout together."""
    assert timeout_seconds(interval, timeout) == seconds
    assert seconds > interval + timeout
    expected: Mapping[tuple[str, str], list[str]] = {
        ("nginx", "header"): ["proxy_read_timeout {}s;", "proxy_send_timeout {}s;"],
        ("nginx", PROXY_PROTOCOL): ["proxy_timeout {}s;"],
        ("haproxy", "header"): ["timeout client {}s", "timeout server {}s", "timeout tunnel {}s"],
        ("haproxy", PROXY_PROTOCOL): ["timeout client {}s", "timeout server {}s", "timeout tunnel {}s"],
        ("apache", "header"): [" timeout={} "],
        ("traefik", "header"): ["respondingtimeouts.readtimeout={}s"],
        ("ingress-nginx", "header"): ['proxy-read-timeout: "{}"', 'proxy-send-timeout: "{}"'],
    }
    for (name, via), lines in expected.items():
        printed = configure(name, via=via, ping_interval=interval, ping_timeout=timeout)
        for line in lines:
            assert line.format(seconds) in printed
        assert f"({interval:g} + {timeout:g} s)" in printed


def test_idle_connections() -> None:
    """Every proxy that keeps connections to us closes idle ones before we do."""
    ours = re.compile(r"--keep-alive (\d+)")
    for name, theirs in [
        ("nginx", r"keepalive_timeout (\d+)s;"),
        ("apache", r"ttl=(\d+) "),
        ("caddy", r"keepalive (\d+)s"),
        ("traefik", r"idleConnTimeout: (\d+)s"),
        ("ingress-nginx", r"kept alive for (\d+) s"),
    ]:
        printed = configure(name)
        found, our = re.search(theirs, printed), ours.search(printed)
        assert found
        assert our
        assert int(found[1]) < int(our[1])


def our_side(name: str, **options: Any) -> list[str]:
    """The command lines that start us, as the comment has them."""
    return re.findall(r"sticky-session serve app:app .*", configure(name, **options))


def test_our_side() -> None:
    """The comment has a command for each machine, which trusts the proxy and nobody else."""
    assert our_side("nginx", servers=["localhost:8000", "[::1]:8001", "192.0.2.11:8000", "unix:/run/a.sock"]) == [
        "sticky-session serve app:app --bind localhost:8000 --keep-alive 75 --forwarded-allow-ips 127.0.0.1,::1",
        "sticky-session serve app:app --bind [::1]:8001 --keep-alive 75 --forwarded-allow-ips ::1",
        "sticky-session serve app:app --bind 192.0.2.11:8000 --keep-alive 75 --forwarded-allow-ips PROXY_ADDRESS",
        "sticky-session serve app:app --bind unix:/run/a.sock --keep-alive 75",
    ]
    assert our_side("ingress-nginx", servers=["chat:9000"]) == [
        "sticky-session serve app:app --bind 0.0.0.0:9000 --keep-alive 75 --forwarded-allow-ips PROXY_ADDRESS"
    ]


def test_our_side_with_the_proxy_protocol() -> None:
    """We read the version that the proxy sends, and trust no header that the client could have written."""
    (nginx,) = our_side("nginx", via=PROXY_PROTOCOL)
    assert nginx.endswith(
        "--bind 127.0.0.1:8000 --proxy-protocol v1 --proxy-allow-from 127.0.0.1 --forwarded-allow-ips ''"
    )
    for name in ("haproxy", "traefik"):
        (command,) = our_side(name, via=PROXY_PROTOCOL)
        assert command == nginx.replace("v1", "v2")
    (caddy,) = our_side("caddy", via=PROXY_PROTOCOL)
    assert "--proxy-protocol v2 --proxy-allow-from 127.0.0.1 --forwarded-allow-ips 127.0.0.1" in caddy
    (unix,) = our_side("haproxy", via=PROXY_PROTOCOL, servers=["unix:/run/a.sock"])
    assert "allow-from" not in unix


@pytest.mark.parametrize("name", ["nginx", "haproxy", "apache", "caddy", "traefik"])
def test_remote_server_is_explained(name: str) -> None:
    """PROXY_ADDRESS is explained where it stands, and nowhere else."""
    for via in PROXIES[name].templates:
        assert configure(name, via=via, servers=["192.0.2.11:8000"]).count("PROXY_ADDRESS") >= 2
        assert "PROXY_ADDRESS" not in configure(name, via=via)


def documents(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


def test_traefik() -> None:
    """Traefik's file is YAML with the servers, the cookie and the idle time that the others have."""
    (made,) = documents(configure("traefik", servers=TWO, server_name="www.example.com"))
    service = made["http"]["services"]["sticky-session"]["loadBalancer"]
    assert [server["url"] for server in service["servers"]] == [f"http://{server}" for server in TWO]
    assert service["sticky"]["cookie"]["name"] == "sticky_session"
    assert service["passHostHeader"] is True
    router = made["http"]["routers"]["sticky-session"]
    assert router["rule"] == "Host(`www.example.com`)"
    assert router["service"] in made["http"]["services"]
    transport = made["http"]["serversTransports"][service["serversTransport"]]
    nginx = configure("nginx", servers=TWO)
    assert f"keepalive_timeout {transport['forwardingTimeouts']['idleConnTimeout']};" in nginx
    assert f"keepalive {transport['maxIdleConnsPerHost']};" in nginx
    assert transport["forwardingTimeouts"]["responseHeaderTimeout"] == "0s"


def test_traefik_by_address() -> None:
    """Traefik's hash of the client's address goes without a cookie."""
    (made,) = documents(configure("traefik", servers=TWO, stickiness="hash"))
    service = made["http"]["services"]["sticky-session"]["loadBalancer"]
    assert service["strategy"] == "hrw"
    assert "sticky" not in service


def test_traefik_with_the_proxy_protocol() -> None:
    """Traefik's TCP service sends the version that we are told to read."""
    (made,) = documents(configure("traefik", via=PROXY_PROTOCOL))
    service = made["tcp"]["services"]["sticky-session"]["loadBalancer"]
    assert service["servers"] == [{"address": "127.0.0.1:8000"}]
    transport = made["tcp"]["serversTransports"][service["serversTransport"]]
    assert f"v{transport['proxyProtocol']['version']}" == PROXIES["traefik"].protocol


def test_ingress_nginx() -> None:
    """The Ingress leads to the Service, and says in annotations what nginx's configuration says in directives."""
    service, ingress = documents(configure("ingress-nginx", ping_interval=50, server_name="a.example"))
    assert (service["kind"], ingress["kind"]) == ("Service", "Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "a.example"
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["number"] == service["spec"]["ports"][0]["port"]
    annotations = ingress["metadata"]["annotations"]
    assert all(type(value) is str for value in annotations.values()), "Kubernetes takes nothing else"
    prefix = "nginx.ingress.kubernetes.io/"
    nginx = configure("nginx", ping_interval=50, stickiness="hash")
    for name in ("proxy-read-timeout", "proxy-send-timeout", "proxy-connect-timeout"):
        assert f"{name.replace('-', '_')} {annotations[prefix + name]}s;" in nginx
    for name in ("proxy-buffering", "proxy-http-version"):
        assert f"{name.replace('-', '_')} {annotations[prefix + name]};" in nginx
    assert f"hash {annotations[prefix + 'upstream-hash-by']} consistent;" in nginx


def test_ingress_nginx_by_cookie() -> None:
    """The cookie has the name that the other proxies give it."""
    _, ingress = documents(configure("ingress-nginx", stickiness="cookie"))
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/affinity"] == "cookie"
    assert annotations["nginx.ingress.kubernetes.io/session-cookie-name"] == "sticky_session"
    assert "nginx.ingress.kubernetes.io/upstream-hash-by" not in annotations


def test_forgery() -> None:
    """Where the client's own header could survive, it is overwritten or removed."""
    for name, line in [
        ("nginx", "proxy_set_header X-Forwarded-For $remote_addr;"),
        ("haproxy", "http-request set-header X-Forwarded-For %[src]"),
        ("apache", "RequestHeader unset X-Forwarded-For"),
    ]:
        assert line in active(configure(name))


def test_one_server_has_no_stickiness() -> None:
    """One machine needs no means to keep clients on it, unless it is asked for."""
    assert "hash" not in active(configure("nginx"))
    assert "hash $remote_addr consistent;" in active(configure("nginx", stickiness="hash"))
    assert "hash $remote_addr consistent;" in active(configure("nginx", servers=TWO))


def test_render() -> None:
    """Values, lines for each server, and conditions."""
    template = "@if a\n@x@{y}z\n@end\n@if a !b\nno\n@end\n\n@if c\nno\n@end\n\n  @server @x\nend\n"
    servers = [{"server": "first"}, {"server": "second"}]
    assert render(template, {"a", "b"}, {"x": "1", "y": "2"}, servers) == "12z\n\n  first 1\n  second 1\nend\n"


def test_every_template_is_used() -> None:
    """There is no template that no proxy has."""
    there = {path.name for path in (files("sticky_session") / "proxyconfigs").iterdir()}
    assert there == {name for proxy in PROXIES.values() for name in proxy.templates.values()}


def test_defaults_are_engine_io_s() -> None:
    """The ping interval and timeout are those of python-engineio."""
    parameters = inspect.signature(engineio.base_server.BaseServer).parameters
    ours = inspect.signature(proxyconfig.configure).parameters
    for name in ("ping_interval", "ping_timeout"):
        assert ours[name].default == parameters[name].default
