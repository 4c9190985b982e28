"""Uploads of blobs to the double of GHCR."""

import hashlib
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from aiohttp import web

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_faults import RequestRecord
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_routes import Target
from tests.support.ghcr_store import GhcrStore
from tests.support.ghcr_wire import Answer, Pace, oci_error

if TYPE_CHECKING:
    from hashlib import _Hash

_OVER_QUOTA = oci_error(
    403,
    "DENIED",
    "Encountered a billing-related error. Please verify the billing status for this account.",
)
_TOO_LARGE = oci_error(413, "SIZE_INVALID", "the blob is larger than what this registry takes")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d+)-(\d+)(?:/.*)?")


class CutRequestError(Exception):
    """A fault asks to hang up in the middle of a request's body."""


@dataclass(slots=True)
class _Upload:
    name: str
    path: Path
    file: BinaryIO
    size: int = 0
    hash: "_Hash" = field(default_factory=hashlib.sha256)


async def receive(
    request: web.BaseRequest, record: RequestRecord, bandwidth: int | None, cut_after: int | None
) -> AsyncGenerator[bytes]:
    """Yield the request's body as it comes.

    Raises:
        CutRequestError: ``cut_after`` bytes have come.
    """
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    pace = Pace(bandwidth)
    async for chunk in request.content.iter_any():
        record.bytes_received += len(chunk)
        if cut_after is not None and record.bytes_received >= cut_after:
            raise CutRequestError
        yield chunk
        await pace.wait_for(len(chunk))
    if cut_after is not None:
        raise CutRequestError


class Uploads:
    """Open upload sessions; a committed or refused one is gone."""

    def __init__(self, manners: Manners, store: GhcrStore) -> None:
        self._manners = manners
        self._store = store
        self._open: dict[str, _Upload] = {}

    def close(self) -> None:
        """Forget all sessions, as a restart does."""
        for upload in self._open.values():
            upload.file.close()
        self._open.clear()

    def post(self, target: Target, prefix: str) -> Answer:
        if self._is_beyond_quota(target.name, 1):
            return _OVER_QUOTA
        session = secrets.token_hex(16)
        path = self._store.staging_path()
        self._open[session] = _Upload(target.name, path, path.open("wb"))
        return self._accepted(202, target.name, session, prefix)

    def get(self, target: Target, prefix: str) -> Answer:
        if self._find(target) is None:
            return _unknown_upload()
        return self._accepted(204, target.name, target.reference, prefix)

    def delete(self, target: Target) -> Answer:
        upload = self._find(target)
        if upload is None:
            return _unknown_upload()
        self._drop(target.reference)
        return Answer(204)

    async def patch(
        self, target: Target, prefix: str, content_range: str | None, chunks: AsyncIterator[bytes]
    ) -> Answer:
        """Take a part: of any size as one stream, of at most ``patch_limit`` bytes with a Content-Range."""
        upload = self._find(target)
        if upload is None:
            return _unknown_upload()
        if content_range is not None:
            match = _CONTENT_RANGE.fullmatch(content_range)
            if match is None:
                return oci_error(400, "BLOB_UPLOAD_INVALID", "Content-Range cannot be read")
            start, last = int(match[1]), int(match[2])
            if start != upload.size or last - start + 1 > self._manners.patch_limit:
                return oci_error(416, "BLOB_UPLOAD_INVALID", "chunk out of order or too large")
        await _append(upload, chunks)
        return self._accepted(202, target.name, target.reference, prefix)

    async def put(
        self, target: Target, prefix: str, digest_text: str | None, size: int, chunks: AsyncIterator[bytes]
    ) -> Answer:
        """Take the rest, often all of it, of ``size`` bytes, and check the whole against the digest."""
        upload = self._find(target)
        if upload is None:
            return _unknown_upload()
        if upload.size + size > self._manners.blob_limit:
            return _TOO_LARGE
        if self._is_beyond_quota(target.name, upload.size + size):
            return _OVER_QUOTA
        await _append(upload, chunks)
        try:
            digest = Digest.parse(digest_text or "")
        except FormatError as error:
            return oci_error(400, "DIGEST_INVALID", str(error))
        upload.file.close()
        del self._open[target.reference]
        if upload.hash.hexdigest() != digest.hex:
            upload.path.unlink()
            return oci_error(400, "DIGEST_INVALID", "the bytes have another digest")
        self._store.adopt_blob(target.name, digest, upload.path)
        held = self._store.get_or_make(target.name)
        held.delay(str(digest), self._manners.lag_answers, self._manners.lag_seconds)
        location = f"{prefix}/v2/{target.name}/blobs/{digest}"
        return Answer(201, {"Location": location, "Docker-Content-Digest": str(digest)})

    def _is_beyond_quota(self, name: str, size: int) -> bool:
        held = sum(self._store.get_or_make(name).blobs.values())
        return self._manners.quota is not None and held + size > self._manners.quota

    def _find(self, target: Target) -> _Upload | None:
        upload = self._open.get(target.reference)
        return upload if upload and upload.name == target.name else None

    def _drop(self, session: str) -> None:
        upload = self._open.pop(session)
        upload.file.close()
        upload.path.unlink()

    def _accepted(self, status: int, name: str, session: str, prefix: str) -> Answer:
        return Answer(
            status,
            {
                "Location": f"{prefix}/v2/{name}/blobs/uploads/{session}",
                "Range": f"0-{max(0, self._open[session].size - 1)}",
                "Docker-Upload-UUID": session,
            },
        )


async def _append(upload: _Upload, chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        upload.file.write(chunk)
        upload.hash.update(chunk)
        upload.size += len(chunk)


def _unknown_upload() -> Answer:
    return oci_error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
