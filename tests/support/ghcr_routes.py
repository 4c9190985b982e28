"""Which operation a request asks for: the one table of the double's paths."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from tests.support.ghcr_faults import Operation


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
    (re.compile(r"/token"), {"GET": "token"}),
    (re.compile(r"/v2/?"), {"GET": "ping", "HEAD": "ping"}),
    (
        re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)"),
        {"HEAD": "manifest-head", "GET": "manifest-get", "PUT": "manifest-put", "DELETE": "manifest-delete"},
    ),
    (re.compile(r"/v2/(?P<name>.+)/tags/list"), {"GET": "tags"}),
    (re.compile(r"/v2/(?P<name>.+)/blobs/uploads/?"), {"POST": "upload-post"}),
    (
        re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<reference>[^/]+)"),
        {"GET": "upload-get", "PATCH": "upload-patch", "PUT": "upload-put", "DELETE": "upload-delete"},
    ),
    (
        re.compile(r"/v2/(?P<name>.+)/blobs/(?P<reference>[^/]+)"),
        {"HEAD": "blob-head", "GET": "blob-get", "DELETE": "blob-delete"},
    ),
    (re.compile(_PACKAGE), {"GET": "package-get"}),
    (re.compile(_PACKAGE + r"/versions"), {"GET": "package-versions"}),
    (
        re.compile(_PACKAGE + r"/versions/(?P<reference>\d+)"),
        {"GET": "package-version-get", "DELETE": "package-delete"},
    ),
    (re.compile(_PACKAGE + r"/versions/(?P<reference>\d+)/restore"), {"POST": "package-restore"}),
)


def registry_target(method: str, raw_path: str) -> Target:
    """Find the operation; a slash inside a package's name has to be sent as %2F."""
    path = raw_path.partition("?")[0]
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
