"""What happens to a request at the double of GHCR: record, fault, check, answer."""

import asyncio
import traceback
from contextlib import aclosing

from aiohttp import web

from tests.support.ghcr_access import SignedUrls, TokenService
from tests.support.ghcr_faults import Fault, Faults, Records, RequestRecord
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_packages import Packages
from tests.support.ghcr_registry import NAME, Asked, Registry
from tests.support.ghcr_routes import Target, registry_target, storage_target
from tests.support.ghcr_storage import Storage
from tests.support.ghcr_store import GhcrStore
from tests.support.ghcr_uploads import CutRequestError, receive
from tests.support.ghcr_wire import Answer, disconnect, oci_error, send


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
            answer = refusal or _asked_status(fault) or await self._decide(request, target, record, fault)
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
        if target.name and not NAME.fullmatch(target.name):
            return oci_error(400, "NAME_INVALID", "repository name must be lowercase")
        authorization = request.headers.get("Authorization")
        refusal = self.tokens.refusal(self.host, authorization, target.name or None, _needed_right(target))
        if refusal:
            return refusal
        cut_after = fault.after if fault and fault.kind == "cut_request" else None
        async with aclosing(receive(request, record, self._manners.bandwidth, cut_after)) as chunks:
            asked = Asked(
                target=target,
                query=request.query,
                accept=",".join(request.headers.getall("Accept", [])),
                content_type=request.headers.get("Content-Type", ""),
                content_range=request.headers.get("Content-Range"),
                size=request.content_length or 0,
                chunks=chunks,
                host=self.host,
            )
            return await self.registry.answer(asked, self.storage_host)


def _asked_status(fault: Fault | None) -> Answer | None:
    if fault and fault.kind == "status":
        return Answer(fault.status, fault.headers, fault.body)
    return None


def _needed_right(target: Target) -> str:
    """Tell what a token has to allow; deletion needs no more: Debian's docker-registry checks that right."""
    return "push" if target.operation.startswith("upload-") or target.operation == "manifest-put" else "pull"
