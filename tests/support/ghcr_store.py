"""What the double of GHCR holds: blobs in a folder, manifests, tags and package versions in memory."""

import base64
import hashlib
import hmac
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import RLock
from typing import Literal
from urllib.parse import parse_qsl, quote, urlsplit

from aiohttp import BasicAuth

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_wire import Answer, json_answer, oci_error

_URL_SECONDS = 300.0


@dataclass(kw_only=True, eq=False)
class Manners:
    """May be changed while the double runs; holds for the next request.

    Attributes:
        token: a GitHub token that may read, write and delete; any user name goes with it.
        read_token: one that may only read.
        private: whether anonymous clients are refused; GitHub packages start so.
        public: names of repositories that anonymous clients may read all the same.
        token_seconds: lifetime of a registry token.
        tells_token_seconds: whether the answer tells that; GHCR's does not.
        blob_head_status: 307 sends the HEAD of a blob to the storage too, where it is refused.
        blob_get_redirects: False answers a blob GET at the registry itself.
        open_ranges: what the storage does with ``bytes=N-``: all of it (200), as asked (206), or 416.
        relative_location: whether the Location of uploads and manifests leaves out the origin.
        blob_limit: bytes above which a blob is refused, before it is read, by 413 SIZE_INVALID.
        quota: bytes of blobs that a repository may hold; what goes beyond gets 403 DENIED with GitHub's words
            about billing. None: no limit.
        is_linked_elsewhere: whether another GitHub repository owns the packages: pushes get 403 DENIED, in
            GHCR's words.
        tags_page_max: largest page of tags.
        deletes: whether OCI DELETE of a manifest works, as at other registries; GHCR answers 405.
        owner_kind: what kind of account owns all packages; the REST API's other one answers 404.
        lag_answers: how many reads after a push get 404.
        latency: seconds before each answer.
        bandwidth: bytes a second of each connection, for bodies in both directions; None: no limit.
    """

    token: str = "ghp_double"
    read_token: str = "ghp_double_read"
    private: bool = True
    public: frozenset[str] = frozenset()
    token_seconds: float = 300
    tells_token_seconds: bool = False
    blob_head_status: Literal[200, 307] = 200
    blob_get_redirects: bool = True
    open_ranges: Literal["ignore", "serve", "refuse"] = "ignore"
    relative_location: bool = True
    blob_limit: int = 10 * 10**9
    quota: int | None = None
    is_linked_elsewhere: bool = False
    tags_page_max: int = 10_000
    deletes: bool = False
    owner_kind: Literal["user", "org"] = "user"
    lag_answers: int = 0
    latency: float = 0
    bandwidth: int | None = None


@dataclass(frozen=True, slots=True)
class HeldManifest:
    """A manifest or image index, which is one version of the package too.

    Attributes:
        pushed: seconds since the epoch.
    """

    version: int
    digest: Digest
    content: bytes
    media_type: str
    pushed: float

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """Digest and size of config and layers."""
        document = json.loads(self.content)
        for descriptor in [document.get("config"), *(document.get("layers") or [])]:
            if descriptor:
                yield Digest.parse(descriptor["digest"]), descriptor["size"]

    def children(self) -> Iterator[tuple[Digest, int]]:
        """Digest and size of an image index's manifests."""
        for descriptor in json.loads(self.content).get("manifests") or []:
            yield Digest.parse(descriptor["digest"]), descriptor["size"]


