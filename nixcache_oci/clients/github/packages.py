"""Implements ``Remover`` by GitHub's REST API, because GHCR answers every OCI DELETE with 405.

A deleted version can be restored for 30 days. GitHub refuses to delete public versions with over 5,000
downloads, and the last tagged one.
Source: GitHub's documentation, "REST API endpoints for packages".
"""

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from time import monotonic
from typing import Final
from urllib.parse import quote

from yarl import URL

from nixcache_oci.clients.credentials import CredentialSource
from nixcache_oci.clients.github.api import GithubApi, needed_rights
from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.one_origin import join
from nixcache_oci.clients.http.reply import BufferedReply
from nixcache_oci.clients.http.retry import RetryPolicy
from nixcache_oci.clients.http.url import find_next
from nixcache_oci.clients.repository import UntaggedVersion
from nixcache_oci.errors import FormatError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.document import clip, get_list, get_text, parse_object, within
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.wording import counted


@dataclass(frozen=True, slots=True)
class PackageVersion:
    """A version of a package: a manifest."""

    number: int  # GitHub's id, by which it is deleted
    digest: Digest  # of the manifest
    created: datetime  # when the manifest was first pushed
    is_tagged: bool  # whether a tag points at it


def parse_versions(body: bytes) -> list[PackageVersion]:
    """Read one page of versions, without those that are not named by a sha256 digest, which are not ours.

    Raises FormatError if this is no such page: what is not understood must not be deleted.
    """
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        raise FormatError("the list of versions is not JSON") from None  # what came is not worth showing
    if not isinstance(page, list):
        raise FormatError(f"the list of versions is not a list, but {clip(page)}")
    with within("a version of the package"):
        return [version for value in page for version in _parse_version(parse_object(value))]


def _parse_version(fields: Mapping[str, object]) -> Iterator[PackageVersion]:
    name = get_text(fields, "name")
    if not name.startswith("sha256:"):
        return
    number = fields.get("id")
    if type(number) is not int or number <= 0:  # True is an int, too
        raise FormatError(f"id: expected a number, got {clip(number)}")
    container = parse_object(parse_object(fields.get("metadata")).get("container"))
    yield PackageVersion(
        number, Digest.parse(name), _parse_created(fields), is_tagged=bool(get_list(container, "tags"))
    )


def _parse_created(fields: Mapping[str, object]) -> datetime:
    text = get_text(fields, "created_at")
    try:
        created = datetime.fromisoformat(text)
    except ValueError:
        created = None
    if created is None or created.tzinfo is None:
        raise FormatError(f"created_at: expected a time with its zone, got {clip(text)}")
    return created


_KINDS: Final = ("orgs", "users")  # of owners, in URLs; the wrong one is answered 404
_PER_PAGE: Final = 100  # the maximum
# Of a whole list, over all pages.
_MOST_PAGES: Final = 1_000
_MOST_VERSIONS: Final = 100_000
_MOST_BYTES: Final = 128 * 1024 * 1024
_OK: Final = frozenset({HTTPStatus.OK})
_FOUND_OR_NOT: Final = frozenset({HTTPStatus.OK, HTTPStatus.NOT_FOUND})
_DELETED_OR_NOT_FOUND: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND})


