"""What happens to a request at the double of GHCR: record, fault, check, answer."""

import asyncio
import traceback
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime

from aiohttp import web

from tests.support.ghcr_faults import (
    Fault,
    Faults,
    Records,
    RequestRecord,
    Target,
    registry_target,
    storage_target,
)
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_registry import NAME, Asked, Registry
from tests.support.ghcr_store import GhcrStore, HeldManifest, HeldRepository
from tests.support.ghcr_tokens import SignedUrls, TokenService
from tests.support.ghcr_uploads import CutRequestError, receive
from tests.support.ghcr_wire import Answer, blob_answer, disconnect, json_answer, oci_error, send

_MOST_PER_PAGE = 100
_NOT_FOUND = json_answer(404, {"message": "Not Found", "status": "404"})


class Packages:
    """Versions of a package: one for each manifest, newest first, untagged ones among them."""

    def __init__(self, manners: Manners, store: GhcrStore, tokens: TokenService) -> None:
        self._manners = manners
        self._store = store
        self._tokens = tokens

    def answer(
        self, target: Target, api_url: str, authorization: str | None, query: Mapping[str, str]
    ) -> Answer:
        refusal = self._refusal(target, authorization)
        if refusal:
            return refusal
        held = self._store.find(target.name)
        if held is None or not held.is_package or target.owner_kind != self._kind:
            return _NOT_FOUND
        if target.operation == "package-versions":
            return self._list(target, held, api_url, query)
        version = int(target.reference)
        if target.operation == "package-version-get":
            found = [manifest for manifest in held.manifests.values() if manifest.version == version]
            return json_answer(200, version_document(held, found[0])) if found else _NOT_FOUND
        return Answer(204) if self._store.delete_version(target.name, version) else _NOT_FOUND

    @property
    def _kind(self) -> str:
        return f"{self._manners.owner_kind}s"

    def _refusal(self, target: Target, authorization: str | None) -> Answer | None:
        scheme, _, token = (authorization or "").partition(" ")
        rights = self._tokens.rights_of(token) if scheme.lower() in {"bearer", "token"} else frozenset()
        if not rights:
            return json_answer(401, {"message": "Bad credentials" if token else "Requires authentication"})
        if target.operation == "package-delete" and "delete" not in rights:
            return json_answer(403, {"message": "Resource not accessible by integration"})
        return None

    def _list(self, target: Target, held: HeldRepository, api_url: str, query: Mapping[str, str]) -> Answer:
        size = min(int(query.get("per_page", "30")), _MOST_PER_PAGE)
        page = max(1, int(query.get("page", "1")))
        manifests = sorted(held.manifests.values(), key=lambda manifest: -manifest.version)
        headers = {}
        if page * size < len(manifests):
            owner, _, name = target.name.partition("/")
            address = f"{api_url}/{self._kind}/{owner}/packages/container/{name.replace('/', '%2F')}/versions"
            headers["Link"] = f'<{address}?per_page={size}&page={page + 1}>; rel="next"'
        shown = manifests[(page - 1) * size : page * size]
        return json_answer(200, [version_document(held, manifest) for manifest in shown], headers)


def version_document(held: HeldRepository, manifest: HeldManifest) -> dict[str, object]:
    """Render one version as the REST API shows it."""
    pushed = datetime.fromtimestamp(manifest.pushed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": manifest.version,
        "name": str(manifest.digest),
        "created_at": pushed,
        "updated_at": pushed,
        "metadata": {"package_type": "container", "container": {"tags": held.tags_of(manifest.digest)}},
    }


class Storage:
    """Answers requests for blobs under signed URLs."""

    def __init__(self, manners: Manners, store: GhcrStore, urls: SignedUrls) -> None:
        self._manners = manners
        self._store = store
        self._urls = urls

    def answer(self, method: str, raw_path: str, range_header: str | None) -> Answer:
        if method != "GET":
            return _refusal(403, "AuthenticationFailed", "the signature does not allow this method")
        digest, reason = self._urls.check(raw_path)
        if digest is None:
            return _refusal(403, "AuthenticationFailed", reason)
        path = self._store.blob_path(digest)
        if not path.exists():
            return _refusal(404, "BlobNotFound", "the specified blob does not exist")
        headers = {"Content-Type": "application/octet-stream"}
        return blob_answer(path, headers, range_header or "", open_ranges=self._manners.open_ranges)


def _refusal(status: int, code: str, message: str) -> Answer:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml", "x-ms-error-code": code}, text.encode())


