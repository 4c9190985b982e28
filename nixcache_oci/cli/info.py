"""The verb ``info``: all that a cache knows of one store path, or of one root."""

import argparse
import difflib
import json
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass

from nixcache_oci.cache.inventory import Entry, Inventory, Root
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cli.cache_view import add_view_flags, read_cache, recorded_keys
from nixcache_oci.cli.compose import run_async, set_up_quiet_logging
from nixcache_oci.cli.format import format_size
from nixcache_oci.cli.list import entry_json, root_json
from nixcache_oci.cli.log import escape_unprintable
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.errors import Error, FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, fingerprint
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.settings import table
from nixcache_oci.settings.variable import Values

_MOST_NEAR_NAMES = 3


@dataclass(frozen=True, slots=True)
class Closure:
    """What a path reaches within the cache; sizes are bytes.

    Attributes:
        paths: how many the cache lists, the path itself among them.
        nar_size: of all their NARs.
        file_size: of these, compressed.
        elsewhere: how many referred-to paths it does not list: an upstream's.
    """

    paths: int
    nar_size: int
    file_size: int
    elsewhere: int


@dataclass(frozen=True, slots=True)
class Info:
    """What is known of one store path.

    Attributes:
        served: what clients get.
        variants: all that is listed of it.
        verdicts: of the signatures, by the name of their key.
        roots: that are it.
        closure: what it reaches.
    """

    served: Entry
    variants: tuple[Entry, ...]
    verdicts: dict[str, str]
    roots: tuple[Root, ...]
    closure: Closure

    @property
    def segments(self) -> list[str]:
        """Tags of those that list it."""
        return [str(one.segment.tag) if one.segment is not None else "version 1" for one in self.variants]

    def to_json(self) -> dict[str, object]:
        """Tell all of it; sizes are bytes."""
        url = NarUrl.parse(self.served.narinfo.url)
        return {
            **entry_json(self.served),
            "narinfo": self.served.narinfo.render(),
            "signatures": self.verdicts,
            "blob": str(url.blob),
            "offset": url.offset,
            "length": url.length,
            "segments": self.segments,
            "roots": [root_json(root) for root in self.roots],
            "closure": {
                "paths": self.closure.paths,
                "narSize": self.closure.nar_size,
                "fileSize": self.closure.file_size,
                "elsewhere": self.closure.elsewhere,
            },
        }

    def to_text(self) -> str:
        """Write what people read: the narinfo, then what is not in it."""
        url = NarUrl.parse(self.served.narinfo.url)
        where = f"blob {url.blob}"
        if url.offset is not None:
            where = f"pack {url.blob}, {url.length} bytes from {url.offset} on"
        closure, elsewhere = self.closure, self.closure.elsewhere
        size, packed = format_size(closure.nar_size), format_size(closure.file_size)
        lines = [
            *self.served.narinfo.render().splitlines(),
            "",
            f"Bytes: {where}",
            *(f"Signature of {name}: {verdict}" for name, verdict in self.verdicts.items()),
            *(f"Listed by: {segment}" for segment in self.segments),
            *(f"Root: {root.name} of {root.scope}" for root in self.roots),
            f"Closure: {closure.paths} paths, {size}, {packed} compressed; {elsewhere} more elsewhere",
        ]
        return "\n".join(map(escape_unprintable, lines))


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "info",
        description="Show what a cache knows of a store path: narinfo, signatures, where its bytes lie, why.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what", metavar="PATH|HASH|ATTR", help="store path, its hash part, or the name of a root"
    )
    add_view_flags(parser)


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Show."""
    set_up_quiet_logging(Values(environment, arguments))
    configured = Values(environment, arguments).get(table.PUBLIC_KEYS)
    view = run_async(read_cache(arguments, environment))
    keys = configured or recorded_keys(view.inventory)
    roots = view.inventory.roots()
    found = _find(view.inventory, roots, arguments.what, view.name)
    infos = [_gather(view.inventory, roots, entries, keys) for entries in found]
    if arguments.json:
        print(json.dumps({"paths": [info.to_json() for info in infos]}, indent=2))
    else:
        print("\n\n".join(info.to_text() for info in infos))
    return DONE if view.is_whole else FAILED


def _find(inventory: Inventory, roots: Sequence[Root], what: str, name: str) -> list[list[Entry]]:
    """Find what is meant, each with all of its variants.

    Raises:
        Error: the cache has no such thing.
    """
    hash_part = _hash_part(what)
    if hash_part is not None and (entries := inventory.find(hash_part)):
        return [entries]
    named = [root for root in roots if root.name == what]
    found = [inventory.find(path.hash_part) for root in named for path in root.paths]
    if any(found):
        return list({entries[0].narinfo.store_path: entries for entries in found if entries}.values())
    if named:
        raise Error(f"{name}: the root {what} was never built; see nixcache-oci list --roots")
    near = difflib.get_close_matches(what, {root.name for root in roots}, n=_MOST_NEAR_NAMES)
    hint = f"; there is {', '.join(near)}" if near else "; see nixcache-oci list, and list --roots"
    raise Error(f"{name}: there is neither a store path nor a root {what}{hint}")


def _hash_part(what: str) -> HashPart | None:
    """Read a hash part, also at the beginning of a base name, alone or anywhere in a path."""
    for part in what.split("/"):
        try:
            return HashPart(part.partition("-")[0])
        except FormatError:
            continue
    return None


def _gather(
    inventory: Inventory, roots: Iterable[Root], variants: Sequence[Entry], keys: Sequence[PublicKey]
) -> Info:
    path = variants[0].narinfo.store_path
    text = inventory.tables.catalog(()).find(path.hash_part)
    served = next((one for one in variants if one.narinfo.render().encode() == text), variants[0])
    return Info(
        served,
        tuple(variants),
        {sig.key_name: _verdict(served.narinfo, sig.key_name, keys) for sig in served.narinfo.sigs},
        tuple(root for root in roots if path in root.paths),
        _closure(inventory, served.narinfo),
    )


def _verdict(narinfo: NarInfo, key_name: str, keys: Sequence[PublicKey]) -> str:
    known = [key for key in keys if key.name == key_name]
    if not known:
        return "unknown key"
    covered = fingerprint(narinfo)
    is_good = any(key.verify(covered, sig) for key in known for sig in narinfo.sigs)
    return "good" if is_good else "wrong"


def _closure(inventory: Inventory, narinfo: NarInfo) -> Closure:
    seen = {narinfo.store_path.base_name}
    queue, found, elsewhere = [narinfo], [narinfo], 0
    while queue:
        for reference in queue.pop().references:
            if reference in seen:
                continue
            seen.add(reference)
            hash_part = _hash_part(reference)
            entries = inventory.find(hash_part) if hash_part is not None else []
            if entries:
                queue.append(entries[0].narinfo)
                found.append(entries[0].narinfo)
            else:
                elsewhere += 1
    sizes = (sum(one.nar_size for one in found), sum(one.file_size or 0 for one in found))
    return Closure(len(found), *sizes, elsewhere)
