"""Deleting at GHCR, by GitHub's REST API."""

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal

import pytest
from aioresponses import aioresponses

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.github.api import find_api_url
from nixcache_oci.clients.github.packages import GithubPackages, PackageVersion, parse_versions
from nixcache_oci.clients.repository import Remover
from nixcache_oci.errors import FormatError, RegistryError, UsageError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import RegistryReference
from tests.clients.registry_helper import NAME, count, owner, reader
from tests.support.ghcr import GhcrDouble

_DELETES = "package-delete"
_LISTS = "package-versions"


@asynccontextmanager
async def remover_at(
    ghcr: GhcrDouble, credentials: Credentials | None, *, pause: float = 0, patience: float = 5
) -> AsyncIterator[Remover]:
    remover = GithubPackages(
        ghcr.api_url,
        RegistryReference(ghcr.host, plain_http=True, repository=NAME),
        credentials,
        patience=patience,
        pause_seconds=pause,
        stall_seconds=1.5,
        first_backoff_seconds=0.01,
    )
    try:
        yield remover
    finally:
        await remover.close()


def put(ghcr: GhcrDouble, tag: str | None, text: str) -> Digest:
    return ghcr.put_manifest(NAME, tag, json.dumps({"text": text}).encode())


def refuse(ghcr: GhcrDouble, match: str, status: int, message: str, **headers: str) -> None:
    ghcr.fault(
        match,
        "status",
        status=status,
        body=json.dumps({"message": message}).encode(),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


@pytest.mark.parametrize("kind", ["user", "org"])
async def test_manifests_go(ghcr: GhcrDouble, kind: Literal["user", "org"]) -> None:
    """A version goes with its tag, whoever owns the package; what was never there or is gone is no error.

    A repair pushes what it removes a moment later: the list is read again for that, and for nothing else.
    """
    ghcr.owner_kind = kind
    gone, other, kept = (put(ghcr, tag, tag) for tag in ("gone", "other", "kept"))
    async with remover_at(ghcr, owner(ghcr)) as remover:
        await remover.remove(gone)
        lists = ghcr.count(_LISTS)
        new = put(ghcr, "new", "3")
        await remover.remove(new)
        await remover.remove(other)
        assert ghcr.count(_LISTS) - lists == {"user": 2, "org": 1}[kind]  # the other kind of owner first
        await remover.remove(gone)
        await remover.remove(Digest.of(b"never there"))
    assert ghcr.tags(NAME) == {"kept": kept}
    assert set(ghcr.manifests(NAME)) == {kept}
    assert ghcr.count(_DELETES) == 3
    assert all(record.headers["Authorization"] == f"Bearer {ghcr.token}" for record in ghcr.requests)


async def test_untagged(ghcr: GhcrDouble) -> None:
    """Former versions of a tag are told with the time of their push, and can be removed."""
    former = [put(ghcr, "cache-index", str(number)) for number in range(3)]
    current = put(ghcr, "cache-index", "current")
    async with remover_at(ghcr, owner(ghcr)) as remover:
        untagged = await remover.untagged()
        assert {version.digest for version in untagged} == set(former)
        for version in untagged:
            assert abs(version.created.timestamp() - time.time()) < 60
            await remover.remove(version.digest)
        assert await remover.untagged() == []
    assert set(ghcr.manifests(NAME)) == {current}


async def test_pages_are_followed(ghcr: GhcrDouble) -> None:
    """A year of publishes takes several pages, which are asked for once in a run."""
    former = [put(ghcr, "cache-index", str(number)) for number in range(250)]
    async with remover_at(ghcr, owner(ghcr)) as remover:
        assert {version.digest for version in await remover.untagged()} == set(former[:-1])
        await remover.remove(former[0])
        await remover.remove(former[-1])
    assert ghcr.count(_LISTS) == 1 + 3  # the wrong kind of owner first
    assert set(ghcr.manifests(NAME)) == set(former[1:-1])


async def test_an_undeletable_version_is_kept(ghcr: GhcrDouble) -> None:
    """GitHub keeps what was downloaded often: it is said, and the others still go."""
    popular, other = put(ghcr, "popular", "1"), put(ghcr, "other", "2")
    refuse(
        ghcr,
        _DELETES,
        400,
        "Publicly visible package versions with more than 5000 downloads cannot be deleted. Contact GitHub.",
    )
    async with remover_at(ghcr, owner(ghcr)) as remover:
        with pytest.raises(RegistryError, match=r"delete manifest sha256:.* 400 .*5000 downloads") as raised:
            await remover.remove(popular)
        assert (raised.value.status, raised.value.is_temporary) == (400, False)
        await remover.remove(other)
    assert set(ghcr.manifests(NAME)) == {popular}
    assert ghcr.count(_DELETES) == 2


async def test_a_token_without_the_right(ghcr: GhcrDouble) -> None:
    """The remedy names the token's source and every right, and never the token."""
    kept = put(ghcr, "kept", "1")
    async with remover_at(ghcr, reader(ghcr)) as remover:
        with pytest.raises(RegistryError, match=r"403 .*asked with GH_TOKEN.*delete:packages") as raised:
            await remover.remove(kept)
    assert ghcr.read_token not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert set(ghcr.manifests(NAME)) == {kept}


async def test_404_may_hide_a_refusal(ghcr: GhcrDouble) -> None:
    """GitHub answers 404 where a right is missing: what is still there is not taken for removed."""
    kept = put(ghcr, "kept", "1")
    refuse(ghcr, _DELETES, 404, "Not Found")
    async with remover_at(ghcr, owner(ghcr)) as remover:
        with pytest.raises(RegistryError, match=r"404, but it is still there; .*delete:packages"):
            await remover.remove(kept)
        ghcr.delete_manifest(NAME, "kept")
        await remover.remove(kept)


async def test_no_package_is_seen(ghcr: GhcrDouble) -> None:
    """A package that a token may not see looks like one that is not there: neither is success."""
    async with remover_at(ghcr, owner(ghcr)) as remover:
        for attempt in (remover.untagged(), remover.remove(Digest.of(b"x"))):
            with pytest.raises(RegistryError, match=r"404, there is no such package, or it is hidden"):
                await attempt


@pytest.mark.parametrize("is_wrong", [False, True])
async def test_without_a_token(ghcr: GhcrDouble, is_wrong: bool) -> None:
    """Nothing can be seen or deleted anonymously."""
    put(ghcr, "kept", "1")
    credentials = Credentials("anyone", "ghp_wrong", "GITHUB_TOKEN") if is_wrong else None
    expected = "GITHUB_TOKEN, which is wrong or has expired" if is_wrong else "set GITHUB_TOKEN or NIXCACHE_"
    async with remover_at(ghcr, credentials) as remover:
        with pytest.raises(RegistryError, match=expected) as raised:
            await remover.untagged()
    assert raised.value.status == 401
    assert len(ghcr.requests) == is_wrong


@pytest.mark.parametrize("kind", ["lost", "reset", "cut_request"])
async def test_a_lost_answer_is_no_failure(
    ghcr: GhcrDouble, kind: Literal["lost", "reset", "cut_request"]
) -> None:
    """The second try finds the version gone, or deletes it."""
    gone = put(ghcr, "gone", "1")
    ghcr.fault(_DELETES, kind)
    async with remover_at(ghcr, owner(ghcr)) as remover:
        await remover.remove(gone)
    assert ghcr.manifests(NAME) == {}


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ({"Link": '<http://localhost:1/versions>; rel="next"'}, "[]", "another server, http://localhost:1"),
        ({"Link": '<?per_page=100>; rel="next"'}, "[]", "does not end after 1 page"),
        ({"Link": "</x; rel=next"}, "[]", "cannot be read"),
        ({}, "{}", "not a list"),
    ],
)
async def test_a_strange_list_is_refused(
    ghcr: GhcrDouble, web: aioresponses, headers: dict[str, str], body: str, reason: str
) -> None:
    """The token stays with GitHub, and half a list is no list."""
    web.get(re.compile(".*/orgs/"), headers=headers, body=body, repeat=True)
    async with remover_at(ghcr, owner(ghcr)) as remover:
        with pytest.raises(RegistryError, match=rf"\Alist versions: 127[^\n]*GitHub's API[^\n]*{reason}"):
            await remover.remove(Digest.of(b"x"))
    assert count(web, "") == 1


