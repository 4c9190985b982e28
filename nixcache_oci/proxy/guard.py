"""Who may ask: a daemon that a browser can reach is an attack surface.

A page may rebind its own host name to this machine's address, or send a request across origins. Source:
design section 3, promise 10.
"""

import ipaddress
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Final

ALLOW_HEADER: Final = "X-Nixcache-Oci"

_HOSTS_REMEMBERED: Final = 64
# W3C, "Fetch Metadata Request Headers": a page of ours, or somebody who typed the address.
_OUR_SITES: Final = frozenset({"same-origin", "none"})

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]\s/@?#]+)(?::[0-9]{0,5})?")


def own_names(host_name: str) -> frozenset[str]:
    """Tell the names that this machine goes by in its network.

    Args:
        host_name: as the machine calls itself, with a domain or without; it may be empty.
    """
    full = host_name.lower().rstrip(".")
    short = full.partition(".")[0]
    return frozenset({full, short, f"{short}.local"}) if short else frozenset()


def is_allowed_host(header: str, names: AbstractSet[str]) -> bool:
    """Decide whether a Host header is one that no stranger can choose.

    A request without one comes from a client of HTTP/1.0, which no browser is.

    Args:
        header: its value.
        names: further names to answer to, in lower case.
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
    """Decides on Host headers as ``is_allowed_host`` does, and remembers.

    Args:
        names: further names to answer to, in lower case.
    """

    def __init__(self, names: AbstractSet[str]) -> None:
        # A client sends the same one with each request, and reading it takes a tenth of the time of a hit.
        self._decide = lru_cache(maxsize=_HOSTS_REMEMBERED)(lambda header: is_allowed_host(header, names))

    def allows(self, header: str) -> bool:
        """Decide whether a Host header is one that no stranger can choose."""
        return self._decide(header)


def is_from_elsewhere(sites: Iterable[str], origins: Iterable[str], host: str, allow: str | None) -> bool:
    """Decide whether a browser sends a request for a page that is not ours.

    Browsers put Sec-Fetch-Site into every request, and no page can change it; there is no page of ours that
    leads here, so a link on another one does not, either.

    Args:
        sites: values of Sec-Fetch-Site; none of other clients and of browsers before 2023.
        origins: values of Origin.
        host: value of Host.
        allow: value of ``X-Nixcache-Oci``, as below; with it, Origin says nothing.
    """
    if any(site.strip().lower() not in _OUR_SITES for site in sites):
        return True
    own = {f"http://{host.lower()}", f"https://{host.lower()}"}
    return allow is None and any(origin.strip().lower() not in own for origin in origins)


def may_change_state(origin: str | None, allow: str | None) -> bool:
    """Decide whether a request may change something here.

    Args:
        origin: value of Origin: browsers send it, across origins and with every POST.
        allow: value of ``X-Nixcache-Oci``: a page of another origin cannot send it, because browsers ask for
            leave first, and no such leave is given.
    """
    return origin is None or allow is not None
