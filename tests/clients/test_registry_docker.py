"""The same against a real registry: Debian's docker-registry, with tokens."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import EMPTY, IMAGE_INDEX, IMAGE_MANIFEST, SEGMENT
from tests.clients.registry_helper import opened, read
from tests.support.docker_registry import DockerRegistry

pytestmark = pytest.mark.needs("docker-registry")


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerRegistry]:
    with DockerRegistry() as registry:
        yield registry


def _credentials(docker: DockerRegistry) -> Credentials:
    return Credentials(docker.user, docker.password, "config.json")


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


async def test_a_large_blob_survives_the_round_trip(docker: DockerRegistry, tmp_path: Path) -> None:
    """20 MB from a file, read back whole and in parts."""
    content = random.Random(3).randbytes(20_000_000)
    path = tmp_path / "blob"
    path.write_bytes(content)
    digest = Digest.of(content)
    async with opened(docker.host, _credentials(docker), push=True) as registry:
        with pytest.raises(NotFoundError):
            await registry.stat_blob(digest)
        await registry.push_blob(digest, path)
        assert await registry.stat_blob(digest) == len(content)
        assert await read(registry, digest) == content
        assert await read(registry, digest, 19_000_000) == content[19_000_000:]
        assert await read(registry, digest, 5, 7) == content[5:7]


async def test_segments_and_indexes_are_kept(docker: DockerRegistry) -> None:
    """Manifests of our own type and an index of them come back byte for byte, by tag and by digest."""
    layer = b"layer"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": SEGMENT,
            "config": _descriptor(EMPTY, b"{}"),
            "layers": [_descriptor("application/octet-stream", layer)],
        }
    ).encode()
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [_descriptor(IMAGE_MANIFEST, manifest)]}
    ).encode()
    async with opened(docker.host, _credentials(docker), push=True) as registry:
        await registry.push_blob(Digest.of(b"{}"), b"{}")
        with pytest.raises(RegistryError, match="BLOB_UNKNOWN") as raised:
            await registry.push_manifest("segment", manifest, IMAGE_MANIFEST)
        assert not isinstance(raised.value, NotFoundError)
        await registry.push_blob(Digest.of(layer), layer)
        digest = await registry.push_manifest("segment", manifest, IMAGE_MANIFEST)
        await registry.push_manifest(str(digest), manifest, IMAGE_MANIFEST)
        await registry.push_manifest("cache-index", index, IMAGE_INDEX)
        assert await registry.resolve("segment") == digest
        stored = await registry.get_manifest("cache-index")
        assert (stored.content, stored.media_type) == (index, IMAGE_INDEX)
        assert sorted(await registry.list_tags()) == ["cache-index", "segment"]
        with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
            await registry.resolve("other")


async def test_an_unknown_repository_is_absent() -> None:
    """A cache that nobody published to yet is empty, and known to be."""
    with DockerRegistry(auth=False) as docker:
        async with opened(docker.host, None) as registry:
            with pytest.raises(NotFoundError, match="NAME_UNKNOWN"):
                await registry.list_tags()
            with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
                await registry.resolve("cache-index")


async def test_a_wrong_password_is_named_by_its_source(docker: DockerRegistry) -> None:
    """This token service refuses anonymous requests too, so the first refusal is told."""
    async with opened(docker.host, Credentials(docker.user, "wrong", "config.json")) as registry:
        with pytest.raises(RegistryError, match=r"no token: 401 UNAUTHORIZED; asked with config.json"):
            await registry.list_tags()


async def test_reading_does_not_suffice_for_pushing(docker: DockerRegistry) -> None:
    """Distribution answers 401 where the scope does not suffice: it is told after one renewal."""
    async with opened(docker.host, _credentials(docker), push=False) as registry:
        with pytest.raises(RegistryError, match=r"push blob .*401 UNAUTHORIZED"):
            await registry.push_blob(Digest.of(b"x"), b"x")


async def test_a_restart_is_survived(docker: DockerRegistry) -> None:
    """Connections that were kept are dead then, and the next request opens others."""
    content = b"survivor"
    # Refused connections cost no time: the waits between the tries must be longer than the restart.
    async with opened(docker.host, _credentials(docker), push=True, patience=30, first_backoff=1) as registry:
        await registry.push_blob(Digest.of(content), content)
        docker.stop()
        reading = asyncio.create_task(read(registry, Digest.of(content)))
        await asyncio.to_thread(docker.start)
        assert await reading == content
