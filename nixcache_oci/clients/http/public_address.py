"""Decides which addresses a server on the public internet may send us to. No I/O.

Such a server is a stranger, and we may be inside a private network: through us, it must not reach what it
could not reach itself. A server at a private address may name private ones.
"""

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from yarl import URL

# RFC 6052: on networks without IPv4, this prefix leads to every IPv4 address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

IsPublic = Callable[[str], bool]
AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


class PrivateAddressError(PermissionError):
    """A server at a public address named one that leads to a private address."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"the private address {address} refused")


def is_public(address: str) -> bool:
    """Tell whether an IP address, in canonical spelling, is on the public internet.

    Any other spelling is not. IPv6 forms that embed an IPv4 address are judged by that address.
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
    """Return the IP address that a host spells out, in canonical spelling; None for a name.

    Resolvers read ``127.1``, ``0x7f.0.0.1``, ``2130706433`` and ``017700000001`` as 127.0.0.1, and an HTTP
    proxy may accept an address with a trailing dot.
    """
    host = host.rstrip(".")
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def names_loopback(host: str) -> bool:
    """Tell whether a host leads to this machine, in any spelling that some resolver reads so."""
    literal = literal_address(host)
    if literal is not None:
        address = ipaddress.ip_address(literal)
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def spells_private(url: URL, is_public: IsPublic) -> bool:
    """Tell whether a URL's host spells a private address; names are checked when they are resolved."""
    host = url.raw_host or ""
    literal = literal_address(host)
    return names_loopback(host) if literal is None else not is_public(literal)


def open_any_socket(info: AddressInfo) -> socket.socket:
    """Make a socket for any address."""
    return socket.socket(*info[:3])


def guard_sockets(is_public: IsPublic) -> Callable[[AddressInfo], socket.socket]:
    """Make a socket factory that raises PrivateAddressError for addresses that are not public.

    It checks the very address that is connected to, so a name cannot resolve differently after the check.
    """

    def open_socket(info: AddressInfo) -> socket.socket:
        address = str(info[4][0])
        if not is_public(address):
            raise PrivateAddressError(address)
        return open_any_socket(info)

    return open_socket


def is_known_private(peer: str | None, url: URL, is_public: IsPublic) -> bool:
    """Tell whether an answer came from a private address.

    ``peer`` is the connection's; it is None behind an HTTP proxy, where only the URL's host is known.
    """
    address = literal_address(url.raw_host or "") if peer is None else peer
    return address is not None and not is_public(address)
