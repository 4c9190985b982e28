"""Upload sessions of the GHCR double: a whole blob in one PUT, or in chunks."""

import hashlib
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from aiohttp import web

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_faults import RequestRecord, Target
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_store import GhcrStore
from tests.support.ghcr_wire import Answer, Pace, oci_error

if TYPE_CHECKING:
    from hashlib import _Hash

_OVER_QUOTA = oci_error(
    403, "DENIED", "Encountered a billing-related error. Please verify the billing status for this account."
)
_TOO_LARGE = oci_error(413, "SIZE_INVALID", "the blob is larger than what this registry takes")
_CONTENT_RANGE = re.compile(r"([0-9]+)-([0-9]+)")  # the specification's form, which is not HTTP's


class CutRequestError(Exception):
    """A fault asks to hang up in the middle of a request's body."""


@dataclass(slots=True)
class _Upload:
    name: str
    path: Path
    file: BinaryIO
    size: int = 0
    hash: "_Hash" = field(default_factory=hashlib.sha256)
    state: str = ""  # of the latest Location
    is_ended: bool = False  # whether a chunk came that only the last may be as short as


async def receive(
    request: web.BaseRequest, record: RequestRecord, bandwidth: int | None, cut_after: int | None
) -> AsyncGenerator[bytes]:
    """Yield the request's body as it comes."""
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


@dataclass(frozen=True, slots=True)
class Sent:
    """A request for an upload, with what is needed of it.

    Attributes:
        query: of the URL.
        size: of the body; None if it is not announced.
        content_range: the header, or an empty string.
        chunks: the body as it comes.
    """

    query: Mapping[str, str]
    size: int | None
    content_range: str
    chunks: AsyncIterator[bytes]


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

    async def answer(self, target: Target, prefix: str, sent: Sent) -> Answer:
        if target.operation == "upload-post":
            return self._post(target, prefix)
        upload = self._open.get(target.reference)
        if upload is None or upload.name != target.name:
            return oci_error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        return await self._continue(target, prefix, upload, sent)

    async def _continue(self, target: Target, prefix: str, upload: _Upload, sent: Sent) -> Answer:
        if upload.state != sent.query.get("_state", "") and target.operation in {
            "upload-patch",
            "upload-put",
        }:
            return oci_error(400, "BLOB_UPLOAD_INVALID", "this is not the latest Location")
        if target.operation == "upload-patch":
            return await self._patch(target, prefix, upload, sent)
        if target.operation == "upload-put":
            return await self._put(target, prefix, upload, sent)
        if target.operation == "upload-get":
            return self._accepted(target, prefix, 204)
        self._end(target)
        upload.path.unlink()
        return Answer(204)

    def _post(self, target: Target, prefix: str) -> Answer:
        if self._is_beyond_quota(target.name, 1):
            return self._over_quota
        session = secrets.token_hex(16)
        path = self._store.staging_path()
        self._open[session] = _Upload(target.name, path, path.open("wb"))
        headers = {}
        if self._manners.chunk_range is not None:
            names = ("OCI-Chunk-Min-Length", "OCI-Chunk-Max-Length")
            headers = {name: str(size) for name, size in zip(names, self._manners.chunk_range, strict=True)}
        return self._accepted(Target("upload-post", target.name, session), prefix, 202, headers)

    async def _patch(self, target: Target, prefix: str, upload: _Upload, sent: Sent) -> Answer:
        """Take a chunk, or without Content-Range a part of any size, as one stream."""
        if sent.size is None and self._manners.needs_length:
            return oci_error(400, "CONTENT_LENGTH_INVALID", "PATCH needs Content-Length")
        if sent.content_range and (refusal := self._check_chunk(target, prefix, upload, sent)):
            return refusal
        await _append(upload, sent.chunks)
        return self._accepted(target, prefix, 202)

    def _check_chunk(self, target: Target, prefix: str, upload: _Upload, sent: Sent) -> Answer | None:
        match = _CONTENT_RANGE.fullmatch(sent.content_range)
        if match is None or int(match[2]) - int(match[1]) + 1 != sent.size:
            return oci_error(400, "BLOB_UPLOAD_INVALID", "Content-Range is not of this chunk")
        if int(match[1]) != upload.size:
            return self._accepted(target, prefix, 416)
        least, most = self._manners.chunk_range or (0, sent.size)
        if upload.is_ended or sent.size > most:
            return oci_error(400, "SIZE_INVALID", "only the last chunk may have another size")
        upload.is_ended = sent.size < least
        return None

    async def _put(self, target: Target, prefix: str, upload: _Upload, sent: Sent) -> Answer:
        """Take the rest, often all of it, and check the whole against the digest."""
        size = sent.size or 0
        if upload.size + size > self._manners.blob_limit:
            return _TOO_LARGE
        if self._is_beyond_quota(target.name, upload.size + size):
            return self._over_quota
        await _append(upload, sent.chunks)
        try:
            digest = Digest.parse(sent.query.get("digest", ""))
        except FormatError as error:
            return oci_error(400, "DIGEST_INVALID", str(error))
        self._end(target)
        if upload.hash.hexdigest() != digest.hex:
            upload.path.unlink()
            return oci_error(400, "DIGEST_INVALID", "the bytes have another digest")
        self._store.adopt_blob(target.name, digest, upload.path)
        held = self._store.get_or_make(target.name)
        held.lags[str(digest)] = self._manners.lag_answers
        location = f"{prefix}/v2/{target.name}/blobs/{digest}"
        return Answer(201, {"Location": location, "Docker-Content-Digest": str(digest)})

    def _end(self, target: Target) -> None:
        self._open.pop(target.reference).file.close()

    @property
    def _over_quota(self) -> Answer:
        return Answer(403) if self._manners.is_quota_silent else _OVER_QUOTA

    def _is_beyond_quota(self, name: str, size: int) -> bool:
        held = sum(self._store.get_or_make(name).blobs.values())
        return self._manners.quota is not None and held + size > self._manners.quota

    def _accepted(
        self, target: Target, prefix: str, status: int, more: Mapping[str, str] | None = None
    ) -> Answer:
        session, upload = target.reference, self._open[target.reference]
        location = f"{prefix}/v2/{target.name}/blobs/uploads/{session}"
        if self._manners.has_states:
            upload.state = f"{secrets.token_hex(4)}+/="
            location += f"?_state={upload.state.replace('+', '%2B')}"
        headers = {
            "Location": location,
            "Range": f"0-{max(0, upload.size - 1)}",
            "Docker-Upload-UUID": session,
            **(more or {}),
        }
        return Answer(status, headers)


async def _append(upload: _Upload, chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        upload.file.write(chunk)
        upload.hash.update(chunk)
        upload.size += len(chunk)
