"""What may go wrong with a request to a registry, and how the double of GHCR plays it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.support.ghcr import GhcrDouble

_STORAGE_REFUSAL: Final = b"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code></Error>"
_STORAGE_ABSENCE: Final = b"<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>"
_PAGE: Final = b"<html><body>404 Not Found</body></html>\n"
_SECONDARY_LIMIT: Final = b'{"message": "You have exceeded a secondary rate limit."}'
_JSON: Final = {"Content-Type": "application/json"}
_XML: Final = {"Content-Type": "application/xml"}
_OTHER_DIGEST: Final = f"sha256:{'0' * 64}"
ANYTHING: Final = "anything"
REFUSED: Final = "refused"  # nobody listens; it is ANYTHING that suffers, and nothing alone
_GOOD_STATUS: Final = {"manifest-head": 200, "manifest-put": 201}


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of request.

    Attributes:
        name: as the double calls it.
        absence: what it is answered where the thing is not there, as an OCI code; empty for GitHub's API,
            whose error documents have no code.
        answers: whether a good answer has a body.
        sends: whether the request has one.
    """

    name: str
    absence: str
    answers: bool = False
    sends: bool = False

    @property
    def is_head(self) -> bool:
        return self.name.endswith("-head")


OPERATIONS: Final = {
    each.name: each
    for each in (
        Operation("token", "NAME_UNKNOWN", answers=True),
        Operation("manifest-head", "MANIFEST_UNKNOWN"),
        Operation("manifest-get", "MANIFEST_UNKNOWN", answers=True),
        Operation("manifest-put", "NAME_UNKNOWN", sends=True),
        Operation("tags", "NAME_UNKNOWN", answers=True),
        Operation("blob-head", "BLOB_UNKNOWN"),
        Operation("blob-get", "BLOB_UNKNOWN"),
        Operation("upload-post", "NAME_UNKNOWN"),
        Operation("upload-put", "BLOB_UPLOAD_UNKNOWN", sends=True),
        Operation("storage-get", "BLOB_UNKNOWN", answers=True),
        Operation("manifest-delete", "MANIFEST_UNKNOWN"),
        Operation("package-versions", "", answers=True),
        Operation("package-delete", ""),
        Operation(ANYTHING, ""),
    )
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a fault strikes.

    Attributes:
        operation: what is asked.
        after: bytes of a body that still come through.
        times: requests that are hit; None for all.
    """

    operation: Operation
    after: int
    times: int | None


Play = Callable[[GhcrDouble, Target], None]


def _error(code: str, message: str) -> bytes:
    return json.dumps(
        {"errors": [{"code": code, "message": message}]} if code else {"message": message}
    ).encode()


def _breaking(kind: str) -> Play:
    def play(ghcr: GhcrDouble, target: Target) -> None:
        after = target.after if OPERATIONS[target.operation.name].answers or kind == "cut_request" else 0
        ghcr.fault(target.operation.name, kind, after=after, times=target.times)  # type: ignore[arg-type]  # one of its kinds

    return play


def _answer(
    ghcr: GhcrDouble, target: Target, status: int, headers: dict[str, str], body: bytes = b""
) -> None:
    ghcr.fault(target.operation.name, "status", times=target.times, status=status, headers=headers, body=body)


def _answering(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Play:
    return lambda ghcr, target: _answer(ghcr, target, status, headers or {}, body)


def _unauthorized(ghcr: GhcrDouble, target: Target) -> None:
    challenge = (
        f'Bearer realm="http://{ghcr.host}/token",service="ghcr.io",scope="repository:user/image:pull"'
    )
    is_registry = target.operation.name not in {"token", "storage-get"} and target.operation.absence
    headers = {**_JSON, "WWW-Authenticate": challenge} if is_registry else _JSON
    body = _error("UNAUTHORIZED" if target.operation.absence else "", "authentication required")
    _answer(ghcr, target, 401, headers, body)


def _denied(ghcr: GhcrDouble, target: Target) -> None:
    if target.operation.name == "storage-get":
        _answer(ghcr, target, 403, _XML, _STORAGE_REFUSAL)
    else:
        ghcr.deny(target.operation.name, "requested access to the resource is denied", times=target.times)


def _absent(ghcr: GhcrDouble, target: Target) -> None:
    if target.operation.name == "storage-get":
        _answer(ghcr, target, 404, _XML, _STORAGE_ABSENCE)
    else:
        _answer(ghcr, target, 404, _JSON, _error(target.operation.absence, "Not Found"))


def _wrong_digest(ghcr: GhcrDouble, target: Target) -> None:
    name = target.operation.name
    if name == "upload-put":
        _answer(ghcr, target, 400, {}, _error("DIGEST_INVALID", "the bytes have another digest"))
    elif name in _GOOD_STATUS:
        _answer(ghcr, target, _GOOD_STATUS[name], {"Docker-Content-Digest": _OTHER_DIGEST})
    else:
        ghcr.fault(name, "wrong_byte", after=target.after, times=target.times)


def _lagging(ghcr: GhcrDouble, target: Target) -> None:
    code = "MANIFEST_BLOB_UNKNOWN" if target.operation.name == "manifest-put" else target.operation.absence
    # What was pushed long ago is known: only what is asked for by its digest can be new here.
    pattern = {
        "manifest-get": r"^GET /v2/.*/manifests/sha256:",
        "manifest-put": r"^PUT /v2/.*/manifests/segment-",
        "manifest-head": r"^HEAD /v2/.*/manifests/",
    }.get(target.operation.name, target.operation.name)
    body = _error(code, "not yet known")
    ghcr.fault(pattern, "status", times=target.times, status=404, headers=_JSON, body=body)


FAULTS: Final[dict[str, Play]] = {
    "closed": _breaking("refuse"),
    "reset": _breaking("reset"),
    "cut": _breaking("cut"),
    "cut request": _breaking("cut_request"),
    "lost answer": _breaking("lost"),
    "stall": _breaking("stall"),
    "401": _unauthorized,
    "403 denied": _denied,
    "403 secondary": lambda ghcr, target: ghcr.secondary_limit(target.operation.name, times=target.times),
    "403 secondary, 1 s": _answering(403, {"Retry-After": "1"}, _SECONDARY_LIMIT),
    "404 unknown": _absent,
    "404 page": _answering(404, {"Content-Type": "text/html"}, _PAGE),
    "408": _answering(408),
    "416": _answering(416),
    "429 header": _answering(429, {"Retry-After": "1"}),
    "429 body": lambda ghcr, target: ghcr.rate_limit(target.operation.name, times=target.times),
    "500": _answering(500),
    "502": _answering(502),
    "503": _answering(503),
    "wrong digest": _wrong_digest,
    "truncated": _breaking("truncated"),
    "garbage": _breaking("garbage"),
    "expired URL": _answering(403, _XML, _STORAGE_REFUSAL),
    "lag": _lagging,
}
"""In the order of the table."""

_LAGGING: Final = frozenset({"manifest-head", "manifest-get", "manifest-put", "blob-head", "blob-get"})
_DIGESTS: Final = frozenset({"manifest-head", "manifest-get", "manifest-put", "upload-put", "storage-get"})


def can_happen(operation: Operation, fault: str) -> bool:
    """Tell whether a fault can happen to an operation; the table's head says why not."""
    needs = {
        "cut": operation.answers,
        "truncated": operation.answers,
        "cut request": operation.sends,
        "garbage": not operation.is_head,
        "wrong digest": operation.name in _DIGESTS,
        "expired URL": operation.name == "storage-get",
        "lag": operation.name in _LAGGING,
    }
    return needs.get(fault, True)
