"""Publishing what the proxy was sent: puts the publisher together for each batch."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import replace
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.progress import SILENT, Stage
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import open_repository
from nixcache_oci.cli.publishing import own_run
from nixcache_oci.clients.binary_cache.source import BinaryCache
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.package_name import package_name
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.uploads.interface import UploadSettings, Writers
from nixcache_oci.publisher.draft import sign_all
from nixcache_oci.publisher.import_candidates import read_candidates
from nixcache_oci.publisher.importer import Importer
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.settings import variables
from nixcache_oci.settings.cache_config import CacheConfig
from nixcache_oci.settings.file_config import signing_keys
from nixcache_oci.settings.repository_config import segment_options, upload_dir
from nixcache_oci.settings.values import Values
from nixcache_oci.settings.writers import writers

SCOPE: Final = "upload"

_JOBS: Final = 4

_log = logging.getLogger(__name__)


def upload_settings(
    values: Values, config: ProxyConfig, caches: Mapping[str, CacheConfig]
) -> dict[str, UploadSettings]:
    """Parse how uploads to each cache are taken, by the names of their repositories.

    Who may write is one object: a login is one for all of them. UsageError for an unusable value.
    """
    chosen_writers = writers(values)
    return {name: _settings_of(values, config, cache, name, chosen_writers) for name, cache in caches.items()}


def _settings_of(
    values: Values, config: ProxyConfig, cache: CacheConfig, repository_name: str, chosen_writers: Writers
) -> UploadSettings:
    segments = segment_options(values, cache.location, cache.repo)
    options = PublishOptions(
        keys=signing_keys(values),
        segments=segments,
        jobs=_JOBS,
    )

    def sign(narinfo: NarInfo) -> NarInfo:
        [signed] = sign_all([narinfo], options.keys)
        return signed

    async def publish(
        source: BinaryCache, parts: Sequence[HashPart], has_nars: bool
    ) -> Mapping[HashPart, str]:
        # What the cache has is listed with more signatures, not with ours: its NAR is not checked here.
        chosen = options if has_nars else replace(options, keys=())
        return await _publish(values, config, cache, chosen, source, parts)

    return UploadSettings(
        folder=IndexFolder.name_in(upload_dir(values), repository_name),
        most_bytes=values.get(variables.UPLOAD_SPACE),
        most_nar_bytes=segments.max_blob_bytes,
        quiet_seconds=values.get(variables.UPLOAD_QUIET),
        writers=chosen_writers,
        sign=sign,
        is_signing=bool(options.keys),
        publish=publish,
    )


async def _publish(
    values: Values,
    config: ProxyConfig,
    cache: CacheConfig,
    options: PublishOptions,
    source: BinaryCache,
    parts: Sequence[HashPart],
) -> Mapping[HashPart, str]:
    upstreams = Upstreams(open_upstreams(config.upstreams, values.environment))
    try:
        async with AsyncExitStack() as stack:
            repository = open_repository(cache.location, cache.environment, push=True)
            stack.push_async_callback(repository.close)
            candidates = await read_candidates(source, parts, config.store_dir, (), frozenset())
            index_folder = await asyncio.to_thread(IndexFolder, config.index_dir, repository.name)
            importer = Importer(repository, source, index_folder, upstreams, options, _LogProgress())
            chosen = await importer.plan(candidates)
            record = PublishRecord(SCOPE, own_run(), now(), is_partial=True)
            published = await importer.take(chosen, record, lambda path: package_name(path.name))
    finally:
        await upstreams.close()
    wanted = set(parts)
    reasons: dict[HashPart, str] = {}
    for name, reason in {**chosen.left_out, **published.failed}.items():
        try:
            part = HashPart.of(name)
        except FormatError:
            continue
        if part in wanted:
            reasons[part] = f"{name}: {reason}"
    return reasons


class _LogProgress:
    """Logs what a publisher says; stages are not shown."""

    def note(self, line: str) -> None:
        """Log a note."""
        _log.info(line)

    def warn(self, line: str) -> None:
        """Log a warning."""
        _log.warning(line)

    stage: Final[Callable[..., AbstractContextManager[Stage]]] = SILENT.stage
