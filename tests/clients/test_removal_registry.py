"""OCI DELETE: against Debian's docker-registry, and what is said where it is refused."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aioresponses import aioresponses

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.clients.repository import Remover
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_MANIFEST
from nixcache_oci.oci.reference import RegistryReference
from tests.clients.registry_helper import MANIFEST, NAME, count, opened, owner
from tests.support.docker_registry import DockerRegistry
from tests.support.ghcr import GhcrDouble
from tests.support.skopeo import manifest_of

_LAYER = b"a layer " * 1000


@asynccontextmanager
async def remover_at(host: str, credentials: Credentials | None) -> AsyncIterator[Remover]:
    registry = Registry(
        RegistryReference(host, plain_http=True, repository=NAME),
        credentials,
        push=True,
        delete=True,
        patience=3,
        first_backoff_seconds=0.01,
    )
    remover = RegistryRemover(registry)
    try:
        yield remover
    finally:
        await remover.close()


async def push_image(registry: Registry, tag: str, *layers: bytes) -> Digest:
    for blob in (b"{}", *layers):
        await registry.push_blob(Digest.of(blob), blob)
    return await registry.push_manifest(tag, manifest_of(*layers), IMAGE_MANIFEST)


@pytest.mark.needs("docker-registry")
class TestDockerRegistry:
    """What a real registry does."""

    @pytest.fixture
    def docker(self) -> Iterator[DockerRegistry]:
        with DockerRegistry() as registry:
            yield registry

    def _credentials(self, docker: DockerRegistry) -> Credentials:
        return Credentials(docker.user, docker.password, "config.json")

    async def test_manifest_and_tags_go_and_then_the_bytes(self, docker: DockerRegistry) -> None:
        """A manifest is removed with its tag; what only it named goes with the next garbage collection."""
        credentials = self._credentials(docker)
        async with (
            opened(docker.host, credentials, push=True) as registry,
            remover_at(docker.host, credentials) as remover,
        ):
            gone = await push_image(registry, "gone", _LAYER, b"shared")
            kept = await push_image(registry, "kept", b"shared")
            before = docker.disk_usage()
            await remover.remove(gone)
            await remover.remove(gone)
            await remover.remove(Digest.of(b"never there"))
            assert await remover.untagged() == []
            assert await registry.list_tags() == ["kept"]
        docker.garbage_collect()
        assert docker.disk_usage() < before - len(_LAYER)
        async with opened(docker.host, credentials) as registry:
            assert await registry.resolve("kept") == kept
            assert await registry.stat_blob(Digest.of(b"shared")) == 6
            with pytest.raises(NotFoundError):
                await registry.get_manifest(str(gone))

    async def test_a_token_that_may_only_push_is_refused(self, docker: DockerRegistry) -> None:
        """Deleting is a right of its own, which is only asked for by who deletes."""
        credentials = self._credentials(docker)
        async with opened(docker.host, credentials, push=True) as registry:
            kept = await push_image(registry, "kept")
            with pytest.raises(RegistryError, match=r"401 UNAUTHORIZED.*the right to delete is separate"):
                await registry.delete_manifest(kept)
            assert await registry.resolve("kept") == kept

    async def test_an_unknown_repository(self, docker: DockerRegistry) -> None:
        """What never was is removed."""
        async with remover_at(docker.host, self._credentials(docker)) as remover:
            await remover.remove(Digest.of(b"never there"))

    async def test_deletion_is_disabled(self) -> None:
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