async def test_deletions_are_spaced(ghcr: GhcrDouble, waits: list[float]) -> None:
    """GitHub wants a pause between changes; the first deletion does not wait."""
    digests = [put(ghcr, f"tag-{number}", str(number)) for number in range(3)]
    async with remover_at(ghcr, owner(ghcr), pause=600) as remover:
        for digest in digests:
            await remover.remove(digest)
    assert len([wait for wait in waits if 500 < wait <= 600]) == 2
    assert ghcr.manifests(NAME) == {}


@pytest.mark.parametrize(
    ("host", "variable", "expected"),
    [
        ("ghcr.io", "", "https://api.github.com"),
        ("GHCR.io:443", "https://evil.example", "https://api.github.com"),
        ("ghcr.io", "http://127.0.0.1:1/api", "https://api.github.com"),
        ("containers.octo.ghe.com", "", "https://api.octo.ghe.com"),
        ("127.0.0.1:5000", "http://127.0.0.1:1/api/", "http://127.0.0.1:1/api"),
        ("localhost:5000", "http://[::1]:1", "http://[::1]:1"),
        *(("127.0.0.1:5000", "https://api.github.com", None), ("127.0.0.1:5000", "", None)),
        ("registry.example", "https://api.github.com", None),
        *(("registry.example", "http://127.0.0.1:1", None), ("ghcr.io.example", "", None)),
    ],
)
def test_which_api(host: str, variable: str, expected: str | None) -> None:
    """A registry's own name tells its API: a token never follows the environment to some other server."""
    assert find_api_url(host, {"GITHUB_API_URL": variable}) == expected
    with pytest.raises(UsageError, match="GITHUB_API_URL"):  # what is no address is named by its variable
        find_api_url("localhost:5000", {"GITHUB_API_URL": "http://127.0.0.1:x"})


