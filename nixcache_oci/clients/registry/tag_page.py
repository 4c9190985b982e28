"""One page of a list of tags, and where the next one is.

Sources: OCI distribution specification, "Listing Tags"; RFC 8288 section 3 (Link).
"""

import json
import re
from collections.abc import Iterable

from nixcache_oci.errors import FormatError

_LINK = re.compile(r'<([^<>]*)>((?:[ \t]*;[ \t]*[^\s;,="<>]+(?:[ \t]*=[ \t]*(?:"[^"]*"|[^\s;,"<>]+))?)*)')
_REL = re.compile(r';[ \t]*rel[ \t]*=[ \t]*(?:"([^"]*)"|([^\s;,"]+))', re.IGNORECASE)


def parse_tags(body: bytes) -> list[str]:
    """Read the tags of one page.

    Raises:
        FormatError: this is no list of tags.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise FormatError("the list of tags is not JSON") from None  # what came is not worth showing
    if not isinstance(document, dict) or "tags" not in document:
        raise FormatError("the list of tags has no tags")
    tags = document["tags"]
    if tags is None:  # Go's way to write an empty list
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise FormatError("the list of tags contains something else")
    return tags


def find_next(link_headers: Iterable[str]) -> str | None:
    """Find the target of the link to the next page; None on the last one.

    Raises:
        FormatError: there is a link to a next page, but it cannot be read.
    """
    for header in link_headers:
        for match in _LINK.finditer(header):
            relation = _REL.search(match[2])
            if relation and "next" in (relation[1] or relation[2] or "").lower().split():
                return match[1]
        if "next" in re.sub(r"<[^<>]*>", "", header).lower():
            raise FormatError("the list continues at a Link that cannot be read")
    return None
