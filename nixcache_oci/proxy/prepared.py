"""An answer with a narinfo, as bytes: what the HTTP library would write, without asking it."""

import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final

NARINFO_TYPE: Final = "text/x-nix-narinfo"
SERVER_NAME: Final = "nixcache-oci"

_START: Final = f"HTTP/1.1 200 OK\r\nContent-Type: {NARINFO_TYPE}\r\nContent-Length: ".encode()


def render_narinfo(narinfo: bytes, *, is_get: bool) -> bytes:
    """Write head and body; on HEAD, the body is left out and its length is not."""
    body = narinfo if is_get else b""
    return b"%b%d%b%b" % (_START, len(narinfo), _end_of_head(int(time.time())), body)


@lru_cache(maxsize=1)
def _end_of_head(now: int) -> bytes:
    return f"\r\nDate: {formatdate(now, usegmt=True)}\r\nServer: {SERVER_NAME}\r\n\r\n".encode()
