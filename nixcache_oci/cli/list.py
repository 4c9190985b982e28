"""The verb ``list``: what a cache holds, or what keeps it.

With ``--json``, one object a line inside one object: ``{"paths": [...]}``, or ``{"roots": [...], "pins":
[...]}``. Sizes are bytes, times are ``2026-11-21T03:15:00Z``, and what is unknown is null.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from nixcache_oci.cache.inventory import Listed
from nixcache_oci.cache.keepers import Keepers, Root
from nixcache_oci.cache.record import PinRecord
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.cli.cache_view import CacheView, add_view_flags, read_cache, read_keepers, warn
from nixcache_oci.cli.compose import run_async, start_logging
from nixcache_oci.cli.console import complain, say_json_text, say_table
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.settings.values import Values
from nixcache_oci.wording import counted, format_size

JsonObject = dict[str, object]

DESCRIPTION = (
    "List the store paths of a cache: size, compressed size, when published, and whether gc has "
    "condemned it. Or list the roots and pins that keep them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("--roots", action="store_true", help="list roots and pins instead")
    add_view_flags(parser)


def run(values: Values) -> int:
    """List."""
    start_logging(values)
    view = run_async(read_cache(values))
    show = _show_keepers if values.flags.roots else _show_paths
    is_whole = show(view, is_json=values.flags.json)
    return DONE if is_whole and view.is_whole else FAILED


def listed_json(listed: Listed) -> JsonObject:
    """Describe one store path; ``signedBy`` names keys whose signatures are not checked."""
    return {
        "path": str(listed.store_path),
        "narHash": listed.nar_hash,
        "narSize": listed.nar_size,
        "fileSize": listed.file_size,
        "compression": listed.compression,
        "signedBy": list(listed.signed_by),
        "published": time_json(listed.published),
        "condemned": listed.is_condemned,
    }


def root_json(root: Root) -> JsonObject:
    """Describe one root: ``built`` is null if it never was, ``failed`` if its newest build is good."""
    return {
        "scope": root.scope,
        "name": root.name,
        "paths": [str(path) for path in root.paths],
        "built": time_json(root.built),
        "failed": time_json(root.failed),
    }


def pin_json(pin: PinRecord) -> JsonObject:
    """Describe one pin: ``keep`` is ``until <time>``, ``for <N> revisions`` or ``forever``."""
    return {"name": pin.name, "path": str(pin.path), "pinned": format_time(pin.time), "keep": pin.keep}


def failed_json(failed: Mapping[str, str]) -> list[JsonObject]:
    """List what was left out: its store path or another name, and why."""
    return [{"name": name, "reason": reason} for name, reason in failed.items()]


def time_json(time: datetime | None) -> str | None:
    """Write a time, or None if it is unknown."""
    return format_time(time) if time is not None else None


def _show_paths(view: CacheView, *, is_json: bool) -> bool:
    contents = view.inventory.contents()
    paths = sorted(contents.paths, key=lambda one: (one.store_path.name, one.store_path.hash_part))
    if is_json:
        _print_json(paths=map(listed_json, paths))
    else:
        _print_paths(view, paths)
    for tag, reason in contents.malformed.items():
        warn(f"{tag} lists what is served to nobody: {reason}")
    return not contents.malformed


def _show_keepers(view: CacheView, *, is_json: bool) -> bool:
    keepers = read_keepers(view)
    if is_json:
        _print_json(roots=map(root_json, keepers.roots), pins=map(pin_json, keepers.pins))
    else:
        _print_keepers(view, keepers)
    return keepers.is_whole


def _print_json(**arrays: Iterable[JsonObject]) -> None:
    """Print one object a line, for ``grep``."""
    texts = []
    for name, objects in arrays.items():
        lines = ",\n".join(map(json.dumps, objects))
        texts.append(f'"{name}": [\n{lines}\n]' if lines else f'"{name}": []')
    say_json_text(f"{{{', '.join(texts)}}}")


def _print_paths(view: CacheView, paths: Sequence[Listed]) -> None:
    times = {time: time_json(time) or "-" for time in {listed.published for listed in paths}}
    rows = [
        (
            listed.store_path.base_name,
            format_size(listed.nar_size),
            format_size(listed.file_size) if listed.file_size is not None else "-",
            times[listed.published],
            "condemned" if listed.is_condemned else "",
        )
        for listed in paths
    ]
    say_table(rows)
    size = sum(listed.nar_size for listed in paths)
    packed = sum(listed.file_size or 0 for listed in paths)
    segments = len(view.inventory.tables.listing.tables)
    complain(
        f"{view.name}: {counted(len(paths), 'path')}, {format_size(size)}, {format_size(packed)} compressed, "
        f"{counted(segments, 'segment')}"
    )


def _print_keepers(view: CacheView, keepers: Keepers) -> None:
    rows = []
    for root in keepers.roots:
        note = f"failed {time_json(root.failed)}" if root.failed is not None else ""
        paths = [path.base_name for path in root.paths] or ["-"]
        rows += [(root.scope, root.name, time_json(root.built) or "-", path, note) for path in paths]
    for pin in keepers.pins:
        rows.append(("(pin)", pin.name, format_time(pin.time), pin.path.base_name, f"kept {pin.keep_text}"))
    say_table(rows)
    complain(f"{view.name}: {counted(len(keepers.roots), 'root')}, {counted(len(keepers.pins), 'pin')}")
