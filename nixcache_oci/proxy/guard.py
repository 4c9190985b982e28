"""Which requests are allowed: a daemon that a browser can reach is an attack surface.

A page may rebind its host name to this machine's address, or send cross-origin requests. Source: design
section 3, promise 10.
"""

import ipaddress
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Final

ALLOW_HEADER: Final = "X-Nixcache-Oci"
SITE_HEADER: Final = "Sec-Fetch-Site"

_HOSTS_REMEMBERED: Final = 64
# W3C, "Fetch Metadata Request Headers": a page of ours, or a typed URL.
_OUR_SITES: Final = frozenset({"same-origin", "none"})

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]\s/@?#]+)(?::[0-9]{0,5})?")


def own_names(host_name: str) -> frozenset[str]:
    """Return this machine's names in its network, given its host name, qualified or not, or empty."""
    full = host_name.lower().rstrip(".")
    short = full.partition(".")[0]
    return frozenset({full, short, f"{short}.local"}) if short else frozenset()


def is_allowed_host(header: str, names: AbstractSet[str]) -> bool:
    """Check that no attacker can choose this Host header: localhost, an address, or one of ``names``.

    Requests without one come from HTTP/1.0 clients, and no browser is one.
    """
    match = _HOST.fullmatch(header)
    if match is None:
        return False
    name = match["name"].lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name in names:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class HostGuard:
    """Caches ``is_allowed_host`` for further names, in lower case."""

    def __init__(self, names: AbstractSet[str]) -> None:
        # A client sends the same header every time, and parsing it takes a tenth of a hit.
        self._decide = lru_cache(maxsize=_HOSTS_REMEMBERED)(lambda header: is_allowed_host(header, names))

    def allows(self, header: str) -> bool:
        """Check a Host header."""
        return self._decide(header)


def is_from_elsewhere(sites: Iterable[str], origins: Iterable[str], host: str, allow: str | None) -> bool:
    """Check whether a browser sends a request for a page that is not ours.

    Browsers add Sec-Fetch-Site to every request, and no page can change it; links from other pages count,
    too: a link to here may open caches, and search. Other clients, and browsers before 2023, send none. With
    the header ``X-Nixcache-Oci``, as below, Origin does not count.
    """
    if any(site.strip().lower() not in _OUR_SITES for site in sites):
        return True
    own = {f"http://{host.lower()}", f"https://{host.lower()}"}
    return allow is None and any(origin.strip().lower() not in own for origin in origins)


def may_change_state(origin: str | None, allow: str | None) -> bool:
    """Check whether a request may change state.

    Browsers send Origin across origins, and with every POST. A page of another origin cannot send
    ``X-Nixcache-Oci``, because the preflight request of the browser is refused.
    """
    return origin is None or allow is not None
