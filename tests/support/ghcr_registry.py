"""The registry's own origin of the GHCR double: manifests, tags, blobs and uploads."""

import hashlib
import json
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

from aiohttp import web

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_faults import RequestRecord, Target
from tests.support.ghcr_store import GhcrStore, HeldManifest, HeldRepository, Manners, SignedUrls
from tests.support.ghcr_wire import Answer, FilePart, Pace, json_answer, oci_error

if TYPE_CHECKING:
    from hashlib import _Hash

_OVER_QUOTA = oci_error(
    403, "DENIED", "Encountered a billing-related error. Please verify the billing status for this account."
)
_TOO_LARGE = oci_error(413, "SIZE_INVALID", "the blob is larger than what this registry takes")


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
        return self._accepted(target.name, session, prefix)

    def delete(self, target: Target) -> Answer:
        upload = self._find(target)
        if upload is None:
            return _unknown_upload()
        del self._open[target.reference]
        upload.file.close()
        upload.path.unlink()
        return Answer(204)

    async def patch(self, target: Target, prefix: str, chunks: AsyncIterator[bytes]) -> Answer:
        """Take a part, of any size, as one stream."""
        upload = self._find(target)
        if upload is None:
            return _unknown_upload()
        await _append(upload, chunks)
        return self._accepted(target.name, target.reference, prefix)

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
        held.lags[str(digest)] = self._manners.lag_answers
        location = f"{prefix}/v2/{target.name}/blobs/{digest}"
        return Answer(201, {"Location": location, "Docker-Content-Digest": str(digest)})

    def _is_beyond_quota(self, name: str, size: int) -> bool:
        held = sum(self._store.get_or_make(name).blobs.values())
        return self._manners.quota is not None and held + size > self._manners.quota

    def _find(self, target: Target) -> _Upload | None:
        upload = self._open.get(target.reference)
        return upload if upload and upload.name == target.name else None

    def _accepted(self, name: str, session: str, prefix: str) -> Answer:
        location = f"{prefix}/v2/{name}/blobs/uploads/{session}"
        range_header = f"0-{max(0, self._open[session].size - 1)}"
        return Answer(202, {"Location": location, "Range": range_header, "Docker-Upload-UUID": session})


