"""Responses with a narinfo or a NAR, in the same bytes as by the HTTP library."""

import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final

NAR_TYPE: Final = "application/x-nix-nar"
NARINFO_TYPE: Final = "text/x-nix-narinfo"
COMMON_HEADERS: Final = {
    "Server": "nixcache-oci",
    # For browsers: no page may load anything from here as its script, style or image.
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Of every response, errors included."""

_COMMON_FIELDS: Final = "".join(f"{name}: {value}\r\n" for name, value in COMMON_HEADERS.items())
_NARINFO_START: Final = f"HTTP/1.1 200 OK\r\nContent-Type: {NARINFO_TYPE}\r\nContent-Length: ".encode()
_NAR_START: Final = (
    f"HTTP/1.1 200 OK\r\nContent-Type: {NAR_TYPE}\r\nAccept-Ranges: bytes\r\nContent-Length: ".encode()
)


def render_narinfo(narinfo: bytes, *, is_get: bool) -> bytes:
    """Write head and body; on HEAD, only the head."""
    return _render(_NARINFO_START, narinfo, is_get=is_get)


def render_nar(nar: memoryview, *, is_get: bool) -> bytes:
    """Like ``render_narinfo``; the copy lets go of the pack while a slow client reads."""
    return _render(_NAR_START, nar, is_get=is_get)


def _render(start: bytes, body: bytes | memoryview, *, is_get: bool) -> bytes:
    # Not by %-formatting: it copies a large body twice.
    head = b"%b%d%b" % (start, len(body), _end_of_head(int(time.time())))
    return b"".join((head, body)) if is_get else head


@lru_cache(maxsize=1)
def _end_of_head(now: int) -> bytes:
    return f"\r\nDate: {formatdate(now, usegmt=True)}\r\n{_COMMON_FIELDS}\r\n".encode()
