"""The verb ``list``: what a cache holds, or what keeps it."""

import argparse
import json
import sys
from collections.abc import Iterable, MutableMapping, Sequence
from datetime import datetime

from nixcache_oci.cache.inventory import Entry, Root
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.cli.cache_view import CacheView, add_view_flags, read_cache
from nixcache_oci.cli.compose import run_async, set_up_quiet_logging
from nixcache_oci.cli.format import format_size
from nixcache_oci.cli.table import print_table
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.settings.variable import Values


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "list",
        description="List the store paths of a cache with their sizes, or the roots that keep them.",
        allow_abbrev=False,
    )
    parser.add_argument("--roots", action="store_true", help="list what publishes recorded as roots instead")
    add_view_flags(parser)


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """List."""
    set_up_quiet_logging(Values(environment, arguments))
    view = run_async(read_cache(arguments, environment))
    if arguments.roots:
        roots = view.inventory.roots()
        _print_json("roots", map(root_json, roots)) if arguments.json else _print_roots(roots)
    else:
        entries = sorted(view.inventory.entries(), key=_by_name)
        _print_json("paths", map(entry_json, entries)) if arguments.json else _print_entries(view, entries)
    return DONE if view.is_whole else FAILED


def entry_json(entry: Entry) -> dict[str, object]:
    """Tell one narinfo; sizes are bytes."""
    narinfo = entry.narinfo
    return {
        "path": str(narinfo.store_path),
        "narHash": str(narinfo.nar_hash),
        "narSize": narinfo.nar_size,
        "fileSize": narinfo.file_size,
        "compression": narinfo.compression,
        "signedBy": [sig.key_name for sig in narinfo.sigs],
        "published": _time(entry.published),
        "condemned": entry.is_condemned,
    }


def root_json(root: Root) -> dict[str, object]:
    """Tell one root."""
    return {
        "scope": root.scope,
        "name": root.name,
        "paths": [str(path) for path in root.paths],
        "built": _time(root.built),
        "failed": _time(root.failed),
    }


def _time(time: datetime | None) -> str | None:
    return format_time(time) if time is not None else None


def _print_json(name: str, objects: Iterable[dict[str, object]]) -> None:
    print(json.dumps({name: list(objects)}, indent=2))


def _print_entries(view: CacheView, entries: Sequence[Entry]) -> None:
    rows = [
        (
            entry.narinfo.store_path.base_name,
            format_size(entry.narinfo.nar_size),
            format_size(entry.narinfo.file_size) if entry.narinfo.file_size is not None else "-",
            _time(entry.published) or "-",
            "condemned" if entry.is_condemned else "",
        )
        for entry in entries
    ]
    print_table(rows)
    size = sum(entry.narinfo.nar_size for entry in entries)
    packed = sum(entry.narinfo.file_size or 0 for entry in entries)
    segments = len(view.inventory.tables.listing.tables)
    print(
        f"{view.name}: {len(entries)} paths, {format_size(size)}, {format_size(packed)} compressed, "
        f"{segments} segments",
        file=sys.stderr,
    )


def _print_roots(roots: Iterable[Root]) -> None:
    rows = []
    for root in roots:
        note = f"failed {_time(root.failed)}" if root.failed is not None else ""
        paths = [path.base_name for path in root.paths] or ["-"]
        rows += [(root.scope, root.name, _time(root.built) or "-", path, note) for path in paths]
    print_table(rows)


def _by_name(entry: Entry) -> tuple[str, str]:
    path = entry.narinfo.store_path
    return path.name, path.hash_part
