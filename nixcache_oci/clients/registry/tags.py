"""The list of tags of a repository, page by page.

Source: OCI distribution specification, "Listing Tags". Registries deviate: some refuse the page size, some
list null, and some write the address of the next page without brackets, with another path, or with another
origin. So only its query is used.
"""

import json
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Final

from yarl import URL

from nixcache_oci.clients.http.errors import Failure, HttpError
from nixcache_oci.clients.http.reply import BufferedReply
from nixcache_oci.clients.http.url import find_next, parse_url
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.errors import FormatError
from nixcache_oci.wording import counted

_ASKED: Final = "n=1000"  # on a page: ECR, ACR and R2 accept no more
# Of a whole list of tags, over all pages. A cache has some dozen segments.
_MOST_BYTES: Final = 16 * 1024 * 1024
_MOST_TAGS: Final = 100_000
_MOST_PAGES: Final = 1_000
_MOST_SECONDS: Final = 600
_MOST_OTHER_COMMAS: Final = 16  # on a page, for its name and whatever a registry adds

_FOUND = frozenset({HTTPStatus.OK})
# How registries refuse the size of a page. It may be about something else: then the same comes without it.
_REFUSES_SIZE = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)


class Tags:
    """The tags of one repository, whose URL is ``base``."""

    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._url = URL(f"{base}/tags/list", encoded=True)
        self._size = _ASKED

    @property
    def has_own_size(self) -> bool:
        """Whether the size of a page that is asked for was refused."""
        return not self._size

    async def list(self) -> list[str]:
        """List every tag, in no particular order.

        A list of over 100,000 tags, 16 MiB, 1,000 pages or ten minutes is an error, and never cut.
        """
        query: str | None = self._size
        tags: dict[str, None] = {}
        seen: set[str] = set()
        room = _MOST_BYTES
        deadline = monotonic() + _MOST_SECONDS
        while query is not None:
            call = self._call(query, is_first=not seen)
            if query in seen or len(seen) == _MOST_PAGES or monotonic() > deadline:
                raise self._transport.error(call, f"the list does not end after {counted(len(seen), 'page')}")
            page, answer = await self._transport.fetch_parsed(
                call, room + 1, partial(_read_page, room=room, most=_MOST_TAGS - len(tags))
            )
            if answer.status != HTTPStatus.OK:
                query = self._size = ""
                continue
            seen.add(query)
            tags.update(dict.fromkeys(page))
            room -= len(answer.body)
            try:
                query = _next_query(answer)
            except FormatError as error:
                raise self._transport.error(call, str(error), status=answer.status) from error
        return [*tags]

    def _call(self, query: str, *, is_first: bool) -> Call:
        url = URL(f"{self._url}?{query}", encoded=True) if query else self._url
        accepts = _FOUND | _REFUSES_SIZE if query == _ASKED and is_first else _FOUND
        return Call("list tags", "GET", url, accepts=accepts, may_be_absent=is_first)


def _read_page(answer: BufferedReply, *, room: int, most: int) -> tuple[list[str], BufferedReply]:
    """Read one page, of at most ``room`` bytes and ``most`` tags; HttpError if it is larger, or no list."""
    if answer.status != HTTPStatus.OK:
        return [], answer
    if len(answer.body) > room:
        raise _unusable(answer, f"the list has over {_MOST_BYTES} bytes", is_final=True)
    # Counted before parsing, which cannot be interrupted.
    if answer.body.count(b",") > most + _MOST_OTHER_COMMAS:
        raise _unusable(answer, f"the list has over {_MOST_TAGS} tags", is_final=True)
    try:
        return parse_tags(answer.body), answer
    except FormatError as error:
        raise _unusable(answer, str(error)) from error


def parse_tags(body: bytes) -> list[str]:
    """Read the tags of one page; FormatError if this is no list of tags."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise FormatError("the list of tags is not JSON") from None  # what came is not worth showing
    if not isinstance(document, dict) or "tags" not in document:
        raise FormatError("the list of tags has no tags")
    tags = document["tags"]
    if tags is None:  # Go's way to write an empty list
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str | None) for tag in tags):
        raise FormatError("the list of tags contains something else")
    return [tag for tag in tags if tag is not None]  # Nexus lists null for what has no tag


def _unusable(answer: BufferedReply, reason: str, *, is_final: bool = False) -> HttpError:
    return HttpError(Failure(answer.status), reason, is_final=is_final)


def _next_query(answer: BufferedReply) -> str | None:
    """Find the query of the next page; None on the last, FormatError if there is one that cannot be found."""
    target = find_next(answer.headers.getall("Link", []))
    if target is None:
        return None
    try:
        query = parse_url(target, encoded=True).raw_query_string
    except ValueError:
        query = ""
    if not query:
        raise FormatError("the list of tags continues at a Link without a query")
    return query