async def _append(upload: _Upload, chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        upload.file.write(chunk)
        upload.hash.update(chunk)
        upload.size += len(chunk)


def _unknown_upload() -> Answer:
    return oci_error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")


NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAGS_ON_A_PAGE = 100  # that nobody gave a size
_MANIFEST_LIMIT = 4 * 1024 * 1024  # bytes
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NAME_UNKNOWN = oci_error(404, "NAME_UNKNOWN", "repository name not known to registry")
_MANIFEST_UNKNOWN = oci_error(404, "MANIFEST_UNKNOWN", "manifest unknown")
_BLOB_UNKNOWN = oci_error(404, "BLOB_UNKNOWN", "blob unknown to registry")
_UNSUPPORTED = oci_error(405, "UNSUPPORTED", "The operation is unsupported.")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to the registry, with what is needed of it."""

    target: Target
    query: Mapping[str, str]
    accept: str
    content_type: str
    size: int
    chunks: AsyncIterator[bytes]
    host: str


class Registry:
    """Answers what has passed the check of its token."""

    def __init__(self, manners: Manners, store: GhcrStore, urls: SignedUrls) -> None:
        self._manners = manners
        self._store = store
        self._urls = urls
        self.uploads = Uploads(manners, store)

    async def answer(self, asked: Asked, storage_host: str) -> Answer:
        operation = asked.target.operation
        prefix = "" if self._manners.relative_location else f"http://{asked.host}"
        if operation.startswith("upload-"):
            return await self._upload(asked, prefix)
        if operation == "manifest-put":
            return await self._put_manifest(asked, prefix)
        if operation == "manifest-delete" and self._manners.deletes:
            manifest = self._store.find_manifest(asked.target.name, asked.target.reference)
            if manifest is None or ":" not in asked.target.reference:
                return _MANIFEST_UNKNOWN
            self._store.delete_version(asked.target.name, manifest.version)
            return Answer(202)
        if operation.endswith("-delete"):
            return _UNSUPPORTED
        return json_answer(200, {}) if operation == "ping" else self._read(asked, storage_host)

    def _read(self, asked: Asked, storage_host: str) -> Answer:
        target, operation = asked.target, asked.target.operation
        held = self._store.find(target.name)
        if held is None or not (held.is_package or operation.startswith("blob-")):
            return _NAME_UNKNOWN
        if operation.startswith("manifest-"):
            return self._get_manifest(held, target.reference, asked.accept)
        if operation == "tags":
            return self._list_tags(held, target.name, asked.query)
        return self._get_blob(held, target, storage_host)

    async def _upload(self, asked: Asked, prefix: str) -> Answer:
        match asked.target.operation:
            case "upload-post":
                return self.uploads.post(asked.target, prefix)
            case "upload-patch":
                return await self.uploads.patch(asked.target, prefix, asked.chunks)
            case "upload-put":
                digest = asked.query.get("digest")
                return await self.uploads.put(asked.target, prefix, digest, asked.size, asked.chunks)
            case _:
                return self.uploads.delete(asked.target)

    def _get_manifest(self, held: HeldRepository, reference: str, accept: str) -> Answer:
        manifest = held.find(reference)
        if manifest is None or held.is_lagging(reference):
            return _MANIFEST_UNKNOWN
        if manifest.media_type not in {item.partition(";")[0].strip() for item in accept.split(",")}:
            return oci_error(
                404, "MANIFEST_UNKNOWN", f"found {manifest.media_type}, which Accept does not list"
            )
        headers = {"Content-Type": manifest.media_type, "Docker-Content-Digest": str(manifest.digest)}
        return Answer(200, headers, manifest.content)

    async def _put_manifest(self, asked: Asked, prefix: str) -> Answer:
        target = asked.target
        content = b"".join([chunk async for chunk in asked.chunks])
        if len(content) >= _MANIFEST_LIMIT:
            return Answer(500)
        try:
            refusal = self._check_manifest(target, content, asked.content_type)
        except (FormatError, ValueError, KeyError, TypeError, AttributeError) as error:
            refusal = oci_error(400, "MANIFEST_INVALID", f"manifest invalid: {error}")
        if refusal:
            return refusal
        manifest = self._store.put_manifest(target.name, target.reference, content, asked.content_type)
        held = self._store.get_or_make(target.name)
        for key in {target.reference, str(manifest.digest)}:
            held.lags[key] = self._manners.lag_answers
        location = f"{prefix}/v2/{target.name}/manifests/{manifest.digest}"
        return Answer(201, {"Location": location, "Docker-Content-Digest": str(manifest.digest)})

    def _check_manifest(self, target: Target, content: bytes, media_type: str) -> Answer | None:
        document = json.loads(content)
        if document.get("schemaVersion") != 2 or document.get("mediaType", media_type) != media_type:
            return oci_error(400, "MANIFEST_INVALID", "schemaVersion or mediaType is not what was announced")
        digest = Digest.of(content)
        if ":" in target.reference:
            if target.reference != str(digest):
                return oci_error(400, "DIGEST_INVALID", f"the manifest's digest is {digest}")
        elif not _TAG.fullmatch(target.reference):
            return oci_error(400, "TAG_INVALID", "this cannot be a tag")
        held = self._store.get_or_make(target.name)
        manifest = HeldManifest(0, digest, content, media_type, 0)
        sizes = {digest: len(each.content) for digest, each in held.manifests.items()}
        for code, wanted, present in (
            ("MANIFEST_BLOB_UNKNOWN", manifest.blobs(), held.blobs),
            ("MANIFEST_UNKNOWN", manifest.children(), sizes),
        ):
            for digest, size in wanted:
                if digest not in present:
                    return oci_error(400, code, f"{digest} is unknown to registry")
                if present[digest] != size:
                    return oci_error(
                        400, "MANIFEST_INVALID", f"{digest} has {present[digest]} bytes, not {size}"
                    )
        return None

    def _list_tags(self, held: HeldRepository, name: str, query: Mapping[str, str]) -> Answer:
        """List in push order: ``last`` is the last tag of the page before."""
        tags = list(held.tags)
        size = min(int(query.get("n", _TAGS_ON_A_PAGE)), self._manners.tags_page_max)
        last = query.get("last")
        start = 0 if not last else tags.index(last) + 1 if last in tags else len(tags)
        page = tags[start : start + size]
        headers = {}
        if page and start + size < len(tags):
            headers["Link"] = f'</v2/{name}/tags/list?last={quote(page[-1])}&n={size}>; rel="next"'
        return json_answer(200, {"name": name, "tags": page}, headers)

    def _get_blob(self, held: HeldRepository, target: Target, storage_host: str) -> Answer:
        try:
            digest = Digest.parse(target.reference)
        except FormatError as error:
            return oci_error(400, "DIGEST_INVALID", str(error))
        if digest not in held.blobs or held.is_lagging(str(digest)):
            return _BLOB_UNKNOWN
        is_head = target.operation == "blob-head"
        redirects = self._manners.blob_head_status == 307 if is_head else self._manners.blob_get_redirects
        if redirects:
            return Answer(307, {"Location": self._urls.make(storage_host, digest)})
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": str(digest)}
        return Answer(200, headers, FilePart(self._store.blob_path(digest), 0, held.blobs[digest]))
