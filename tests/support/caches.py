"""Several caches behind one proxy."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.reference import RegistryReference
from tests.support.publish import StoreObject, publish
from tests.support.registries import AnyRegistry


def put_into(
    registry: AnyRegistry, repo: str, objects: Iterable[StoreObject], keys: Sequence[SecretKey] = ()
) -> None:
    """Publish to the cache of a repository, signed by every key."""
    signed = [one.signed(*keys) for one in objects]

    async def run() -> None:
        reference = RegistryReference.of(registry.server.host, repo, "nix-cache")
        client = Registry(
            reference, Credentials(registry.user, registry.password, "the test"), push=True, patience=20
        )
        try:
            await publish(client, signed, keys=keys)
        finally:
            await client.close()

    asyncio.run(run())


def write_token(folder: Path, registry: AnyRegistry) -> Path:
    """Write a registry's credentials into a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"token-{registry.server.host.replace(':', '-')}"
    path.write_text(f"{registry.user}:{registry.password}\n")
    path.chmod(0o600)
    return path


def write_caches(path: Path, caches: Iterable[Mapping[str, object]]) -> Path:
    """Write a file for NIXCACHE_CACHES_FILE."""
    lines = []
    for cache in caches:
        lines.append("[[cache]]")
        for name, value in cache.items():
            text = json.dumps(value if isinstance(value, (bool, list)) else str(value))
            lines.append(f"{name} = {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
