"""OCI DELETE: against Debian's docker-registry, and what is said where it is refused."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.clients.removal import Remover
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_MANIFEST
from nixcache_oci.oci.reference import RegistryReference
from tests.clients.registry_helper import MANIFEST, NAME, opened, owner
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
            with pytest.raises(RegistryError, match=r"401 UNAUTHORIZED.*deleting is a right of its own"):
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


class TestDouble:
    """What others do."""

    @pytest.fixture
    def ghcr(self) -> Iterator[GhcrDouble]:
        with GhcrDouble() as double:
            double.put_manifest(NAME, "tag", MANIFEST)
            yield double

    @pytest.mark.parametrize(("status", "code"), [(400, "UNSUPPORTED"), (405, "UNSUPPORTED"), (405, None)])
    async def test_disabled_in_other_words(self, ghcr: GhcrDouble, status: int, code: str | None) -> None:
        """The specification lets a registry choose its status."""
        body = json.dumps({"errors": [{"code": code}]}).encode() if code else b""
        ghcr.fault("manifest-delete", "status", status=status, body=body)
        async with remover_at(ghcr.host, owner(ghcr)) as remover:
            with pytest.raises(RegistryError, match=f"this registry does not delete: {status}"):
                await remover.remove(Digest.of(MANIFEST))

    async def test_a_limit_on_the_rate_is_waited_for(self, ghcr: GhcrDouble) -> None:
        """Trouble that passes costs another try, and a lost answer too: the second one finds nothing."""
        ghcr.fault("manifest-delete", "status", status=503)
        ghcr.fault("manifest-delete", "lost")
        body = b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'
        ghcr.fault("manifest-delete", "status", status=404, body=body)
        async with remover_at(ghcr.host, owner(ghcr)) as remover:
            await remover.remove(Digest.of(MANIFEST))
        assert ghcr.count("manifest-delete") == 3

    @pytest.mark.parametrize(("status", "body"), [(404, b"<html>"), (500, b"")])
    async def test_what_no_registry_says_is_no_success(
        self, ghcr: GhcrDouble, status: int, body: bytes
    ) -> None:
        """Only the registry itself can say that a manifest is gone."""
        ghcr.fault("manifest-delete", "status", status=status, body=body, times=None)
        async with remover_at(ghcr.host, owner(ghcr)) as remover:
            with pytest.raises(RegistryError, match=f"delete manifest sha256:.*{status}") as raised:
                await remover.remove(Digest.of(MANIFEST))
        assert not isinstance(raised.value, NotFoundError)

    async def test_answers_without_a_body_end(self, ghcr: GhcrDouble) -> None:
        """The library has one reader for all empty bodies, which tells of its end only once."""
        ghcr.fault("manifest-delete", "status", status=204, times=None)
        async with remover_at(ghcr.host, owner(ghcr)) as remover, asyncio.timeout(20):
            for _ in range(3):
                await remover.remove(Digest.of(MANIFEST))
        assert ghcr.count("manifest-delete") == 3
