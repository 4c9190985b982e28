import asyncio
import resource
from contextlib import closing
from pathlib import Path

import pytest

from nixcache_oci.cli.compose import open_remover, open_repository, run_async
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE
from nixcache_oci.clients.github.packages import GithubPackages
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.layout_sweep import LayoutRemover
from nixcache_oci.clients.registry.client import RegistryRemover
from nixcache_oci.clients.repository import Remover
from nixcache_oci.errors import UsageError
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.settings.repository_config import RepositoryConfig
from tests.support.objects import store_object
from tests.support.publish import publish

_TABLES = 40
_AT_REGISTRY = RegistryReference.of("127.0.0.1:5000", "owner/name", "nix-cache")


@pytest.mark.parametrize("push", [False, True])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Path("/somewhere"), "oci:/somewhere"),
        (_AT_REGISTRY, "127.0.0.1:5000/owner/name/nix-cache"),
    ],
    ids=["layout", "registry"],
)
def test_opens_what_the_settings_name(config: RepositoryConfig, name: str, push: bool) -> None:
    """Opening neither writes nor connects: a repository may not be there yet."""

    async def open_and_close() -> str:
        repository = open_repository(config, {}, push=push)
        await repository.close()
        return repository.name

    assert run_async(open_and_close()) == name


def test_a_cache_of_many_tables_needs_no_higher_limit(
    layout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each table is two open files, systems allow few of them at first, and gc reads all or nothing."""

    async def fill() -> None:
        for number in range(_TABLES):
            await publish(Layout(layout), [store_object(str(number))])

    asyncio.run(fill())
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * _TABLES, before[1]))
    try:
        assert main(["gc", "--dry-run"]) == DONE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert f"{_TABLES} paths" in capsys.readouterr().out


def test_unreadable_credentials_stop_the_start(tmp_path: Path) -> None:
    """A token file that was named and is missing does not turn into anonymous access."""

    async def attempt() -> None:
        open_repository(_AT_REGISTRY, {"NIXCACHE_TOKEN_FILE": str(tmp_path / "missing")})

    with pytest.raises(UsageError, match="NIXCACHE_TOKEN_FILE"):
        run_async(attempt())


def test_event_loop_is_the_fast_one() -> None:
    """Streams of NARs are measured with uvloop; it must not get lost on the way."""
    uvloop = pytest.importorskip("uvloop", reason="not built for this platform")

    async def running_loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with closing(run_async(running_loop())) as loop:
        assert isinstance(loop, uvloop.Loop)


@pytest.mark.parametrize(
    ("config", "api_url", "kind"),
    [
        (Path("/somewhere"), "", LayoutRemover),
        (RegistryReference.of("ghcr.io", "Owner/name", "nix-cache"), "", GithubPackages),
        (_AT_REGISTRY, "https://api.github.com", RegistryRemover),
        (_AT_REGISTRY, "http://127.0.0.1:1/api", GithubPackages),
    ],
    ids=["layout", "ghcr", "registry", "double"],
)
def test_opens_what_removes(config: RepositoryConfig, api_url: str, kind: type[Remover]) -> None:
    """Opening neither writes nor connects; a registry in a workflow is not taken for GitHub's."""

    async def open_and_close() -> Remover:
        remover = open_remover(config, {"GITHUB_API_URL": api_url})
        await remover.close()
        return remover

    assert type(run_async(open_and_close())) is kind
