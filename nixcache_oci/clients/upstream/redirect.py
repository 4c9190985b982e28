"""Where an upstream's redirect may lead: decisions without I/O.

An upstream is a stranger that can send us anywhere, and we stand inside somebody's network: a redirect must
not reach what the upstream could not reach itself.
"""

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from yarl import URL

from nixcache_oci.clients.url import parse_url, show_url
from nixcache_oci.errors import UpstreamError

MOST_REDIRECTS = 5
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})

# RFC 6052: on networks without IPv4, every IPv4 address is reached through this prefix
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

IsPublic = Callable[[str], bool]
AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


def is_public(address: str) -> bool:
    """Tell whether an IP address, in its canonical spelling, is one of the open internet.

    Any other spelling is not public. IPv6 forms that carry an IPv4 address are judged by that address.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed.is_site_local or parsed.teredo is not None:
            return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved)


def literal_address(host: str) -> str | None:
    """Tell the IP address that a host spells out, in its canonical spelling; None for a name.

    The resolver takes ``127.1``, ``0x7f.0.0.1``, ``2130706433`` and ``017700000001`` for 127.0.0.1.
    """
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def is_loopback(host: str) -> bool:
    """Tell whether a host spells this machine itself."""
    literal = literal_address(host)
    if literal is not None:
        address = ipaddress.ip_address(literal)
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def next_url(current: URL, location: str) -> URL:
    """Follow one redirect; credentials in it are dropped.

    Raises:
        UpstreamError: it leads nowhere, to another scheme, or from https to http.
    """
    try:
        # a signature in it must arrive as it is; only what cannot stand in a request line is encoded anew
        is_encoded = location.isascii() and location.isprintable() and " " not in location
        target = current.join(parse_url(location, encoded=is_encoded)).with_fragment(None)
        host = target.host
    except ValueError as error:
        raise UpstreamError(
            f"upstream {current.origin()}: redirect to {show_url(location)}: not a URL"
        ) from error
    if not location or not host or target.scheme not in {"http", "https"}:
        raise UpstreamError(
            f"upstream {current.origin()}: redirect to {show_url(location)}, which is no web address"
        )
    if current.scheme == "https" and target.scheme == "http":
        raise UpstreamError(f"upstream {current.origin()}: redirect from https to http://{host} refused")
    return target.with_user(None)


def spells_private(url: URL, is_public: IsPublic) -> bool:
    """Tell whether a URL's host itself spells a private address; names are judged when they are resolved."""
    host = url.raw_host or ""
    literal = literal_address(host)
    return is_loopback(host) if literal is None else not is_public(literal)


def guard_sockets(is_public: IsPublic) -> Callable[[AddressInfo], socket.socket]:
    """Make the function that opens sockets for redirects, to public addresses only.

    It sees the very address that is connected to, so a name cannot change its meaning after the check.
    """

    def open_socket(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        if not is_public(str(address[0])):
            raise PermissionError(errno.EACCES, f"redirect to the private address {address[0]} refused")
        return socket.socket(family, kind, protocol)

    return open_socket
