"""The HTTP proxy on the way to a registry, as the environment names it.

aiohttp's own ``trust_env`` is left off: it also sends what a ``.netrc`` holds, wherever a redirect leads.
"""

import base64
from dataclasses import dataclass, field
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from nixcache_oci.clients.credentials import is_loopback
from nixcache_oci.clients.registry.retry import Failure
from nixcache_oci.clients.registry.trouble import TroubleError
from nixcache_oci.clients.url import parse_url


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """Where to send requests instead.

    Attributes:
        url: without credentials.
        authorization: for ``Proxy-Authorization``, or None.
    """

    url: URL
    authorization: str | None = field(repr=False)


def find_proxy(url: URL) -> HttpProxy | None:
    """Find the proxy for a URL in ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY``; never one for loopback.

    Raises:
        TroubleError: what the environment names is not a URL.
    """
    host = url.host or ""
    if is_loopback(host if ":" not in host else f"[{host}]") or proxy_bypass(host):
        return None
    text = getproxies().get(url.scheme, "")
    if not text:
        return None
    try:
        proxy = parse_url(text if "://" in text else f"http://{text}")
    except ValueError:
        reason = f"the proxy that the environment names for {url.scheme} is not a URL"
        raise TroubleError(Failure(None), reason, is_final=True) from None  # its text may hold a password
    if proxy.raw_user is None:
        return HttpProxy(proxy, None)
    user, password = unquote(proxy.raw_user), unquote(proxy.raw_password or "")
    return HttpProxy(proxy.with_user(None), basic_authorization(user, password))


def basic_authorization(username: str, password: str) -> str:
    """Render the value of an Authorization header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
