"""Which HTTP proxy Nix uses for a URL: libcurl decides that by environment variables.

libcurl ignores HTTP_PROXY in capitals, matches addresses only against addresses and networks, and resolves
no names. Source: libcurl-env(3), CURLOPT_PROXY(3), CURLOPT_NOPROXY(3).
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

_PROXIES: Final = ("http_proxy", "all_proxy", "ALL_PROXY")
_EXCEPTIONS: Final = ("no_proxy", "NO_PROXY")
_SEPARATORS: Final = re.compile(r"[\s,]+")
_NAME_AND_PORT: Final = re.compile(r"(?P<name>\[[^\]]*\]|[^:]*)(?::(?P<port>[0-9]{1,5}))?")


def find_http_proxy(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the variable that names the proxy for an ``http`` URL; None for a direct connection."""
    variable = _first(_PROXIES, environment)
    host = urlsplit(url).hostname or ""
    is_exception = is_excepted(host, None, " ".join(no_proxy_words(environment)))
    return None if variable is None or is_exception else variable


def no_proxy_words(environment: Mapping[str, str]) -> list[str]:
    """Return the entries of the no_proxy variable."""
    variable = _first(_EXCEPTIONS, environment)
    return [] if variable is None else [word for word in _SEPARATORS.split(environment[variable]) if word]


def _first(names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """Return the first variable that is set and not empty."""
    return next((name for name in names if environment.get(name)), None)


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
