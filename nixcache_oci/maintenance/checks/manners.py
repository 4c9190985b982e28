"""Checks of what a registry takes from a publisher and gc, by trying it: registries differ.

What is made for that is a blob of two bytes, a manifest, and an index that lists it. They have no tag, and no
cache counts them; the latter two are deleted again, if the registry does that.
"""

from contextlib import AsyncExitStack, suppress
from typing import Final

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.clients.registry.probe import try_chunk
from nixcache_oci.errors import NotFoundError, ReferencedError, RegistryError
from nixcache_oci.maintenance.checks.finding import Finding, good, warning, wrong
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import ImageIndex, Manifest
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.wording import counted

TAGS: Final = "tags"
CHUNKS: Final = "chunks"
TYPE: Final = "artifact type"
DELETION: Final = "deletion"
CHECKS: Final = (TAGS, CHUNKS, TYPE, DELETION)

_PATIENCE_SECONDS: Final = 10
_ATTEMPTS: Final = 2
_NOTE: Final = {"dev.nixcache.probe": "made by nixcache-oci doctor; it may be deleted"}


async def check_manners(reference: RegistryReference, credentials: Credentials | None) -> list[Finding]:
    """Try what publishing and gc need, one line each."""
    async with AsyncExitStack() as stack:
        pusher, deleter = (
            Registry(
                reference,
                credentials,
                push=True,
                delete=delete,
                patience=_PATIENCE_SECONDS,
                stall_seconds=_PATIENCE_SECONDS,
                attempts=_ATTEMPTS,
            )
            for delete in (False, True)
        )
        stack.push_async_callback(pusher.close)
        remover = RegistryRemover(deleter)
        stack.push_async_callback(remover.close)
        findings = [await _check_tags(pusher), await _check_chunks(reference, credentials)]
        made, finding = await _check_type(pusher)
        return [*findings, finding, await _check_deletion(pusher, remover, made)]


async def _check_tags(registry: Registry) -> Finding:
    count = 0
    try:
        with suppress(NotFoundError):
            count = len(await registry.list_tags())
    except RegistryError as error:
        return wrong(TAGS, str(error))
    asked = "in pages of its own size" if registry.has_own_page_size else "1,000 on a page"
    return good(TAGS, f"{counted(count, 'tag')}, listed {asked}")


async def _check_chunks(reference: RegistryReference, credentials: Credentials | None) -> Finding:
    try:
        await try_chunk(reference, credentials, EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
    except RegistryError as error:
        text = f"not taken, so a blob that is too large for one request cannot be sent: {error}"
        return warning(CHUNKS, text, "if large paths are refused with 413, set NIXCACHE_MAX_BLOB_BYTES")
    return good(CHUNKS, "taken, should a blob be too large for one request")


async def _check_type(registry: Registry) -> tuple[Descriptor | None, Finding]:
    """Push a manifest with our artifactType, else without; returns what is there then."""
    refusal = ""
    for artifact_type in (media_type.SEGMENT, None):
        content = Manifest(artifact_type, EMPTY_CONFIG, (EMPTY_CONFIG,), _NOTE).render()
        try:
            await registry.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
            made = Descriptor(media_type.IMAGE_MANIFEST, Digest.of(content), len(content))
            await registry.push_manifest(str(made.digest), content, made.media_type)
        except RegistryError as error:
            refusal = refusal or str(error)
            continue
        taken = "taken" if artifact_type else "not taken: segments go without it, and their tables tell"
        return made, good(TYPE, taken)
    return None, wrong(TYPE, f"no manifest is taken, with it or without: {refusal}")


async def _check_deletion(registry: Registry, remover: RegistryRemover, made: Descriptor | None) -> Finding:
    if made is None:
        return warning(DELETION, "not tried, as no manifest was taken")
    content = ImageIndex(manifests=(made,), annotations=_NOTE).render()
    is_kept = False
    try:
        index = await registry.push_manifest(str(Digest.of(content)), content, media_type.IMAGE_INDEX)
        try:
            await remover.remove(made.digest)
        except ReferencedError:
            is_kept = True
        await remover.remove(index)
        if is_kept:
            await remover.remove(made.digest)
    except RegistryError as error:
        text = f"refused, so gc cannot delete, and manifests of doctor's stay: {error}"
        return warning(DELETION, text, "publishing works; gc needs what the error says")
    if is_kept:
        return good(DELETION, "allowed, but an index goes before what it lists: gc takes a grace longer")
    return good(DELETION, "allowed: what was made to try it is gone")
