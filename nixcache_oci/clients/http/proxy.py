"""The HTTP proxy on the way to a URL, as the environment names it, read as Nix reads it: by curl's rules.

The variable of the URL's scheme counts (``https_proxy``), else ``all_proxy``; lower case before upper case;
an empty one counts as unset. Deviations: nothing on this machine is ever reached by a proxy, ``HTTP_PROXY``
counts too (curl is wary of CGI), and an entry of ``no_proxy`` may name a port. aiohttp's own ``trust_env`` is
left off: it also sends what a netrc holds, wherever a redirect leads.

Sources: curl's manual, "ENVIRONMENT" and "--noproxy"; curl, ``lib/noproxy.c``, ``lib/url.c`` (parse_proxy).
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from yarl import URL

from nixcache_oci.clients.http.public_address import is_loopback
from nixcache_oci.clients.http.url import basic_authorization, parse_url
from nixcache_oci.errors import UsageError
from nixcache_oci.nix.http_proxy import is_excepted

# Where a proxy names no port: CURLOPT_PROXY(3).
_PORTS: Final = {"http": 1080, "https": 443}
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """Where to send requests instead.

    Attributes:
        url: without credentials, with its port.
        authorization: for ``Proxy-Authorization``, or None.
    """

    url: URL
    authorization: str | None = field(repr=False)


def find_proxy(url: URL, environment: Mapping[str, str] = os.environ) -> HttpProxy | None:
    """Find the proxy for a URL; None where it is reached directly.

    Raises:
        UsageError: the environment names one that cannot be used, such as one that speaks SOCKS. Its text
            shows no more than the scheme, for the rest may hold a password.
    """
    host, port = url.raw_host or "", url.port
    names = (f"{url.scheme}_proxy", "all_proxy")
    found = _first(environment, names)
    if found is None or is_loopback(host):
        return None
    no_proxy = _first(environment, ("no_proxy",))
    if no_proxy is not None and is_excepted(host, port, no_proxy[1]):
        return None
    return _parse(*found)


def check_proxies(urls: Iterable[URL], environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that each URL can be reached as the environment asks, before any work is begun.

    Raises:
        UsageError: not without a proxy that cannot be used.
    """
    for url in urls:
        find_proxy(url, environment)


def _first(environment: Mapping[str, str], names: Iterable[str]) -> tuple[str, str] | None:
    """Find the first variable that is set, and its text."""
    spelt = (each for name in names for each in (name, name.upper()))
    return next(((name, text) for name in spelt if (text := environment.get(name, "").strip())), None)


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
            raise ValueError(variable)  # noqa: TRY301  the same trouble as the one that yarl finds
        url = proxy.origin().with_port(proxy.explicit_port or _PORTS[scheme])
    except ValueError:
        raise UsageError(f"{variable} is not a proxy's address: write it like http://host:3128") from None
    if proxy.raw_user is None:
        return HttpProxy(url, None)
    user, password = unquote(proxy.raw_user), unquote(proxy.raw_password or "")
    return HttpProxy(url, basic_authorization(user, password))
