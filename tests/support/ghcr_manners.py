"""How the double of a registry behaves: GHCR's manners unless told otherwise, and those of other registries.

Sources: the registries' own code, their issue threads and vendors' pages.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Refusal: TypeAlias = tuple[int, str]
"""Status and OCI code of an error."""


@dataclass(kw_only=True, eq=False)
class Manners:
    """May be changed while the double runs; holds for the next request.

    Attributes:
        token: a GitHub token that may read, write and delete; any user name goes with it.
        read_token: one that may only read.
        private: whether anonymous clients are refused; GitHub packages start so.
        public: names of repositories that they may read all the same.
        anonymous_status: what a request without Authorization gets, where it is refused; only 401 carries a
            challenge, and ``/v2/`` always answers 401.
        service: what a challenge names.
        token_path: of the token service.
        is_basic: whether the password itself goes with each request, without a token service.
        wrong_password_status: what a password that is wrong, or has expired, gets where ``is_basic``; ECR
            says it with 403 DENIED.
        token_seconds: lifetime of a registry token.
        tells_token_seconds: whether the answer tells that; GHCR's does not.
        refuses_delete_scope: whether the token service answers 400 to a scope with ``delete``.
        delete_right: what a token has to allow for DELETE.
        name_parts: of a repository; others get 401. None: any number.
        refuses_doubled: whether ``--`` and ``__`` in a repository's name get 400 NAME_INVALID.
        blob_head_status: 307 sends the HEAD of a blob to the storage too, where it is refused.
        blob_get_redirects: False answers a blob GET at the registry itself.
        serves_ranges: whether the registry itself serves ranges of blobs; else it sends all of it (200).
        open_ranges: what the storage does with ``bytes=N-``: all of it (200), as asked (206), or 416.
        relative_location: whether the Location of uploads and manifests leaves out the origin.
        origin: what a Location that is not relative begins with; empty: the double's own address.
        blob_limit: bytes above which a blob is refused, before it is read, by 413 SIZE_INVALID.
        body_limit: bytes above which any request's body is refused by a 413 of something in front.
        chunk_range: least and most bytes of a chunk but the last, told when an upload is opened.
        needs_length: whether a PATCH without Content-Length gets 400 CONTENT_LENGTH_INVALID.
        has_states: whether an upload continues at the latest Location only.
        quota: bytes of blobs that a repository may hold; what goes beyond gets 403 DENIED with GitHub's words
            about billing. None: no limit.
        is_quota_silent: whether that 403 has no body.
        is_linked_elsewhere: whether another GitHub repository owns the packages: pushes get 403 DENIED, in
            GHCR's words.
        folds_tags: whether tags are stored in lower case, and found in any.
        tags_page_max: largest page of tags.
        tags_n_limit: what ``n`` may be at most, and the refusal of more.
        has_null_tag: whether every page of tags has a null.
        has_digest_tags: whether the list of tags has digests.
        link: the next page's Link: as the specification has it; without angle brackets; with another path
            and origin; or also on the last page, as an empty one follows.
        max_layers: of a manifest; more get 405 UNSUPPORTED.
        refuses_artifact_type: whether an artifactType gets 400 MANIFEST_INVALID, told in ``detail``.
        missing_blob: how a manifest is refused that names a missing blob.
        missing_child: how an index is refused that lists a missing manifest.
        immutable_tag: how an existing tag is refused for another manifest, if it is.
        drops_overwritten: whether the manifest that a tag pointed at goes when the tag is moved.
        deletes: whether OCI DELETE of a manifest works, as at other registries; GHCR answers 405.
        deletes_tags: whether DELETE of a tag takes only the tag; else it gets 400 DIGEST_INVALID.
        still_tagged: how DELETE of a manifest with a tag is refused, if it is.
        still_referenced: how DELETE of a manifest that an index lists is refused, if it is.
        owner_kind: what kind of account owns all packages; the REST API's other one answers 404.
        lag_answers: how many reads after a push get 404.
        latency: seconds before each answer.
        bandwidth: bytes a second of each connection, for bodies in both directions; None: no limit.
    """

    token: str = "ghp_double"
    read_token: str = "ghp_double_read"
    private: bool = True
    public: frozenset[str] = frozenset()
    anonymous_status: Literal[401, 403, 404] = 401
    service: str = "ghcr.io"
    token_path: Literal["/token", "/jwt/auth"] = "/token"
    is_basic: bool = False
    wrong_password_status: Literal[401, 403] = 401
    token_seconds: float = 300
    tells_token_seconds: bool = False
    refuses_delete_scope: bool = False
    delete_right: Literal["pull", "push", "delete"] = "pull"  # Debian's docker-registry checks no other
    name_parts: int | None = None
    refuses_doubled: bool = False
    blob_head_status: Literal[200, 307] = 200
    blob_get_redirects: bool = True
    serves_ranges: bool = False
    open_ranges: Literal["ignore", "serve", "refuse"] = "ignore"
    relative_location: bool = True
    origin: str = ""
    blob_limit: int = 10 * 10**9
    body_limit: int | None = None
    chunk_range: tuple[int, int] | None = None
    needs_length: bool = False
    has_states: bool = False
    quota: int | None = None
    is_quota_silent: bool = False
    is_linked_elsewhere: bool = False
    folds_tags: bool = False
    tags_page_max: int = 10_000
    tags_n_limit: tuple[int, Refusal] | None = None
    has_null_tag: bool = False
    has_digest_tags: bool = False
    link: Literal["brackets", "bare", "elsewhere", "always"] = "brackets"
    max_layers: int | None = None
    refuses_artifact_type: bool = False
    missing_blob: Refusal = (400, "MANIFEST_BLOB_UNKNOWN")
    missing_child: Refusal = (400, "MANIFEST_UNKNOWN")
    immutable_tag: Refusal | None = None
    drops_overwritten: bool = False
    deletes: bool = False
    deletes_tags: bool = False
    still_tagged: Refusal | None = None
    still_referenced: Refusal | None = None
    owner_kind: Literal["user", "org"] = "user"
    lag_answers: int = 0
    latency: float = 0
    bandwidth: int | None = None


_MB: Final = 10**6

PERSONAS: Final[dict[str, Manners]] = {
    "docker-hub": Manners(
        service="registry.docker.io",
        name_parts=2,
        deletes=True,
        deletes_tags=True,
        still_tagged=(403, "DENIED"),
        still_referenced=(403, "DENIED"),
    ),
    "quay": Manners(
        tags_page_max=100,
        refuses_delete_scope=True,
        delete_right="push",
        missing_blob=(400, "MANIFEST_INVALID"),
        blob_get_redirects=False,
        deletes=True,
    ),
    "quay-2024": Manners(
        tags_n_limit=(100, (413, "TOO_MANY_TAGS_REQUESTED")),
        tags_page_max=50,
        refuses_delete_scope=True,
        delete_right="push",
        missing_blob=(400, "MANIFEST_INVALID"),
        deletes=True,
    ),
    "harbor": Manners(
        service="harbor-registry",
        delete_right="delete",
        blob_get_redirects=False,
        serves_ranges=True,
        has_states=True,
        deletes=True,
        still_referenced=(412, "VIOLATE_FOREIGN_KEY_CONSTRAINT"),
    ),
    "gitlab": Manners(
        service="container_registry",
        token_path="/jwt/auth",
        refuses_artifact_type=True,
        delete_right="delete",
        deletes=True,
        still_referenced=(409, "MANIFEST_REFERENCED"),
    ),
    "ecr": Manners(
        service="ecr.amazonaws.com",
        is_basic=True,
        wrong_password_status=403,
        tags_n_limit=(1000, (405, "UNSUPPORTED")),
        max_layers=500,
        relative_location=False,
        deletes=True,
        still_referenced=(400, "UNSUPPORTED"),
    ),
    "ecr-public": Manners(relative_location=False, tags_n_limit=(1000, (405, "UNSUPPORTED")), deletes=True),
    "google": Manners(
        service="europe-docker.pkg.dev",
        deletes=True,
        deletes_tags=True,
        still_tagged=(400, "GOOGLE_MANIFEST_DANGLING_TAG"),
        still_referenced=(400, "GOOGLE_MANIFEST_DANGLING_PARENT_IMAGE"),
    ),
    "azure": Manners(
        tags_page_max=1000,
        body_limit=20 * _MB,
        needs_length=True,
        has_states=True,
        delete_right="delete",
        deletes=True,
    ),
    "nexus": Manners(
        is_basic=True,
        has_null_tag=True,
        relative_location=False,
        blob_get_redirects=False,
        serves_ranges=True,
        deletes=True,
    ),
    "artifactory": Manners(
        tags_page_max=1000,
        link="elsewhere",
        has_digest_tags=True,
        relative_location=False,
        blob_get_redirects=False,
        serves_ranges=True,
        deletes=True,
    ),
    "r2": Manners(
        is_basic=True,
        tags_n_limit=(1000, (500, "INTERNAL_ERROR")),
        link="bare",
        body_limit=100 * _MB,
        chunk_range=(5 * _MB, 100 * _MB),
        has_states=True,
        blob_get_redirects=False,
        deletes=True,
    ),
    "digitalocean": Manners(deletes=True),
    "scaleway": Manners(deletes=True),
    "forgejo": Manners(
        service="container_registry",
        folds_tags=True,
        link="always",
        refuses_doubled=True,
        blob_get_redirects=False,
        serves_ranges=True,
        missing_child=(404, "MANIFEST_BLOB_UNKNOWN"),
        drops_overwritten=True,
        is_quota_silent=True,
        deletes=True,
    ),
    "gitea": Manners(
        service="container_registry",
        folds_tags=True,
        link="always",
        refuses_doubled=True,
        blob_get_redirects=False,
        missing_child=(404, "MANIFEST_BLOB_UNKNOWN"),
        drops_overwritten=True,
        deletes=True,
    ),
}
"""Each registry as far as it is known; nothing here was seen live."""
