"""Which proxies a request came through: the header Via, so that a loop ends at once. No I/O.

Each process has a name of its own, and adds it to what it asks an upstream for. Who finds its own name in a
request has been asked for what it asks for itself. Source: RFC 9110, section 7.6.3.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Final, TypeAlias

VIA: Final = "Via"
MOST_HOPS: Final = 8
"""Proxies of this kind that a request may have come through."""

Chain: TypeAlias = tuple[str, ...]
"""The names of such proxies, the first one first."""

_NAME = re.compile(r"(?:^|[\s,])(nixcache-oci-[0-9a-f]{16})(?=$|[\s,])")


def make_name() -> str:
    """Make a name for this process; it says nothing about the machine."""
    return f"nixcache-oci-{secrets.token_hex(8)}"


def parse_via(values: Iterable[str]) -> Chain:
    """Read the names out of all Via headers of a request; other proxies' are left out."""
    return tuple(name for value in values for name in _NAME.findall(value))


def render_via(chain: Chain) -> str:
    """Write the header's value."""
    return ", ".join(f"1.1 {name}" for name in chain)


def is_loop(chain: Chain, own_name: str) -> bool:
    """Tell whether a request was here before, or came through too many proxies to go on."""
    return own_name in chain or len(chain) >= MOST_HOPS
