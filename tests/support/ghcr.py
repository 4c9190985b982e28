"""A double of GHCR: real servers with its manners, and with faults on demand.

Two origins on two ports, as at GHCR: the registry, and the storage that blob downloads are redirected to. Two
rules cannot be switched off, because what breaks them would break in the field: the storage never sees an
Authorization header (``violations``), and ``sweep`` takes every blob that no manifest names.

    python -m tests.support.ghcr --repository o/n/nix-cache --token T
"""

import argparse
import hashlib
import json
import signal
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_faults import Fault, FaultKind, Faults, RequestRecord
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_service import Service, version_document
from tests.support.ghcr_store import GhcrStore, HeldRepository
from tests.support.server_thread import ServerThread
from tests.support.skopeo import IMAGE_MANIFEST


@dataclass(kw_only=True, eq=False)
class GhcrDouble(Manners):
    """Runs in a thread from ``with GhcrDouble() as ghcr`` on; every setting of Manners is an argument.

    Attributes:
        user: a user name for credentials; GHCR takes any.
        repository: a name that tests may use; nothing is in it.
        violations: what was done that must never be; closing raises AssertionError where there are any.
        faults: what is to go wrong; see ``fault``.
    """

    user: str = "octocat"
    repository: str = "octocat/hello/nix-cache"
    violations: list[str] = field(default_factory=list, init=False)
    faults: Faults = field(default_factory=Faults, init=False)

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ghcr-")
        self._store = GhcrStore(Path(self._folder.name), self)
        self._service = Service(self, self._store, self.faults, self.violations)
        self._servers = ServerThread(self._service.serve_registry, self._service.serve_storage)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()
        if self.violations:
            raise AssertionError("; ".join(self.violations))

    # Where it is

    @property
    def host(self) -> str:
        """The registry, ``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self._servers.ports[0]}"

    @property
    def storage_host(self) -> str:
        """The storage, ``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self._servers.ports[1]}"

    @property
    def api_url(self) -> str:
        """The base of GitHub's REST API, ``http://127.0.0.1:PORT/api``."""
        return f"http://{self.host}/api"

    def behave(self, manners: Manners) -> None:
        """Take over another registry's manners, all of them."""
        for each in fields(Manners):
            setattr(self, each.name, getattr(manners, each.name))

    # Outages, expiry, faults

    def start(self) -> None:
        """Listen, after an outage on the same ports as before."""
        self._servers.start()
        self._service.host, self._service.storage_host = self.host, self.storage_host

    def stop(self) -> None:
        """Play an outage: connections and uploads are aborted, new ones refused; what is stored is kept."""
        self.faults.release()
        self._servers.stop()
        self._service.registry.uploads.close()

    def expire_tokens(self) -> None:
        """Make every registry token issued so far a 401."""
        self._service.tokens.expire()

    def expire_urls(self) -> None:
        """Make every signed storage URL issued so far a 403."""
        self._service.urls.expire()

    def fault(
        self,
        match: str,
        kind: FaultKind,
        *,
        after: int = 0,
        times: int | None = 1,
        skip: int = 0,
        status: int = 500,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Let requests go wrong; faults are tried in the order of these calls.

        - ``cut``: the connection is closed after that many bytes of the answer's body.
        - ``cut_request``: closed after that many bytes of the request's body; nothing comes of it.
        - ``lost``: it happens, but no answer comes.
        - ``wrong_byte``: the byte of the answer's body at that offset is wrong.
        - ``stall``: that many bytes, then nothing until ``release``, ``clear_faults`` or the client hangs up;
          an answer without a body does not even begin.
        - ``refuse``: closed at once; ``reset``: the same with RST. Nothing happens.
        - ``status``: that status, headers and body, and nothing happens.
        - ``garbage``: 200 with junk.
        - ``truncated``: only that many bytes of body, in right framing.

        Args:
            match: an operation's name, such as ``blob-get``, or a regular expression searched in
                ``METHOD path?query``.
            kind: see above.
            after: bytes.
            times: how many requests are hit; None: all, until ``clear_faults``.
            skip: how many fitting requests pass before.
            status: of kind ``status``.
            headers: of kind ``status``.
            body: of kinds ``status`` and ``garbage``.
        """
        self.faults.add(Fault(match, kind, after, status, headers or {}, body), skip, times)

    def rate_limit(self, match: str, *, times: int | None = 1) -> None:
        """Answer 429 as GHCR does: the wait stands as a Go duration in the body only."""
        message = "retry-after: 1.88ms, allowed: 2000/minute"
        self._refuse(match, 429, {"errors": [{"code": "TOOMANYREQUESTS", "message": message}]}, times)

    def secondary_limit(self, match: str, *, times: int | None = 1) -> None:
        """Answer 403 that is no denial: GitHub's secondary rate limit."""
        message = "You have exceeded a secondary rate limit. Please wait a few minutes."
        self._refuse(match, 403, {"message": message}, times)

    def deny(self, match: str, message: str, *, times: int | None = None) -> None:
        """Answer 403 DENIED with a message: it is by its words only that GHCR tells denials apart."""
        self._refuse(match, 403, {"errors": [{"code": "DENIED", "message": message}]}, times)

    def _refuse(self, match: str, status: int, document: object, times: int | None) -> None:
        headers, body = {"Content-Type": "application/json"}, json.dumps(document).encode()
        self.fault(match, "status", times=times, status=status, headers=headers, body=body)

    def release(self) -> None:
        """Let stalled answers go on."""
        self.faults.release()

    def clear_faults(self) -> None:
        """Forget the faults that were not met yet, and release what stalls."""
        self.faults.clear()

    # What was asked

    @property
    def issued_tokens(self) -> frozenset[str]:
        """Every registry token that was handed out."""
        return self._service.tokens.issued

    @property
    def requests(self) -> list[RequestRecord]:
        """A copy of the records since the start or the last reset."""
        return self._service.records.snapshot()

    def count(self, operation: str) -> int:
        """How many requests asked for this operation."""
        return sum(record.operation == operation for record in self.requests)

    def reset_requests(self) -> None:
        """Forget the records."""
        self._service.records.reset()

    # What it holds

    def put_blob(self, name: str, content: bytes | Path) -> Digest:
        """Store a blob behind the registry's back."""
        if isinstance(content, bytes):
            digest = Digest.of(content)
        else:
            with content.open("rb") as file:
                digest = Digest(hashlib.file_digest(file, "sha256").hexdigest())
        self._store.put_blob(name, digest, content)
        return digest

    def put_manifest(
        self, name: str, tag: str | None, content: bytes, media_type: str = IMAGE_MANIFEST
    ) -> Digest:
        """Store a manifest behind the registry's back, unchecked."""
        return self._store.put_manifest(name, tag, content, media_type).digest

    def corrupt_blob(self, digest: Digest, offset: int = 0) -> None:
        """Spoil one byte of a blob where it lies."""
        self._store.corrupt_blob(digest, offset)

    def delete_blob(self, name: str, digest: Digest) -> None:
        """Lose a blob, whoever names it."""
        self._store.delete_blob(name, digest)

    def delete_manifest(self, name: str, tag_or_digest: str) -> None:
        """Lose a manifest and its tags."""
        manifest = self._store.find_manifest(name, tag_or_digest)
        assert manifest is not None
        self._store.delete_version(name, manifest.version)

    def sweep(self) -> list[Digest]:
        """Collect garbage: blobs that no manifest of their repository names are gone."""
        return self._store.sweep()

    def tags(self, name: str) -> dict[str, Digest]:
        """Tags in the order of their first push."""
        return dict(self._held(name).tags)

    def blobs(self, name: str) -> dict[Digest, int]:
        """Sizes of the blobs, in bytes."""
        return dict(self._held(name).blobs)

    def manifests(self, name: str) -> dict[Digest, bytes]:
        """All manifests, tagged or not, in the order of their push."""
        return {digest: held.content for digest, held in self._held(name).manifests.items()}

    def read_blob(self, digest: Digest) -> bytes:
        """A blob's bytes as they lie there."""
        return self._store.blob_path(digest).read_bytes()

    def versions(self, name: str) -> list[dict[str, object]]:
        """The package's versions as the REST API shows them, oldest first."""
        held = self._held(name)
        return [version_document(held, manifest) for manifest in held.manifests.values()]

    def _held(self, name: str) -> HeldRepository:
        return self._store.find(name) or HeldRepository()


def main(arguments: Iterable[str] | None = None) -> None:
    """Run until interrupted; prints where it is: repository, storage and REST API, one a line."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.ghcr", description=__doc__)
    parser.add_argument("--repository", default="octocat/hello/nix-cache")
    parser.add_argument("--token", default="ghp_double")
    parser.add_argument("--public", action="store_true", help="anonymous clients may read")
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    parser.add_argument("--bandwidth", type=int, help="bytes a second of each connection")
    options = parser.parse_args(None if arguments is None else list(arguments))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with GhcrDouble(
        repository=options.repository,
        token=options.token,
        private=not options.public,
        latency=options.latency,
        bandwidth=options.bandwidth,
    ) as ghcr:
        lines = (
            f"repository {ghcr.host}/{ghcr.repository}",
            f"storage {ghcr.storage_host}",
            f"api {ghcr.api_url}",
        )
        print(*lines, sep="\n", flush=True)  # noqa: T201  this is what the program is for
        ended.wait()


if __name__ == "__main__":
    main()
