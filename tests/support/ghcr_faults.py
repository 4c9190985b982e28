"""Faults on demand, and the record of what was asked."""

import asyncio
import re
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Literal, TypeAlias, get_args
from urllib.parse import unquote

from multidict import CIMultiDict, CIMultiDictProxy

FaultKind: TypeAlias = Literal[
    "cut", "cut_request", "lost", "wrong_byte", "stall", "refuse", "reset", "status", "garbage", "truncated"
]

# fmt: off
Operation: TypeAlias = Literal[
    "token", "ping", "tags", "unknown",
    "manifest-head", "manifest-get", "manifest-put", "manifest-delete",
    "blob-head", "blob-get", "storage-get", "storage-head",
    "upload-post", "upload-get", "upload-patch", "upload-put", "upload-delete",
    "package-versions", "package-version-get", "package-delete",
]
# fmt: on
OPERATIONS: frozenset[str] = frozenset(get_args(Operation))


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request; ``kind`` is explained at ``GhcrDouble.fault``."""

    match: str
    kind: FaultKind
    after: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def fits(self, operation: str, method: str, path: str) -> bool:
        """Compare an operation's name, else search ``METHOD path?query`` for the regular expression."""
        if self.match in OPERATIONS:
            return self.match == operation
        return re.search(self.match, f"{method} {path}") is not None


@dataclass(slots=True)
class _Pending:
    fault: Fault
    skip: int
    times: int | None


class Faults:
    """Faults that wait for their request; the first that fits is taken."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pending: list[_Pending] = []
        self.release_count = 0

    def add(self, fault: Fault, skip: int, times: int | None) -> None:
        with self._lock:
            self._pending.append(_Pending(fault, skip, times))

    def take(self, operation: str, method: str, path: str) -> Fault | None:
        with self._lock:
            for pending in self._pending:
                if not pending.fault.fits(operation, method, path):
                    continue
                if pending.skip:
                    pending.skip -= 1
                    continue
                if pending.times is not None:
                    pending.times -= 1
                    if not pending.times:
                        self._pending.remove(pending)
                return pending.fault
        return None

    def clear(self) -> None:
        with self._lock:
            self._pending.clear()
        self.release()

    def release(self) -> None:
        """Let stalled answers go on."""
        self.release_count += 1

    async def stall(self, transport: asyncio.Transport | None, count: int) -> None:
        """Wait until there was a further release than so many, or until the connection is gone."""
        while self.release_count == count and transport is not None and not transport.is_closing():  # noqa: ASYNC110  a transport's end is no event, and releases come from other threads
            await asyncio.sleep(0.02)


@dataclass(slots=True)
class RequestRecord:
    """One request as the double saw it.

    Attributes:
        operation: such as ``manifest-get``.
        method: of HTTP.
        path: as sent, with the query.
        headers: of the request; names are compared without case.
        status: what was answered; 0 while nothing is.
        bytes_sent: of the answer's body, so far.
        bytes_received: of the request's body, so far.
    """

    operation: Operation
    method: str
    path: str
    headers: CIMultiDictProxy[str]
    status: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Records:
    """Every request since the last reset, in order of arrival."""

    def __init__(self) -> None:
        self._records: list[RequestRecord] = []

    def add(
        self, operation: Operation, method: str, path: str, headers: CIMultiDictProxy[str]
    ) -> RequestRecord:
        record = RequestRecord(operation, method, path, CIMultiDictProxy(CIMultiDict(headers)))
        self._records.append(record)
        return record

    def snapshot(self) -> list[RequestRecord]:
        return [replace(record) for record in list(self._records)]

    def reset(self) -> None:
        self._records = []


@dataclass(frozen=True, slots=True)
class Target:
    """An operation and what it is about.

    Attributes:
        name: of the repository, or of the package with its owner.
        reference: a tag, digest, upload or version; empty where there is none.
        owner_kind: ``users`` or ``orgs`` in the REST API.
        is_storage: whether the storage was asked, not the registry.
    """

    operation: Operation
    name: str = ""
    reference: str = ""
    owner_kind: str = ""
    is_storage: bool = False


_PACKAGE = r"/api/(?P<kind>users|orgs)/(?P<owner>[^/]+)/packages/container/(?P<package>[^/]+)"
_TABLE: tuple[tuple[re.Pattern[str], dict[str, Operation]], ...] = (
    (re.compile(r"/token|/jwt/auth"), {"GET": "token"}),
    (re.compile(r"/v2/?"), {"GET": "ping", "HEAD": "ping"}),
    (
        re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)"),
        {"HEAD": "manifest-head", "GET": "manifest-get", "PUT": "manifest-put", "DELETE": "manifest-delete"},
    ),
    (re.compile(r"/v2/(?P<name>.+)/tags/list"), {"GET": "tags"}),
    (re.compile(r"/v2/(?P<name>.+)/blobs/uploads/?"), {"POST": "upload-post"}),
    (
        re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<reference>[^/]+)"),
        {
            "GET": "upload-get",
            "PATCH": "upload-patch",
            "PUT": "upload-put",
            "DELETE": "upload-delete",
        },
    ),
    (
        re.compile(r"/v2/(?P<name>.+)/blobs/(?P<reference>[^/]+)"),
        {"HEAD": "blob-head", "GET": "blob-get"},
    ),
    (re.compile(_PACKAGE + r"/versions"), {"GET": "package-versions"}),
    (
        re.compile(_PACKAGE + r"/versions/(?P<reference>\d+)"),
        {"GET": "package-version-get", "DELETE": "package-delete"},
    ),
)


def registry_target(method: str, raw_path: str) -> Target:
    """Find the operation; a slash inside a package's name has to be sent as %2F."""
    # A proxy is sent the whole address.
    path = re.sub("^http://[^/]+", "", raw_path.partition("?")[0])
    for pattern, operations in _TABLE:
        if (match := pattern.fullmatch(path)) and method in operations:
            parts = match.groupdict()
            name = parts.get("name") or ""
            if "package" in parts:
                name = f"{parts['owner']}/{unquote(parts['package'])}"
            reference = unquote(parts.get("reference") or "")
            return Target(operations[method], unquote(name), reference, parts.get("kind") or "")
    return Target("unknown")


def storage_target(method: str) -> Target:
    """Find the operation at the storage's own origin."""
    operations: dict[str, Operation] = {"GET": "storage-get", "HEAD": "storage-head"}
    return Target(operations.get(method, "unknown"), is_storage=True)
