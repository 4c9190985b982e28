"""Asks a running proxy about itself: a few small answers over loopback, each within seconds."""

import os
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self

import aiohttp

from nixcache_oci.clients.http.errors import FOREIGN_ERRORS, show
from nixcache_oci.errors import Error
from nixcache_oci.oci.document import get_optional_text, parse_document, parse_object, within

_SECONDS: Final = 5
_MOST_BYTES: Final = 1024 * 1024
_MOST_CHARACTERS: Final = 500  # of a text that is shown: any user of the machine may be answering
_PRIORITY = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """What ``/_status`` and ``/nix-cache-info`` say."""

    registry: str  # name of the repository that is served
    entries: int  # number of narinfos
    is_ready: bool  # whether it has an index
    error: str | None  # why the last refresh failed, or None
    is_key_changed: bool  # whether the cache records another key than the one first seen
    store_dir: str  # such as ``/nix/store``
    priority: int | None  # among substituters, lower first; None if not stated

    @classmethod
    def parse(cls, status: bytes, cache_info: str) -> Self:
        """Read both answers; FormatError if they are not a nixcache-oci proxy's."""
        info = dict(line.split(": ", 1) for line in cache_info.splitlines() if ": " in line)
        priority = info.get("Priority", "")
        with within("the proxy's status"):
            document = parse_document(status, "it", _MOST_BYTES)
            index = parse_object(document.get("index"))
            entries, error = document.get("entries"), get_optional_text(index, "last_error")
            return cls(
                (get_optional_text(document, "registry") or "")[:_MOST_CHARACTERS],
                entries if isinstance(entries, int) else 0,
                index.get("ready") is True,
                error and error[:_MOST_CHARACTERS],
                parse_object(document.get("public_keys")).get("changed") is True,
                info.get("StoreDir", "")[:_MOST_CHARACTERS],
                int(priority) if _PRIORITY.fullmatch(priority) else None,
            )


class ProxyClient:
    """Asks the proxy at a URL without a trailing slash; open it by ``async with``.

    Every method raises Error if nothing answers.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def is_healthy(self) -> bool:
        """Tell whether it answers as a proxy does."""
        status, body = await self._get("/health")
        return status == HTTPStatus.OK and body.strip() == b"ok"

    async def status(self) -> ProxyStatus:
        """Ask what it serves; Error if nothing answers, or something else does."""
        _, document = await self._get("/_status")
        _, cache_info = await self._get("/nix-cache-info")
        return ProxyStatus.parse(document, cache_info.decode(errors="replace"))

    async def public_keys(self) -> tuple[str, ...]:
        """Ask for the public keys that it hands out."""
        status, body = await self._get("/public-key")
        return tuple(body.decode(errors="replace").split()) if status == HTTPStatus.OK else ()

    async def _get(self, path: str) -> tuple[int, bytes]:
        if self._session is None:
            raise AssertionError("the client is opened by async with")
        try:
            async with self._session.get(f"{self._url}{path}", allow_redirects=False) as response:
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > _MOST_BYTES:
                        raise Error(f"{self._url}{path}: over {_MOST_BYTES} bytes: not a nixcache-oci proxy")
                return response.status, bytes(body)
        except TimeoutError:
            raise Error(f"{self._url}: no answer within {_SECONDS} s") from None
        except aiohttp.ClientConnectorError as error:
            reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
            raise Error(f"{self._url}: {reason}") from None
        except FOREIGN_ERRORS as error:
            raise Error(f"{self._url}: {show(str(error)) or type(error).__name__}") from None
