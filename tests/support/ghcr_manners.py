"""The settings of the GHCR double: each default is GHCR's own manner, in the strictest reading."""

from dataclasses import dataclass
from typing import Literal

MIB = 1024 * 1024


@dataclass(kw_only=True, eq=False)
class Manners:
    """May be changed while the double runs; holds for the next request.

    Attributes:
        token: a GitHub token that may read, write and delete; any user name goes with it.
        read_token: one that may only read.
        private: whether anonymous clients are refused; GitHub packages start so.
        token_seconds: lifetime of a registry token.
        tells_token_seconds: whether the answer tells that; GHCR's does not.
        url_seconds: lifetime of a signed storage URL.
        blob_head_status: 307 sends the HEAD of a blob to the storage too, where it is refused.
        blob_get_redirects: False answers a blob GET at the registry itself.
        open_ranges: what the storage does with ``bytes=N-``: all of it (200), as asked (206), or 416.
        accept_ranges: whether blob answers carry ``Accept-Ranges: bytes``.
        strict_accept: whether a manifest GET has to list the manifest's own type in Accept, else 404.
        relative_location: whether the Location of uploads and manifests leaves out the origin.
        check_manifests: whether a pushed manifest's blobs and children have to exist.
        manifest_limit: bytes from which on a manifest gets 500.
        patch_limit: most bytes of a PATCH that has a Content-Range.
        blob_limit: bytes above which a blob is refused, before it is read, by 413 SIZE_INVALID.
        quota: bytes of blobs that a repository may hold; what goes beyond gets 403 DENIED with GitHub's words
            about billing. None: no limit.
        is_linked_elsewhere: whether another GitHub repository owns the packages: pushes get 403 DENIED, in
            GHCR's words.
        tags_page: tags on a page that nobody gave a size.
        tags_page_max: largest page of tags.
        deletes: whether OCI DELETE of a manifest works, as at other registries; GHCR answers 405.
        owner_kind: what kind of account owns all packages; the REST API's other one answers 404.
        lag_answers: how many reads after a push get 404.
        lag_seconds: how long after a push reads get 404.
        latency: seconds before each answer.
        bandwidth: bytes a second of each connection, for bodies in both directions; None: no limit.
    """

    token: str = "ghp_double"
    read_token: str = "ghp_double_read"
    private: bool = True
    token_seconds: float = 300
    tells_token_seconds: bool = False
    url_seconds: float = 300
    blob_head_status: Literal[200, 307] = 200
    blob_get_redirects: bool = True
    open_ranges: Literal["ignore", "serve", "refuse"] = "ignore"
    accept_ranges: bool = False
    strict_accept: bool = True
    relative_location: bool = True
    check_manifests: bool = True
    manifest_limit: int = 4 * MIB
    patch_limit: int = 4 * MIB
    blob_limit: int = 10 * 10**9
    quota: int | None = None
    is_linked_elsewhere: bool = False
    tags_page: int = 100
    tags_page_max: int = 10_000
    deletes: bool = False
    owner_kind: Literal["user", "org"] = "user"
    lag_answers: int = 0
    lag_seconds: float = 0
    latency: float = 0
    bandwidth: int | None = None
