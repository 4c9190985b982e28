"""Reading a stranger's URL, and showing it; where an answer's Location and Link lead.

Sources: RFC 9110, sections 10.2.2 and 15.4; RFC 3986 section 5; RFC 8288 section 3 (Link).
"""

import re
from typing import Final

from yarl import URL

_MOST_SHOWN_CHARACTERS: Final = 200


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """Read a URL.

    Args:
        text: whatever somebody sent or set.
        encoded: whether to keep it as it is, byte for byte.

    Raises:
        ValueError: it is none.
    """
    try:
        return URL(text, encoded=encoded)
    except IndexError:  # yarl 1.25 looks for the first letter of an empty host: http://[::1]@/
        raise ValueError("no host behind user and password") from None


def show_url(text: str) -> str:
    """Quote a URL without what may be secret in it: user and password, and a query, which may be signed."""
    place = re.split(r"[?#]", text, maxsplit=1)[0]
    scheme, separator, rest = place.partition("//")
    if separator:
        place = f"{scheme}//{rest.rpartition('@')[2]}"
    return repr(place[:_MOST_SHOWN_CHARACTERS])