class GithubPackages:
    """Deletes versions of one container package, which is one repository at GHCR.

    Its versions are listed by the first call that needs them, and again for an unknown manifest, which may
    have been pushed since.

    Args:
        api_url: ``https://api.github.com``.
        reference: the repository; the first part of its name is the owner.
        credentials: source of a GitHub token, or None.
        patience: seconds that one request may take with all retries; a rate limit can last an hour.
        pause_seconds: between two deletions, as GitHub asks of programs that make many changes.
        stall_seconds: how long a connection may make no progress.
        first_backoff_seconds: the longest wait after the first failure; doubles with each try.
    """

    def __init__(
        self,
        api_url: str,
        reference: RegistryReference,
        credentials: CredentialSource | None,
        *,
        patience: float,
        pause_seconds: float = 1,
        stall_seconds: float = 30,
        first_backoff_seconds: float = 0.5,
    ) -> None:
        self._name = str(reference)
        policy = RetryPolicy(patience_seconds=patience, first_backoff_seconds=first_backoff_seconds)
        self._api = GithubApi(api_url, credentials, policy=policy, stall_seconds=stall_seconds)
        self._credentials = credentials
        owner, _, package = reference.repository.partition("/")
        self._path = f"{quote(owner, safe='')}/packages/container/{quote(package, safe='')}/versions"
        self._kind = ""  # of the owner; known when the versions are
        self._versions: dict[Digest, PackageVersion] | None = None
        self._pause_seconds = pause_seconds
        self._next_deletion = 0.0  # on the monotonic clock
        self._turn = asyncio.Lock()

    @property
    def _token_source(self) -> str:
        """The source of the token in use, for people."""
        token = self._credentials.current if self._credentials is not None else None
        return token.source if token is not None else ""

    async def remove(self, manifest: Digest, tags: Iterable[str] = ()) -> None:
        """Delete a manifest's version, with its tags."""
        del tags  # they go with it
        async with self._turn:
            versions = await self._list()
            if manifest not in versions:
                self._versions = None
                versions = await self._list()
            version = versions.get(manifest)
            if version is not None:
                await asyncio.sleep(self._next_deletion - monotonic())
                self._next_deletion = monotonic() + self._pause_seconds
                await self._delete(version)
                del versions[manifest]

    async def untagged(self) -> list[UntaggedVersion]:
        """List the versions without a tag; a tag that moves leaves one behind."""
        async with self._turn:
            versions = await self._list()
        return [
            UntaggedVersion(each.digest, each.created) for each in versions.values() if not each.is_tagged
        ]

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def _delete(self, version: PackageVersion) -> None:
        operation = f"delete manifest {version.digest}: {self._name}"
        url = self._url(f"/{version.number}")
        answer = await self._api.ask(operation, "DELETE", url, _DELETED_OR_NOT_FOUND)
        if answer.status == HTTPStatus.NO_CONTENT:
            return
        # GitHub also answers 404 to hide what the token has no right to: GET tells the two apart.
        looked = await self._api.ask(operation, "GET", url, _FOUND_OR_NOT)
        if looked.status == HTTPStatus.OK:
            raise RegistryError(
                f"{operation}: GitHub's API: 404, but it is still there; {needed_rights(self._token_source)}",
                status=answer.status,
            )

    async def _list(self) -> dict[Digest, PackageVersion]:
        """List all versions; a concurrent deletion may hide some. RegistryError if the list does not end."""
        if self._versions is None:
            operation = f"list versions: {self._name}"
            try:
                versions = await self._fetch_pages(operation)
            except (FormatError, HttpError) as error:
                raise RegistryError(f"{operation}: GitHub's API: {error}") from error
            self._versions = {version.digest: version for version in versions}
        return self._versions

    async def _fetch_pages(self, operation: str) -> list[PackageVersion]:
        url, answer = await self._fetch_first_page(operation)
        versions = parse_versions(answer.body)
        seen = {url}
        count = len(answer.body)
        while (target := find_next(answer.headers.getall("Link", []))) is not None:
            url = join(url, target)
            if url in seen or len(seen) == _MOST_PAGES:
                raise FormatError(f"the list does not end after {counted(len(seen), 'page')}")
            seen.add(url)
            answer = await self._api.ask(operation, "GET", url, _OK)
            count += len(answer.body)
            versions += parse_versions(answer.body)
            if len(versions) > _MOST_VERSIONS or count > _MOST_BYTES:
                raise FormatError(f"the list has over {_MOST_VERSIONS} versions, or {_MOST_BYTES} bytes")
        return versions

    async def _fetch_first_page(self, operation: str) -> tuple[URL, BufferedReply]:
        """Find out the kind of the owner, by trying the URLs of both; RegistryError if neither is found."""
        for kind in _KINDS:
            self._kind = kind
            url = self._url(f"?per_page={_PER_PAGE}")
            answer = await self._api.ask(operation, "GET", url, _FOUND_OR_NOT)
            if answer.status == HTTPStatus.OK:
                return url, answer
        raise RegistryError(
            f"{operation}: GitHub's API: 404, there is no such package, or it is hidden;"
            f" {needed_rights(self._token_source)}",
            status=HTTPStatus.NOT_FOUND,
        )

    def _url(self, rest: str) -> URL:
        return self._api.url(f"/{self._kind}/{self._path}{rest}")
