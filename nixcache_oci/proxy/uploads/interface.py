"""What uploads need of others: who may write, signatures, and a publisher, which is not imported here."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from aiohttp import web

from nixcache_oci.clients.binary_cache.source import BinaryCache
from nixcache_oci.errors import Error
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart


class UploadRefusedError(Error):
    """An upload is refused; the client shows the text.

    Nix gives up at 4xx; 202, 429 and 5xx make some versions hang. Source: facts about Nix clients, "Uploads".
    """

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Login:
    """Who logged in, and the password that was made for that one, if its credentials are short-lived."""

    writer: str
    expires_at: float | None = None  # seconds since 1970; None for never
    password: str | None = field(default=None, repr=False)


class Writers(Protocol):
    """Decides who may write; UploadRefusedError with 401 or 403 if the request may not."""

    async def check(self, request: web.Request) -> str:
        """Return the writer's name, with the rule that let it."""

    async def log_in(self, request: web.Request) -> Login:
        """Do the same, and make a password for who showed a JSON Web Token."""


Publish = Callable[[BinaryCache, Sequence[HashPart], bool], Awaitable[Mapping[HashPart, str]]]
"""Publishes narinfos of a binary cache, and returns why some could not be.

The flag says whether it has their NARs; if not, the cache has them, and only signatures are added.
Raises Error if nothing could be published.
"""


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """How uploads are taken, and what is done with them."""

    folder: Path  # of this cache's spool
    most_bytes: int  # in the spool
    most_nar_bytes: int | None  # of one compressed NAR, as the registry limits blobs
    quiet_seconds: float  # without a new path before a batch is published
    writers: Writers
    sign: Callable[[NarInfo], NarInfo]  # adds the signatures of our keys
    is_signing: bool  # whether there are any
    publish: Publish
