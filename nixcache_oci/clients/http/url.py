"""Parses and shows strangers' URLs, reads Link headers, and renders Basic authorization.

Sources: RFC 9110, section 15.4 (redirects); RFC 8288 section 3 (Link); RFC 7617 (Basic).
"""

import base64
import re
from collections.abc import Iterable
from typing import Final

from yarl import URL

from nixcache_oci.errors import FormatError

REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})
KEEPING_METHOD_STATUSES: Final = frozenset({307, 308})

_MOST_SHOWN_CHARACTERS: Final = 200
# RFC 8288 wants brackets around the target; Cloudflare's registry writes none.
_TARGET = r'(?:<([^<>]*)>|(?:(?<=,)|^)[ \t]*([^\s;,"<>]+))'
_LINK = re.compile(rf'{_TARGET}((?:[ \t]*;[ \t]*[^\s;,="<>]+(?:[ \t]*=[ \t]*(?:"[^"]*"|[^\s;,"<>]+))?)*)')
_REL = re.compile(r';[ \t]*rel[ \t]*=[ \t]*(?:"([^"]*)"|([^\s;,"]+))', re.IGNORECASE)


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """Read a URL that a stranger may have sent, if ``encoded`` byte for byte; ValueError if it is none."""
    try:
        return URL(text, encoded=encoded)
    except IndexError:  # yarl 1.25, for an empty host: http://[::1]@/
        raise ValueError("no host behind user and password") from None


def is_same_origin(one: URL, other: URL) -> bool:
    """Compare scheme, host and port (RFC 6454, section 4): ``https://h`` is ``https://h:443``."""
    return _origin(one) == _origin(other)


def _origin(url: URL) -> tuple[str, str, int | None]:
    return url.scheme.lower(), (url.raw_host or "").lower(), url.port


def show_url(text: str) -> str:
    """Quote a URL without user and password, and without its query, which may be signed."""
    place = re.split(r"[?#]", text, maxsplit=1)[0]
    scheme, separator, rest = place.partition("//")
    if separator:
        place = f"{scheme}//{rest.rpartition('@')[2]}"
    return repr(place[:_MOST_SHOWN_CHARACTERS])


def basic_authorization(username: str, password: str) -> str:
    """Render the value of an Authorization header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def find_next(link_headers: Iterable[str]) -> str | None:
    """Find the target of the link to the next page; None on the last, FormatError if it cannot be read."""
    for header in link_headers:
        for match in _LINK.finditer(header):
            relation = _REL.search(match[3])
            if relation and "next" in (relation[1] or relation[2] or "").lower().split():
                return match[2] if match[1] is None else match[1]
        if "next" in re.sub(r"<[^<>]*>", "", header).lower():
            raise FormatError("the list continues at a Link that cannot be read")
    return None