@dataclass(slots=True)
class HeldRepository:
    """One repository, which is one package.

    Attributes:
        tags: in the order of their first push.
        manifests: in the order of their push.
        is_package: whether there ever was a manifest: blobs alone make no package.
        lags: how many reads still come too early, for each tag and digest.
    """

    blobs: dict[Digest, int] = field(default_factory=dict)
    manifests: dict[Digest, HeldManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    is_package: bool = False
    lags: dict[str, int] = field(default_factory=dict)

    def find(self, tag_or_digest: str) -> HeldManifest | None:
        if ":" not in tag_or_digest:
            tagged = self.tags.get(tag_or_digest)
            return self.manifests.get(tagged) if tagged else None
        return next((held for digest, held in self.manifests.items() if str(digest) == tag_or_digest), None)

    def tags_of(self, digest: Digest) -> list[str]:
        return [tag for tag, tagged in self.tags.items() if tagged == digest]

    def is_lagging(self, key: str) -> bool:
        """Tell whether this read comes too early; counts it."""
        left = self.lags.get(key, 0)
        self.lags[key] = max(0, left - 1)
        return left > 0


class GhcrStore:
    """All repositories; hold ``lock`` over whatever takes more than one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = RLock()
        self._repositories: dict[str, HeldRepository] = {}
        self._versions = count(1001)
        self._uploads = count(1)
        (folder / "blobs").mkdir()

    def blob_path(self, digest: Digest) -> Path:
        return self.folder / "blobs" / digest.hex

    def staging_path(self) -> Path:
        return self.folder / f"upload-{next(self._uploads)}"

    def find(self, name: str) -> HeldRepository | None:
        return self._repositories.get(name)

    def exists(self, name: str) -> bool:
        held = self.find(name)
        return held is not None and held.is_package

    def find_manifest(self, name: str, tag_or_digest: str) -> HeldManifest | None:
        held = self.find(name)
        return held.find(tag_or_digest) if held else None

    def get_or_make(self, name: str) -> HeldRepository:
        with self.lock:
            return self._repositories.setdefault(name, HeldRepository())

    def adopt_blob(self, name: str, digest: Digest, staged: Path) -> None:
        """Move a whole upload into the repository."""
        with self.lock:
            size = staged.stat().st_size
            staged.replace(self.blob_path(digest))
            self.get_or_make(name).blobs[digest] = size

    def put_blob(self, name: str, digest: Digest, content: bytes | Path) -> None:
        staged = self.staging_path()
        if isinstance(content, bytes):
            staged.write_bytes(content)
        else:
            shutil.copyfile(content, staged)
        self.adopt_blob(name, digest, staged)

    def put_manifest(
        self, name: str, tag_or_digest: str | None, content: bytes, media_type: str
    ) -> HeldManifest:
        digest = Digest.of(content)
        with self.lock:
            held = self.get_or_make(name)
            manifest = held.manifests.get(digest)
            if manifest is None or manifest.media_type != media_type:
                manifest = HeldManifest(next(self._versions), digest, content, media_type, time.time())
                held.manifests[digest] = manifest
                held.is_package = True
            if tag_or_digest is not None and ":" not in tag_or_digest:
                held.tags[tag_or_digest] = digest
            return manifest

    def delete_version(self, name: str, version: int) -> bool:
        """Forget a manifest and its tags; tells whether it was there."""
        with self.lock:
            held = self.get_or_make(name)
            manifest = next((each for each in held.manifests.values() if each.version == version), None)
            if manifest is None:
                return False
            for tag in held.tags_of(manifest.digest):
                del held.tags[tag]
            del held.manifests[manifest.digest]
            return True

    def delete_blob(self, name: str, digest: Digest) -> None:
        with self.lock:
            del self.get_or_make(name).blobs[digest]
            if not any(digest in held.blobs for held in self._repositories.values()):
                self.blob_path(digest).unlink()

    def corrupt_blob(self, digest: Digest, offset: int) -> None:
        """Flip the bits of one byte; a reader of the old bytes keeps them."""
        content = bytearray(self.blob_path(digest).read_bytes())
        content[offset] ^= 0xFF
        staged = self.staging_path()
        staged.write_bytes(content)
        staged.replace(self.blob_path(digest))

    def sweep(self) -> list[Digest]:
        """Drop every blob that no manifest of its repository names."""
        swept = []
        with self.lock:
            for name, held in self._repositories.items():
                named = {digest for manifest in held.manifests.values() for digest, _ in manifest.blobs()}
                for digest in [digest for digest in held.blobs if digest not in named]:
                    self.delete_blob(name, digest)
                    swept.append(digest)
        return swept


SERVICE = "ghcr.io"
_SCOPE = re.compile(r"repository:(?P<name>[^:\s]+):(?P<actions>[a-z*,]+)")
_DENIED = oci_error(403, "DENIED", "requested access to the resource is denied")
_LINKED_ELSEWHERE = oci_error(403, "DENIED", "permission_denied: write_package")


@dataclass(frozen=True, slots=True)
class _Grant:
    rights: Mapping[str, frozenset[str]]
    expires: float
    epoch: int


class TokenService:
    """Issues registry tokens, and checks them."""

    def __init__(self, manners: Manners, store: GhcrStore) -> None:
        self._manners = manners
        self._store = store
        self._grants: dict[str, _Grant] = {}
        self._epoch = 0

    @property
    def issued(self) -> frozenset[str]:
        """Every token so far."""
        return frozenset(self._grants)

    def expire(self) -> None:
        self._epoch += 1

    def rights_of(self, token: str) -> frozenset[str]:
        """What a GitHub token may do; nothing where it is unknown."""
        if token == self._manners.token:
            return frozenset({"pull", "push", "delete"})
        return frozenset({"pull"} if token == self._manners.read_token else ())

    def answer(self, authorization: str | None, scopes: list[str]) -> Answer:
        """Answer a request for a token: unknown credentials are refused even where none are needed."""
        wanted = {
            match["name"]: frozenset(match["actions"].split(","))
            for scope in " ".join(scopes).split()
            if (match := _SCOPE.fullmatch(scope))
        }
        if authorization is None:
            is_public = not self._manners.private or wanted.keys() <= self._manners.public
            if not wanted or not is_public or not all(self._store.exists(name) for name in wanted):
                return _DENIED
            rights = frozenset({"pull"})
        else:
            rights = self.rights_of(BasicAuth.decode(authorization).password)
            if not rights:
                return _DENIED
        token = secrets.token_urlsafe(24)
        granted = {name: actions & rights for name, actions in wanted.items()}
        self._grants[token] = _Grant(granted, time.monotonic() + self._manners.token_seconds, self._epoch)
        lifetime = {"expires_in": self._manners.token_seconds} if self._manners.tells_token_seconds else {}
        return json_answer(200, {"token": token, **lifetime})

    def refusal(self, host: str, authorization: str | None, name: str | None, action: str) -> Answer | None:
        """Check a request to the registry; None lets it pass. Without a name any good token will do."""
        scheme, _, token = (authorization or "").partition(" ")
        grant = self._grants.get(token) if scheme.lower() == "bearer" else None
        if grant is None or grant.epoch != self._epoch or time.monotonic() > grant.expires:
            actions = "pull" if action == "pull" else "pull,push"
            scope = f"repository:{name}:{actions}" if name else "repository:user/image:pull"
            challenge = f'Bearer realm="http://{host}/token",service="{SERVICE}",scope="{scope}"'
            return oci_error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        if name and action not in grant.rights.get(name, frozenset()):
            return _DENIED
        if action == "push" and self._manners.is_linked_elsewhere:
            return _LINKED_ELSEWHERE
        return None


class SignedUrls:
    """Makes and checks the URLs under which the storage hands out blobs."""

    def __init__(self, manners: Manners) -> None:
        self._manners = manners
        self._key = secrets.token_bytes(16)
        self._epoch = 0

    def expire(self) -> None:
        self._epoch += 1

    def make(self, storage_host: str, digest: Digest) -> str:
        """Sign a path and a time; the signature always has characters that must stay percent-encoded."""
        expires = f"{time.time() + _URL_SECONDS:.3f}"
        path = f"/ghcr/blobs/{digest}"
        signature = quote(self._signature(path, expires), safe="")
        return f"http://{storage_host}{quote(path)}?se={expires}&sp=r&sig={signature}"

    def check(self, raw_path: str) -> tuple[Digest | None, str]:
        """Read path and query as they were sent; without a digest, the reason is given."""
        url = urlsplit(raw_path)
        query = dict(parse_qsl(url.query))
        path = url.path.replace("%3A", ":")
        expires = query.get("se", "0")
        if not hmac.compare_digest(query.get("sig", "").encode(), self._signature(path, expires).encode()):
            return None, "the signature does not match, or has been revoked"
        if float(expires) < time.time():
            return None, "the signature has expired"
        try:
            return Digest.parse(path.removeprefix("/ghcr/blobs/")), ""
        except FormatError as error:
            return None, str(error)

    def _signature(self, path: str, expires: str) -> str:
        mac = hmac.digest(self._key, f"{path}\n{expires}\n{self._epoch}".encode(), hashlib.sha256)
        return "v+/" + base64.b64encode(mac).decode()