class Service:
    """The handlers of both origins.

    Attributes:
        host: of the registry; set once it listens.
        storage_host: of the storage; set once it listens.
    """

    def __init__(self, manners: Manners, store: GhcrStore, faults: Faults, violations: list[str]) -> None:
        self.host = self.storage_host = ""
        self.records = Records()
        self.tokens = TokenService(manners, store)
        self.urls = SignedUrls(manners)
        self.registry = Registry(manners, store, self.urls)
        self._manners = manners
        self._faults = faults
        self._violations = violations
        self._storage = Storage(manners, store, self.urls)
        self._packages = Packages(manners, store, self.tokens)

    async def serve_registry(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._serve(request, registry_target(request.method, request.raw_path))

    async def serve_storage(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._serve(request, storage_target(request.method))

    async def _serve(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        record = self.records.add(target.operation, request.method, request.raw_path, request.headers)
        fault = self._faults.take(target.operation, request.method, request.raw_path)
        refusal = self._check_storage(request, target)
        await asyncio.sleep(self._manners.latency)
        if fault and fault.kind in {"refuse", "reset"}:
            return disconnect(request, reset=fault.kind == "reset")
        try:
            asked = fault and fault.kind == "status" and Answer(fault.status, fault.headers, fault.body)
            answer = refusal or asked or await self._decide(request, target, record, fault)
            if fault and fault.kind == "lost":
                return disconnect(request)
            return await send(
                request, record, answer, fault, faults=self._faults, bandwidth=self._manners.bandwidth
            )
        except (CutRequestError, ConnectionError, web.PayloadAccessError):
            return disconnect(request)  # one side has hung up
        except Exception:
            self._violations.append(f"the double itself failed: {traceback.format_exc()}")
            raise

    def _check_storage(self, request: web.BaseRequest, target: Target) -> Answer | None:
        """Refuse credentials at the storage, whatever the settings and faults say."""
        if not target.is_storage or "Authorization" not in request.headers:
            return None
        self._violations.append(f"the storage was sent credentials: {request.method} {request.raw_path}")
        return Answer(400, {"Content-Type": "text/plain"}, b"InvalidAuthenticationInfo")

    async def _decide(
        self, request: web.BaseRequest, target: Target, record: RequestRecord, fault: Fault | None
    ) -> Answer:
        authorization = request.headers.get("Authorization")
        if target.is_storage:
            return self._storage.answer(request.method, request.raw_path, request.headers.get("Range"))
        if target.operation == "token":
            return self.tokens.answer(authorization, request.query.getall("scope", []))
        if target.operation.startswith("package-"):
            return self._packages.answer(target, f"http://{self.host}/api", authorization, request.query)
        if target.operation == "unknown":
            return oci_error(404, "UNSUPPORTED", "no such path")
        return await self._ask_registry(request, target, record, fault)

    async def _ask_registry(
        self, request: web.BaseRequest, target: Target, record: RequestRecord, fault: Fault | None
    ) -> Answer:
        manners = self._manners
        is_doubled = manners.refuses_doubled and ("--" in target.name or "__" in target.name)
        if target.name and (is_doubled or not NAME.fullmatch(target.name)):
            return oci_error(400, "NAME_INVALID", "repository name must be lowercase")
        authorization = request.headers.get("Authorization")
        right = _needed_right(target, manners)
        refusal = self.tokens.refusal(self.host, authorization, target.name or None, right)
        if refusal:
            return refusal
        if manners.body_limit is not None and (request.content_length or 0) > manners.body_limit:
            return Answer(413, {"Content-Type": "text/plain"}, b"too large")  # not from the registry itself
        cut_after = fault.after if fault and fault.kind == "cut_request" else None
        async with aclosing(receive(request, record, self._manners.bandwidth, cut_after)) as chunks:
            asked = Asked(
                target=target,
                query=request.query,
                accept=",".join(request.headers.getall("Accept", [])),
                content_type=request.headers.get("Content-Type", ""),
                content_range=request.headers.get("Content-Range", ""),
                range=request.headers.get("Range", ""),
                size=request.content_length,
                chunks=chunks,
                host=self.host,
            )
            return await self.registry.answer(asked, self.storage_host)


def _needed_right(target: Target, manners: Manners) -> str:
    """Tell what a token has to allow."""
    if target.operation == "manifest-delete":
        return manners.delete_right
    return "push" if target.operation.startswith("upload-") or target.operation == "manifest-put" else "pull"
