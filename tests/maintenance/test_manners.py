"""What doctor finds out about a registry by trying it."""

from collections.abc import Iterator

import pytest

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.maintenance.checks.finding import Finding, Level
from nixcache_oci.maintenance.checks.manners import check_manners
from nixcache_oci.oci.reference import RegistryReference
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_manners import PERSONAS

NAME = "octocat/hello/nix-cache"


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        yield double


async def check(ghcr: GhcrDouble) -> dict[str, Finding]:
    reference = RegistryReference(ghcr.host, plain_http=True, repository=NAME)
    found = await check_manners(reference, Credentials("anyone", ghcr.token, "NIXCACHE_TOKEN"))
    return {one.check: one for one in found}


@pytest.mark.parametrize("persona", sorted(PERSONAS.keys() - {"docker-hub"}))
async def test_every_registry_is_good_enough(ghcr: GhcrDouble, persona: str) -> None:
    """One line each; what was made to find out is deleted, but for a blob of two bytes."""
    ghcr.behave(PERSONAS[persona])
    found = await check(ghcr)
    expected = dict.fromkeys(("tags", "chunks", "artifact type", "deletion"), Level.GOOD)
    assert {name: one.level for name, one in found.items()} == expected
    assert ghcr.manifests(NAME) == {}
    assert sum(ghcr.blobs(NAME).values()) == 2


async def test_what_a_registry_does_otherwise_is_said(ghcr: GhcrDouble) -> None:
    """In words that tell what follows from it."""
    ghcr.behave(PERSONAS["gitlab"])
    ghcr.tags_n_limit = (100, (405, "UNSUPPORTED"))
    ghcr.put_manifest(NAME, "one", b"{}")
    found = await check(ghcr)
    assert found["tags"].text == "1 tag, listed in pages of its own size"
    assert found["artifact type"].text == "not taken: segments go without it, and their tables tell"
    assert found["deletion"].text.startswith("allowed, but an index goes before what it lists")
    ghcr.still_referenced = None
    assert (await check(ghcr))["deletion"].text == "allowed: what was made to try it is gone"


async def test_what_is_refused_is_a_warning(ghcr: GhcrDouble) -> None:
    """Publishing works without chunks, and without deleting."""
    refusal = b'{"errors":[{"code":"UNSUPPORTED"}]}'
    ghcr.fault("upload-patch", "status", status=405, body=refusal, times=None)
    found = await check(ghcr)
    assert found["chunks"].level is found["deletion"].level is Level.WARNING
    assert "cannot be sent: push a blob in a chunk: " in found["chunks"].text
    assert "gc cannot delete, and manifests of doctor's stay" in found["deletion"].text


async def test_a_registry_that_takes_no_manifest_is_wrong(ghcr: GhcrDouble) -> None:
    """With the type or without: then nothing can be published."""
    ghcr.fault("manifest-put", "status", status=400, body=b'{"errors":[{"code":"NO"}]}', times=None)
    found = await check(ghcr)
    assert found["artifact type"].level is Level.ERROR
    assert "400 NO" in found["artifact type"].text
    assert found["deletion"].level is Level.WARNING
