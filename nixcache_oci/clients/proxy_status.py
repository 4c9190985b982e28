"""Asks a running proxy about itself, and logs in at it: a few small answers, each within seconds."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self

from yarl import URL

from nixcache_oci.clients.http.client import HttpClient, HttpRequest
from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.one_origin import OneOrigin, document_timeouts
from nixcache_oci.clients.http.reply import BufferedReply
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.errors import Error, FormatError
from nixcache_oci.oci.document import get_optional_text, get_text, parse_document, parse_object, within

_SECONDS: Final = 5
_MOST_BYTES: Final = 1024 * 1024
_MOST_CHARACTERS: Final = 500  # of a text that is shown: any user of the machine may be answering
_PRIORITY = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class ServedCache:
    """What ``/_status`` says of one cache."""

    registry: str  # name of its repository
    is_ready: bool  # whether it has an index
    error: str | None  # why the last refresh failed, or None
    is_key_changed: bool  # whether the cache records another key than the one first seen

    @classmethod
    def parse(cls, described: Mapping[str, object]) -> Self:
        """Read it; FormatError if it is none."""
        index = parse_object(described.get("index"))
        error = get_optional_text(index, "last_error")
        return cls(
            (get_optional_text(described, "registry") or "")[:_MOST_CHARACTERS],
            index.get("ready") is True,
            error and error[:_MOST_CHARACTERS],
            parse_object(described.get("public_keys")).get("changed") is True,
        )


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """What ``/_status`` and ``/nix-cache-info`` say."""

    caches: tuple[ServedCache, ...]  # at least one: those of the root, then those that are opened on demand
    store_dir: str  # such as ``/nix/store``
    priority: int | None  # among substituters, lower first; None if not stated

    @classmethod
    def parse(cls, status: bytes, cache_info: str) -> Self:
        """Read both answers; FormatError if they are not a nixcache-oci proxy's."""
        info = dict(line.split(": ", 1) for line in cache_info.splitlines() if ": " in line)
        priority = info.get("Priority", "")
        with within("the proxy's status"):
            document = parse_document(status, "it", _MOST_BYTES)
            listed = document.get("caches")
            caches = [parse_object(one) for one in listed] if isinstance(listed, list) else []
            return cls(
                # Older versions serve one, and describe no other.
                tuple(map(ServedCache.parse, caches or [document])),
                info.get("StoreDir", "")[:_MOST_CHARACTERS],
                int(priority) if _PRIORITY.fullmatch(priority) else None,
            )


@dataclass(frozen=True, slots=True)
class LoginAnswer:
    """What ``/_login`` says."""

    writer: str  # with the rule that lets it upload
    expires_at: float | None  # seconds since 1970; None for never
    password: str | None  # that was made in exchange for a JSON Web Token

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read the answer; FormatError if it is none."""
        with within("the answer"):
            document = parse_document(body, "it", _MOST_BYTES)
            expires_at = document.get("expires_at")
            if expires_at is not None and not isinstance(expires_at, int | float):
                raise FormatError("expires_at: expected a number")
            writer = ascii(get_text(document, "writer")[:_MOST_CHARACTERS])[1:-1]
            return cls(writer, expires_at, get_optional_text(document, "password"))


class ProxyClient:
    """Asks the proxy at a URL without a trailing slash; open it by ``async with``.

    Every method raises Error if nothing answers.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = HttpClient(document_timeouts(_SECONDS))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def is_healthy(self) -> bool:
        """Tell whether it answers as a proxy does."""
        answer = await self._get("/health")
        return answer.status == HTTPStatus.OK and answer.body.strip() == b"ok"

    async def status(self) -> ProxyStatus:
        """Ask what it serves; Error if nothing answers, or something else does."""
        document, cache_info = await self._get("/_status"), await self._get("/nix-cache-info")
        return ProxyStatus.parse(document.body, cache_info.body.decode(errors="replace"))

    async def public_keys(self) -> tuple[str, ...]:
        """Ask for the public keys that it hands out."""
        answer = await self._get("/public-key")
        return tuple(answer.body.decode(errors="replace").split()) if answer.status == HTTPStatus.OK else ()

    async def log_in(self, authorization: str) -> LoginAnswer:
        """Ask who may upload with these credentials; Error, with the proxy's own text, if nobody may."""
        answer = await self._ask("POST", "/_login", authorization)
        if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            text = answer.body.decode(errors="replace").strip()[:_MOST_CHARACTERS]
            raise Error(f"{self._url} refused: {ascii(text)[1:-1]}")
        if answer.status != HTTPStatus.OK:
            raise Error(
                f"{self._url} answered {answer.status}: expected a nixcache-oci proxy that takes uploads "
                "(NIXCACHE_UPLOADS=1)"
            )
        try:
            return LoginAnswer.parse(answer.body)
        except FormatError as error:
            raise Error(f"{self._url}: {error}: not a nixcache-oci proxy") from None

    async def _get(self, path: str) -> BufferedReply:
        return await self._ask("GET", path)

    async def _ask(self, method: str, path: str, authorization: str | None = None) -> BufferedReply:
        try:
            with translated():
                request = HttpRequest(method, URL(f"{self._url}{path}"), follows=False)
                async with asyncio.timeout(_SECONDS):
                    reply = await self._http.send(request, OneOrigin(authorization, allows_http=True))
                    answer = await reply.take(_MOST_BYTES + 1)
        except HttpError as error:
            raise Error(f"{self._url}: {error.reason}") from None
        if len(answer.body) > _MOST_BYTES:
            raise Error(f"{self._url}{path}: over {_MOST_BYTES} bytes: not a nixcache-oci proxy")
        return answer
