"""The same, and OCI DELETE, against a real registry: Debian's docker-registry, with tokens."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aioresponses import aioresponses

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.clients.repository import Remover
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import ImageIndex, Manifest
from nixcache_oci.oci.media_type import IMAGE_INDEX, IMAGE_MANIFEST, SEGMENT
from tests.clients.registry_helper import MANIFEST, NAME, count, opened, owner, read
from tests.support.docker_registry import DockerRegistry
from tests.support.ghcr import GhcrDouble
from tests.support.skopeo import manifest_of

pytestmark = pytest.mark.needs("docker-registry")


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerRegistry]:
    with DockerRegistry() as registry:
        yield registry


def _credentials(docker: DockerRegistry) -> Credentials:
    return Credentials(docker.user, docker.password, "config.json")


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


async def test_segments_and_indexes_are_kept() -> None:
    """Manifests of our own type and an index of them come back byte for byte; a new cache is absent."""
    manifest = Manifest(SEGMENT, EMPTY_CONFIG, (Descriptor("a/b", Digest.of(b"layer"), 5),)).render()
    listed = Descriptor(IMAGE_MANIFEST, Digest.of(manifest), len(manifest))
    index = ImageIndex((listed,)).render()
    with DockerRegistry(auth=False) as docker:
        async with opened(docker.host, None, push=True) as registry:
            with pytest.raises(NotFoundError, match="NAME_UNKNOWN"):
                await registry.list_tags()
            with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
                await registry.resolve("cache-index")
            await registry.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
            with pytest.raises(RegistryError, match="BLOB_UNKNOWN") as raised:
                await registry.push_manifest("segment", manifest, IMAGE_MANIFEST)
            assert not isinstance(raised.value, NotFoundError)
            await registry.push_blob(Digest.of(b"layer"), b"layer")
            digest = await registry.push_manifest("segment", manifest, IMAGE_MANIFEST)
            await registry.push_manifest(str(digest), manifest, IMAGE_MANIFEST)
            await registry.push_manifest("cache-index", index, IMAGE_INDEX)
            assert await registry.resolve("segment") == digest
            stored = await registry.get_manifest("cache-index")
            assert (stored.content, stored.media_type) == (index, IMAGE_INDEX)
            assert sorted(await registry.list_tags()) == ["cache-index", "segment"]
            with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
                await registry.resolve("other")


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


_LAYER = b"a layer " * 1000


@asynccontextmanager
async def remover_at(host: str, credentials: Credentials | None) -> AsyncIterator[Remover]:
    async with opened(host, credentials, push=True, delete=True) as registry:
        yield RegistryRemover(registry)


async def push_image(registry: Registry, tag: str, *layers: bytes) -> Digest:
    for blob in (b"{}", *layers):
        await registry.push_blob(Digest.of(blob), blob)
    return await registry.push_manifest(tag, manifest_of(*layers), IMAGE_MANIFEST)


async def test_manifest_and_tags_go_and_then_the_bytes() -> None:
    """A manifest is removed with its tag; what only it named goes with the next garbage collection."""
    with DockerRegistry() as docker:
        credentials = _credentials(docker)
        async with (
            opened(docker.host, credentials, push=True) as registry,
            remover_at(docker.host, credentials) as remover,
        ):
            await remover.remove(Digest.of(b"never there"))  # there is not even a repository
            gone = await push_image(registry, "gone", _LAYER, b"shared")
            kept = await push_image(registry, "kept", b"shared")
            before = docker.disk_usage()
            await remover.remove(gone)
            await remover.remove(gone)
            assert await remover.untagged() == []
            assert await registry.list_tags() == ["kept"]
        docker.garbage_collect()
        assert docker.disk_usage() < before - len(_LAYER)
        async with opened(docker.host, credentials) as registry:
            assert await registry.resolve("kept") == kept
            assert await registry.stat_blob(Digest.of(b"shared")) == 6
            with pytest.raises(NotFoundError):
                await registry.get_manifest(str(gone))


async def test_a_token_that_may_only_push_is_refused(docker: DockerRegistry) -> None:
    """Deleting is a right of its own, which is only asked for by who deletes."""
    async with opened(docker.host, _credentials(docker), push=True) as registry:
        kept = await push_image(registry, "undeletable")
        with pytest.raises(RegistryError, match=r"401 UNAUTHORIZED.*the right to delete is separate"):
            await registry.delete_manifest(kept)
        assert await registry.resolve("undeletable") == kept


async def test_deletion_is_disabled() -> None:
    """It says how the registry's owner enables it, and that nothing is lost."""
    with DockerRegistry(auth=False, delete=False) as docker:
        async with opened(docker.host, None) as registry, remover_at(docker.host, None) as remover:
            kept = await push_image(registry, "kept")
            with pytest.raises(RegistryError, match=r"405 UNSUPPORTED.*DELETE_ENABLED=true") as raised:
                await remover.remove(kept)
            assert (raised.value.status, raised.value.is_temporary) == (405, False)
            assert "\n" not in str(raised.value)
            assert await registry.resolve("kept") == kept


_DELETING = f"http://registry.example/v2/{NAME}/manifests/{Digest.of(MANIFEST)}"
_GONE = '{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'
_UNSUPPORTED = '{"errors": [{"code": "UNSUPPORTED"}]}'


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([(200, "")], ""),
        ([(202, "")], ""),
        ([(204, "")], ""),
        ([(404, _GONE)], ""),
        # Trouble that passes costs another try, and a lost answer too: the next one finds nothing.
        ([(503, ""), (0, ""), (404, _GONE)], ""),
        # The specification lets a registry choose its status.
        ([(400, _UNSUPPORTED)], "this registry does not delete: 400"),
        ([(405, _UNSUPPORTED)], "this registry does not delete: 405"),
        ([(405, "")], "this registry does not delete: 405"),
        # Only the registry itself can say that a manifest is gone.
        ([(404, "<html>")], "delete manifest sha256:.*404"),
        ([(500, "")] * 5, "delete manifest sha256:.*500"),
    ],
)
async def test_what_others_answer(web: aioresponses, answers: list[tuple[int, str]], reason: str) -> None:
    """What is gone is gone, and what no registry says is no success."""
    for status, body in answers:
        exception = None if status else aiohttp.ServerDisconnectedError()
        web.delete(_DELETING, status=status, body=body, exception=exception)
    async with remover_at("registry.example", None) as remover:
        if reason:
            with pytest.raises(RegistryError, match=reason) as raised:
                await remover.remove(Digest.of(MANIFEST))
            assert not isinstance(raised.value, NotFoundError)
        else:
            await remover.remove(Digest.of(MANIFEST))
    assert count(web, _DELETING, "DELETE") == len(answers)


async def test_answers_without_a_body_end(ghcr: GhcrDouble) -> None:
    """The library has one reader for all empty bodies, which tells of its end only once."""
    ghcr.fault("manifest-delete", "status", status=204, times=None)
    async with remover_at(ghcr.host, owner(ghcr)) as remover, asyncio.timeout(20):
        for _ in range(3):
            await remover.remove(Digest.of(MANIFEST))
    assert ghcr.count("manifest-delete") == 3
