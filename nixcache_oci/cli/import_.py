"""The verb ``import``: takes an existing binary cache in, as it is."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.progress import Progress
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import start_logging
from nixcache_oci.cli.publish_report import PublishReport, describe_plan, report_nothing
from nixcache_oci.cli.publishing import PublishSettings, add_sending_flags, publish_settings, run_publisher
from nixcache_oci.clients.binary_cache.folder import FolderCache
from nixcache_oci.clients.binary_cache.source import BinaryCache, read_store_dir
from nixcache_oci.clients.binary_cache.web import WebCache
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.nix.nar_check import can_unpack
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.publisher.import_candidates import Candidates, read_candidates
from nixcache_oci.publisher.importer import Importer
from nixcache_oci.settings import variables
from nixcache_oci.settings.values import Values
from nixcache_oci.wording import counted

_JOBS: Final = 8  # what comes from a distance is waited for, and not computed

DESCRIPTION = (
    "Take an existing binary cache in: its NARs as they are compressed, its signatures as they are; "
    "each NAR is checked on the way. A folder, or a file:// URL, is taken whole unless paths are "
    "named. A cache behind http:// or https:// cannot be listed: name store paths (or hash parts), "
    "or give --stdin; each comes with all that it refers to there. What is wrong is named and left "
    "out, with what refers to it. A second run sends what is new."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument(
        "source", metavar="URL|DIR", help="a folder, file:///path, or https://cache.example.org"
    )
    parser.add_argument("paths", nargs="*", default=[], metavar="PATH", help="store path or hash part")
    parser.add_argument(
        "--stdin", action="store_true", help="read more paths from standard input, one per line"
    )
    add_sending_flags(parser, variables.PUBLIC_KEYS, variables.STORE_DIR, usual_jobs=str(_JOBS))
    # What only those need who compress.
    parser.set_defaults(compression="zstd", level=None, verify_upstream=False)


def run(values: Values) -> int:
    """Import."""
    start_logging(values)
    arguments = values.flags
    lines = [*arguments.paths, *(sys.stdin if arguments.stdin else ())]
    wanted = [_parse_path(line.strip()) for line in lines if line.strip()]
    keys, store_dir = values.get(variables.PUBLIC_KEYS), values.get(variables.STORE_DIR)
    settings = publish_settings(values)
    settings = replace(settings, options=replace(settings.options, jobs=arguments.jobs or _JOBS))
    if not wanted and arguments.stdin:
        nothing = report_nothing(settings, "nothing to import: no paths on standard input")
        return run_publisher(nothing, settings.actions)
    if not wanted and not _is_folder(arguments.source):
        raise UsageError(
            "import: no paths; a web server cannot be asked what it has: name some behind "
            f"{arguments.source}, or give --stdin and one on each line of standard input"
        )
    return run_publisher(_import(settings, wanted, keys, store_dir), settings.actions)


async def _import(
    settings: PublishSettings,
    wanted: Sequence[StorePath | HashPart],
    public_keys: Sequence[PublicKey],
    store_dir: str,
) -> int:
    async with AsyncExitStack() as stack:
        progress = stack.enter_context(settings.progress)
        repository = await stack.enter_async_context(settings.opened())
        source = _open_source(settings.flags.source)
        stack.push_async_callback(source.close)
        record = _make_record(settings, source, is_partial=bool(wanted))
        its_store = await read_store_dir(source)
        if its_store != store_dir:
            raise Error(
                f"{source.name}: is for the store {its_store}, and this cache for {store_dir}; see "
                f"{variables.STORE_DIR.name}"
            )
        upstream_keys = settings.options.upstream_key_names
        candidates = await read_candidates(source, wanted, store_dir, public_keys, upstream_keys, progress)
        upstreams = Upstreams(open_upstreams(settings.upstreams, settings.values.environment))
        stack.push_async_callback(upstreams.close)
        folder = await asyncio.to_thread(IndexFolder, settings.index_dir, repository.name)
        importer = Importer(repository, source, folder, upstreams, settings.options, progress)
        chosen = await importer.plan(candidates)
        for name, reason in chosen.left_out.items():
            progress.warn(f"{name}: left out: {reason}")
        progress.note(describe_plan(chosen.plan, repository.name))
        _note_unchecked(candidates, progress)
        if settings.options.is_strict and chosen.left_out:
            raise Error(f"--strict: nothing is imported, for {next(iter(chosen.left_out))} is left out")
        report = PublishReport(settings, repository.name, chosen.plan, left_out=chosen.left_out)
        if settings.flags.dry_run:
            importer.committer.warn_of_doubts(chosen.plan)
            return report.finish()
        report.published = published = await importer.take(chosen, record)
        for base_name, reason in published.failed.items():
            if base_name not in reason:  # otherwise it was said when it happened
                progress.warn(f"{base_name}: left out: {reason}")
    return report.finish()


def _note_unchecked(candidates: Candidates, progress: Progress) -> None:
    """Name the compressions that cannot be unpacked here."""
    others = [one.compression for one in candidates.narinfos.values() if not can_unpack(one.compression)]
    if others:
        progress.note(
            f"{counted(len(others), 'NAR')} compressed with {', '.join(sorted(set(others)))}, which is not "
            "unpacked here: only FileHash is checked, and no signature added"
        )


def _make_record(settings: PublishSettings, source: BinaryCache, *, is_partial: bool) -> PublishRecord:
    scope = settings.flags.scope or f"import/{quote(source.name, safe='/:[]~+')}"
    try:
        return PublishRecord(scope, settings.run, now(), is_partial=is_partial)
    except FormatError as error:
        raise UsageError(f"--scope: {error}") from None


def _is_folder(source: str) -> bool:
    return not source.lower().startswith(("http://", "https://"))


def _open_source(source: str) -> BinaryCache:
    if not _is_folder(source):
        [upstream] = open_upstreams([source])
        return WebCache(upstream)
    if not source.lower().startswith("file://"):
        return FolderCache(Path(source).absolute())
    parts = urlsplit(source)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UsageError(f"import: {source[:200]!r}: expected file:///path")
    return FolderCache(Path(unquote(parts.path)))


def _parse_path(text: str) -> StorePath | HashPart:
    try:
        return StorePath.parse(text.rstrip("/")) if "/" in text else HashPart(text)
    except FormatError as error:
        raise UsageError(f"import: {error}") from None