_VERSION = {
    "id": 7,
    "name": f"sha256:{'ab' * 32}",
    "created_at": "2026-11-21T03:15:00Z",
    "metadata": {"container": {"tags": ["one"]}},
}


def test_versions() -> None:
    """What is named by no sha256 digest is none of ours."""
    page = [_VERSION, {"name": f"sha512:{'ab' * 64}"}, {**_VERSION, "metadata": {"container": {"tags": []}}}]
    created = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)
    assert parse_versions(json.dumps(page).encode()) == [
        PackageVersion(7, Digest("ab" * 32), created, is_tagged=True),
        PackageVersion(7, Digest("ab" * 32), created, is_tagged=False),
    ]


@pytest.mark.parametrize(
    "page",
    [
        *(b"<html>", b"{}", b"[1]", json.dumps([{**_VERSION, "id": "7"}]).encode()),
        json.dumps([{**_VERSION, "id": True}]).encode(),
        json.dumps([{**_VERSION, "name": "sha256:ab"}]).encode(),
        json.dumps([{**_VERSION, "created_at": "yesterday"}]).encode(),
        json.dumps([{**_VERSION, "created_at": "2026-11-21T03:15:00"}]).encode(),
        json.dumps([{**_VERSION, "metadata": None}]).encode(),
        json.dumps([{**_VERSION, "metadata": {"container": {}}}]).encode(),
    ],
)
def test_a_page_that_is_none(page: bytes) -> None:
    """Above all, a version without a list of tags is not an untagged one."""
    with pytest.raises(FormatError):
        parse_versions(page)
