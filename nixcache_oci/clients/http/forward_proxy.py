"""Chooses the HTTP proxy for a URL from the environment by curl's rules, which Nix follows too.

The variable of the URL's scheme counts (``https_proxy``), else ``all_proxy``; lower case before upper case;
an empty one counts as unset. libcurl matches addresses only against addresses and networks, and resolves no
names. Our deviations: nothing on this machine is ever reached through a proxy, ``HTTP_PROXY`` counts too
(curl ignores it because of CGI), and an entry of ``no_proxy`` may name a port. aiohttp's own ``trust_env``
stays off: it would also send netrc credentials along redirects.

Sources: curl's manual, "ENVIRONMENT" and "--noproxy"; libcurl-env(3), CURLOPT_PROXY(3), CURLOPT_NOPROXY(3);
curl, ``lib/noproxy.c``, ``lib/url.c`` (parse_proxy).
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from yarl import URL

from nixcache_oci.clients.http.public_address import names_loopback
from nixcache_oci.clients.http.url import basic_authorization, parse_url
from nixcache_oci.errors import UsageError

# Default ports: CURLOPT_PROXY(3).
_PORTS: Final = {"http": 1080, "https": 443}
_PROXIES: Final = ("all_proxy", "ALL_PROXY")
_SEPARATORS: Final = re.compile(r"[\s,]+")
_NAME_AND_PORT: Final = re.compile(r"(?P<name>\[[^\]]*\]|[^:]*)(?::(?P<port>[0-9]{1,5}))?")
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """A proxy."""

    url: URL  # without credentials, with its port
    authorization: str | None = field(repr=False)  # for ``Proxy-Authorization``, or None


def find_proxy(url: URL, environment: Mapping[str, str] = os.environ) -> HttpProxy | None:
    """Find the proxy for a URL; None for a direct connection.

    Raises UsageError if the environment names a proxy that cannot be used, such as a SOCKS proxy. Its text
    shows only the scheme, for the rest may hold a password.
    """
    host, own = url.raw_host or "", f"{url.scheme}_proxy"
    found = _first(environment, own, own.upper(), *_PROXIES)
    if found is None or names_loopback(host) or is_excepted(host, url.port, _no_proxy(environment)):
        return None
    return _parse(*found)


def check_proxies(urls: Iterable[URL], environment: Mapping[str, str] = os.environ) -> None:
    """Check, before any work begins, that no URL needs a proxy that cannot be used; else UsageError."""
    for url in urls:
        find_proxy(url, environment)


def _first(environment: Mapping[str, str], *names: str) -> tuple[str, str] | None:
    """Find the first variable that is set: its name and text."""
    return next(((name, text) for name in names if (text := environment.get(name, "").strip())), None)


def _parse(variable: str, text: str) -> HttpProxy:
    match = _SCHEME.match(text)
    scheme = match["scheme"].lower() if match else "http"
    if scheme not in _PORTS:
        raise UsageError(
            f"{variable} names a proxy that speaks {scheme[:20]}, but only http and https proxies work here: "
            "set it to one of these, or add the host to no_proxy"
        )
    try:
        proxy = parse_url(text if match else f"http://{text}")
        if not proxy.raw_host:
            raise ValueError(variable)  # noqa: TRY301  handled like yarl's own
        url = proxy.origin().with_port(proxy.explicit_port or _PORTS[scheme])
    except ValueError:
        raise UsageError(f"{variable} is not a proxy's address: write it like http://host:3128") from None
    if proxy.raw_user is None:
        return HttpProxy(url, None)
    user, password = unquote(proxy.raw_user), unquote(proxy.raw_password or "")
    return HttpProxy(url, basic_authorization(user, password))


def find_http_proxy(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the variable that names Nix's proxy for an ``http`` URL; None for a direct connection."""
    found = _first(environment, "http_proxy", *_PROXIES)
    if found is None or is_excepted(urlsplit(url).hostname or "", None, _no_proxy(environment)):
        return None
    return found[0]


def no_proxy_words(environment: Mapping[str, str]) -> list[str]:
    """Return the entries of the no_proxy variable."""
    return [word for word in _SEPARATORS.split(_no_proxy(environment)) if word]


def _no_proxy(environment: Mapping[str, str]) -> str:
    return (_first(environment, "no_proxy", "NO_PROXY") or ("", ""))[1]


def is_excepted(host: str, port: int | None, no_proxy: str) -> bool:
    """Check whether ``no_proxy`` matches a host: by name, parent domain, address or network.

    Args:
        host: a name, or an IP address without brackets.
        port: of the connection; None ignores entries with a port, as libcurl does.
        no_proxy: entries separated by commas or spaces, or ``*`` for every host.
    """
    name = host.lower().removesuffix(".")
    address = _address(name)
    if no_proxy.strip() == "*":
        return True
    for entry in _SEPARATORS.split(no_proxy):
        if address is not None and (_address(entry) == address or _is_network_of(entry, address)):
            return True
        match = _NAME_AND_PORT.fullmatch(entry.lower())
        if match is None or not match["name"] or (match["port"] and int(match["port"]) != port):
            continue
        if address is not None:
            if _address(match["name"].strip("[]")) == address:
                return True
            continue
        domain = match["name"].removeprefix(".").removesuffix(".")
        if domain and (name == domain or name.endswith(f".{domain}")):
            return True
    return False


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_network_of(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if "/" not in entry:
        return False
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
