"""Heads of requests: which can be answered at once, and which are unambiguously without a body.

Pure, and strict on purpose: anything not clearly well-formed is OTHER, and left to a real parser.
Source: RFC 9112, sections 3, 5 and 6.
"""

import re
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Final, TypeGuard

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table_search import HashPartBytes
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.base32 import CHARACTER
from nixcache_oci.proxy.prefix import PREFIX

END_OF_HEAD: Final = b"\r\n\r\n"

_REQUEST_LINE: Final = re.compile(rb"(?:GET|HEAD) /[\x21-\x7e]* HTTP/1\.1\r\n")
_METHOD: Final = rb"(?:GET|HEAD) /"
_NARINFO: Final = rb"(" + CHARACTER.encode() + rb"{32})\.narinfo"
# Enough to recognize a NAR; NarUrl validates it.
_NAR: Final = rb"(nar/[0-9a-f]{64}(?:/[0-9]{1,18}-[0-9]{1,18})?\.nar[.0-9A-Za-z]{0,16})"
_END_OF_LINE: Final = rb" HTTP/1\.1\r\n"
_NARINFO_LINE: Final = re.compile(_METHOD + _NARINFO + _END_OF_LINE)
_NAR_LINE: Final = re.compile(_METHOD + _NAR + _END_OF_LINE)
_PREFIXED_LINE: Final = re.compile(
    _METHOD + rb"(" + PREFIX.encode() + rb")/(?:" + _NARINFO + rb"|" + _NAR + rb")" + _END_OF_LINE
)
_FIELD: Final = rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e]*)\r\n"
_FIELDS: Final = re.compile(rb"(?:" + _FIELD + rb")*\r\n")
_ONE_FIELD: Final = re.compile(_FIELD)
# Far below the library's limit, because the fields are cache keys.
_MOST_FIELDS_BYTES: Final = 4096
_JUDGEMENTS_REMEMBERED: Final = 256

# They do not affect the response, which is always whole, and encoded in one way.
_IMMATERIAL: Final = frozenset(
    {b"accept", b"accept-encoding", b"accept-language", b"cache-control", b"pragma", b"user-agent"}
)
# A body, or another protocol: the head does not show where the request ends.
_NOT_THE_END: Final = frozenset(
    {b"content-length", b"transfer-encoding", b"trailer", b"te", b"upgrade", b"expect", b"http2-settings"}
)


class Shape(Enum):
    """The shape of a request, by its head."""

    PLAIN = "plain"  # no headers that matter; the Host is allowed, and the connection stays open
    BODILESS = "bodiless"  # the request ends with its head
    OTHER = "other"  # anything else, including malformed heads


class HeadReader:
    """Reads heads: ``data`` from ``start`` to before ``end``, the empty line included."""

    def __init__(self, is_allowed_host: Callable[[str], bool]) -> None:
        # A client repeats the same fields in every request.
        self._judge = lru_cache(maxsize=_JUDGEMENTS_REMEMBERED)(
            lambda fields: _judge_fields(fields, is_allowed_host)
        )

    def wanted_narinfo(self, data: bytes, start: int, end: int) -> HashPartBytes | None:
        """Return the hash part of a plain request for a narinfo of the root; None for any other request."""
        line = _NARINFO_LINE.match(data, start, end)
        return HashPartBytes(line[1]) if self._is_plain(line, data, end) else None

    def wanted_nar(self, data: bytes, start: int, end: int) -> NarUrl | None:
        """Return the URL of a plain request for a NAR of a cache of the root; None for any other request."""
        line = _NAR_LINE.match(data, start, end)
        return _parse_url(line[1]) if self._is_plain(line, data, end) else None

    def wanted_below_prefix(
        self, data: bytes, start: int, end: int
    ) -> tuple[bytes, HashPartBytes | NarUrl] | None:
        """Return the prefix of a plain request, and what it is for below that; None for any other."""
        line = _PREFIXED_LINE.match(data, start, end)
        if not self._is_plain(line, data, end):
            return None
        wanted = HashPartBytes(line[2]) if line[2] is not None else _parse_url(line[3])
        return (line[1], wanted) if wanted is not None else None

    def shape(self, data: bytes, start: int, end: int) -> Shape:
        """Classify a request."""
        line = _REQUEST_LINE.match(data, start, end)
        if line is None or end - line.end() > _MOST_FIELDS_BYTES:
            return Shape.OTHER
        return self._judge(data[line.end() : end])

    def _is_plain(self, line: re.Match[bytes] | None, data: bytes, end: int) -> TypeGuard[re.Match[bytes]]:
        if line is None or end - line.end() > _MOST_FIELDS_BYTES:
            return False
        return self._judge(data[line.end() : end]) is Shape.PLAIN


def _parse_url(text: bytes) -> NarUrl | None:
    try:
        return NarUrl.parse(text.decode())
    except FormatError:
        return None


def _judge_fields(fields: bytes, is_allowed_host: Callable[[str], bool]) -> Shape:
    if _FIELDS.fullmatch(fields) is None:
        return Shape.OTHER
    pairs = [(name.lower(), value.strip()) for name, value in _ONE_FIELD.findall(fields)]
    names = [name for name, _value in pairs]
    connection = {value.lower() for name, value in pairs if name == b"connection"}
    if not _NOT_THE_END.isdisjoint(names) or not connection <= {b"keep-alive", b"close"}:
        return Shape.OTHER
    hosts = [value.decode() for name, value in pairs if name == b"host"]
    is_plain = (
        len(hosts) == 1
        and is_allowed_host(hosts[0])
        and connection <= {b"keep-alive"}
        and _IMMATERIAL.issuperset(set(names) - {b"host", b"connection"})
    )
    return Shape.PLAIN if is_plain else Shape.BODILESS
