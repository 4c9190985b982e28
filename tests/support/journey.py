"""Fixtures of the journeys: a registry, a Nix, a key, and a proxy's settings between them."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from tests.support.nix import NixSandbox
from tests.support.publish import StoreObject, publish
from tests.support.registries import AnyRegistry, Ghcr, ghcr_double


@pytest.fixture
def ghcr() -> Iterator[Ghcr]:
    with ghcr_double() as running:
        yield running


@pytest.fixture
def nix(tmp_path: Path) -> NixSandbox:
    """The installed Nix; NIX_PROGRAMS names a folder with another version's ``nix`` and ``nix-store``."""
    return NixSandbox(tmp_path / "nix", programs=_other_programs())


@pytest.fixture(params=["the installed Nix", "another Nix"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> NixSandbox:
    """Each Nix in turn, to substitute what ``nix`` has built."""
    programs = _other_programs() if request.param == "another Nix" else None
    if programs is None and request.param == "another Nix":
        pytest.skip("NIX_PROGRAMS names no folder with another version of Nix")
    return NixSandbox(tmp_path / "client", programs=programs)


def _other_programs() -> Path | None:
    folder = os.environ.get("NIX_PROGRAMS")
    return Path(folder) if folder else None


@pytest.fixture(scope="session")
def key() -> SecretKey:
    return SecretKey.generate("journey-1")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep coverage out of the programs: there are hundreds, it makes each half as slow again, and what they
    do is measured elsewhere.
    """
    for name in [name for name in os.environ if name.startswith("COVERAGE")]:
        monkeypatch.delenv(name)


def settings_of(registry: AnyRegistry, folder: Path) -> dict[str, str]:
    """What a proxy is told, with credentials in a file as a service has them."""
    token = folder / "token"
    token.write_text(f"{registry.user}:{registry.password}\n")
    token.chmod(0o600)
    return {**registry.settings, "NIXCACHE_TOKEN_FILE": str(token)}


def push_with(registry: AnyRegistry, job: Callable[[Repository], Awaitable[object]]) -> None:
    """Do something with the registry, as a publisher on another machine would."""

    async def run() -> None:
        client = registry.client()
        try:
            await job(client)
        finally:
            await client.close()

    asyncio.run(run())


def put(
    registry: AnyRegistry,
    objects: Iterable[StoreObject],
    keys: Sequence[SecretKey] = (),
    *,
    in_packs: bool = True,
) -> None:
    """Publish, signed by every key."""
    signed = [one.signed(*keys) for one in objects]
    push_with(registry, lambda client: publish(client, signed, keys=keys, in_packs=in_packs))
