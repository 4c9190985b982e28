"""The registry's own origin of the GHCR double: manifests, tags and blobs."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_faults import Target
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_store import GhcrStore, HeldManifest, HeldRepository
from tests.support.ghcr_tokens import SignedUrls
from tests.support.ghcr_uploads import Sent, Uploads
from tests.support.ghcr_wire import Answer, FilePart, blob_answer, json_answer, oci_error

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
    content_range: str  # of the body
    range: str  # of the answer
    size: int | None
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
        prefix = "" if self._manners.relative_location else self._manners.origin or f"http://{asked.host}"
        if operation.startswith("upload-"):
            sent = Sent(asked.query, asked.size, asked.content_range, asked.chunks)
            return await self.uploads.answer(asked.target, prefix, sent)
        if operation == "manifest-put":
            return await self._put_manifest(asked, prefix)
        if operation == "manifest-delete" and self._manners.deletes:
            return self._delete_manifest(asked.target.name, asked.target.reference)
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
        return self._get_blob(held, target, storage_host, asked.range)

    def _delete_manifest(self, name: str, tag_or_digest: str) -> Answer:
        manners = self._manners
        if ":" not in tag_or_digest:
            if not manners.deletes_tags:
                return oci_error(400, "DIGEST_INVALID", "a tag is no digest")
            return Answer(202) if self._store.delete_tag(name, tag_or_digest) else _MANIFEST_UNKNOWN
        manifest = self._store.find_manifest(name, tag_or_digest)
        if manifest is None:
            return _MANIFEST_UNKNOWN
        held = self._store.get_or_make(name)
        if manners.still_tagged and (tags := held.tags_of(manifest.digest)):
            return oci_error(*manners.still_tagged, f"it is still tagged by {', '.join(tags)}")
        parents = [one.digest for one in held.manifests.values() if manifest.digest in dict(one.children())]
        if manners.still_referenced and parents:
            return oci_error(*manners.still_referenced, f"it is still referenced by {parents[0]}")
        self._store.delete_version(name, manifest.version)
        return Answer(202)

    def _get_manifest(self, held: HeldRepository, reference: str, accept: str) -> Answer:
        manifest = held.find(self._store.stored(reference))
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
        refusal = self._refuse_manifest(held, target.reference, digest, document)
        return refusal or self._refuse_missing(held, manifest)

    def _refuse_missing(self, held: HeldRepository, manifest: HeldManifest) -> Answer | None:
        sizes = {digest: len(each.content) for digest, each in held.manifests.items()}
        for refusal, wanted, present in (
            (self._manners.missing_blob, manifest.blobs(), held.blobs),
            (self._manners.missing_child, manifest.children(), sizes),
        ):
            for digest, size in wanted:
                if digest not in present:
                    return oci_error(*refusal, "manifest invalid", detail=f"{digest} is unknown to registry")
                if present[digest] != size:
                    return oci_error(
                        400, "MANIFEST_INVALID", f"{digest} has {present[digest]} bytes, not {size}"
                    )
        return None

    def _refuse_manifest(
        self, held: HeldRepository, reference: str, digest: Digest, document: dict[str, object]
    ) -> Answer | None:
        manners = self._manners
        layers = document.get("layers")
        if manners.max_layers and isinstance(layers, list) and len(layers) > manners.max_layers:
            return oci_error(405, "UNSUPPORTED", "Limit on number of layers per image exceeded.")
        if manners.refuses_artifact_type and document.get("artifactType"):
            detail = f"unknown media type: {document['artifactType']}"
            return oci_error(400, "MANIFEST_INVALID", "manifest invalid", detail=detail)
        if manners.immutable_tag and held.tags.get(self._store.stored(reference), digest) != digest:
            return oci_error(*manners.immutable_tag, f"tag {reference} is immutable")
        return None

    def _list_tags(self, held: HeldRepository, name: str, query: Mapping[str, str]) -> Answer:
        """List in push order: ``last`` is the last tag of the page before."""
        manners = self._manners
        limit, refusal = manners.tags_n_limit or (None, (400, ""))
        if limit is not None and int(query.get("n", "0")) > limit:
            return oci_error(*refusal, f"n is over {limit}")
        tags = list(held.tags)
        size = min(int(query.get("n", _TAGS_ON_A_PAGE)), manners.tags_page_max)
        last = query.get("last")
        start = 0 if not last else tags.index(last) + 1 if last in tags else len(tags)
        page: list[str | None] = [*tags[start : start + size]]
        headers = {}
        if page and (start + size < len(tags) or manners.link == "always"):
            path, following = f"/v2/{name}/tags/list", f"last={quote(str(page[-1]))}&n={size}"
            elsewhere = f"https://127.0.0.1:443/v2/{name.partition('/')[2]}/tags/list"
            headers["Link"] = {
                "bare": f"{path}?{following}; rel=next",
                "elsewhere": f'<{elsewhere}?{following}>; rel="next"',
            }.get(manners.link, f'<{path}?{following}>; rel="next"')
        if manners.has_null_tag:
            page.insert(0, None)
        if manners.has_digest_tags:
            page += map(str, held.manifests)
        return json_answer(200, {"name": name, "tags": page}, headers)

    def _get_blob(self, held: HeldRepository, target: Target, storage_host: str, range_header: str) -> Answer:
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
        path = self._store.blob_path(digest)
        if self._manners.serves_ranges and not is_head:
            return blob_answer(path, headers, range_header, open_ranges="serve")
        return Answer(200, headers, FilePart(path, 0, held.blobs[digest]))
