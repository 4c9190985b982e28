"""The verb ``info``: all that a cache knows of store paths, or of what roots became.

With ``--json``, ``{"paths": [...], "failed": [...]}`` with one object a store path: the fields that ``list``
gives, and those of ``Info.to_json``.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.closure import Closure, measure_closure
from nixcache_oci.cache.inventory import Entry, Listed
from nixcache_oci.cache.keepers import Keepers, Root
from nixcache_oci.cache.parallel import run_at_once
from nixcache_oci.cache.record import PinRecord
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.cli.cache_view import add_view_flags, read_cache, read_keepers
from nixcache_oci.cli.compose import run_async, start_logging
from nixcache_oci.cli.console import say, say_json
from nixcache_oci.cli.list import JsonObject, failed_json, listed_json, pin_json, root_json, time_json
from nixcache_oci.cli.paths import Asked, add_paths, find_all
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, judge_signatures
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.settings import variables
from nixcache_oci.settings.values import Values
from nixcache_oci.wording import counted, format_size

DESCRIPTION = (
    "Show what a cache knows of a store path: narinfo, signatures, where its bytes lie, which "
    "segments list it, what keeps it, and how much it reaches."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    add_paths(parser, of_cache=True)
    add_view_flags(parser)


def run(values: Values) -> int:
    """Show."""
    start_logging(values)
    asked = Asked.read(values.flags, "info", act="show")
    configured = values.get(variables.PUBLIC_KEYS)
    view = run_async(read_cache(values))
    keepers = read_keepers(view)
    tables = view.inventory.tables
    look = Look(tables.catalog(configured), configured or tables.recorded_keys, keepers)
    found, left_out = find_all(view, keepers.roots, asked)
    infos = [look.at(variants) for variants in found]
    if values.flags.json:
        say_json({"paths": [info.to_json() for info in infos], "failed": failed_json(left_out)})
    elif asked.nothing is not None:
        say(asked.nothing)
    else:
        texts = [info.to_lines() for info in infos]
        say(*texts[0], *(line for text in texts[1:] for line in ("", *text)))
    return DONE if view.is_whole and keepers.is_whole and not left_out else FAILED


@dataclass(frozen=True, slots=True)
class Info:
    """What is known of one store path.

    Attributes:
        shown: the variant that clients get, or the first one where they get none.
        is_served: whether clients get it: not where keys are configured, and none of them signed it.
        verdicts: on the signatures, by the name of their key.
    """

    shown: Entry
    is_served: bool
    variants: tuple[Entry, ...]
    verdicts: Mapping[str, str]
    roots: tuple[Root, ...]
    pins: tuple[PinRecord, ...]
    closure: Closure

    def to_json(self) -> JsonObject:
        """Give all of it; sizes are bytes, ``offset`` and ``length`` are null outside of packs."""
        url = self.shown.url
        return {
            **listed_json(Listed.of(self.shown)),
            "narinfo": self.shown.narinfo.render(),
            "served": self.is_served,
            "signatures": dict(self.verdicts),
            "contentAddressed": is_content_addressed(self.shown.narinfo),
            "blob": str(url.blob),
            "offset": url.offset,
            "length": url.length,
            "segments": [variant.listed_by for variant in self.variants],
            "variants": [self._variant_json(variant) for variant in self.variants],
            "roots": [root_json(root) for root in self.roots],
            "pins": [pin_json(pin) for pin in self.pins],
            "closure": {
                "paths": self.closure.paths,
                "narSize": self.closure.nar_size,
                "fileSize": self.closure.file_size,
                "elsewhere": self.closure.elsewhere,
            },
        }

    def to_lines(self) -> list[str]:
        """Write the narinfo, then what it does not hold."""
        url = self.shown.url
        where = f"blob {url.blob}"
        if url.offset is not None:
            where = f"pack {url.blob}, {counted(url.length or 0, 'byte')} from {url.offset} on"
        closure, elsewhere = self.closure, self.closure.elsewhere
        paths = counted(closure.paths, "path")
        size, packed = format_size(closure.nar_size), format_size(closure.file_size)
        return [
            *self.shown.narinfo.render().splitlines(),
            "",
            f"Served: {'yes' if self.is_served else 'no, no configured key signed it'}",
            f"Bytes: {where}",
            *self._signature_lines(),
            *(f"Listed by: {variant.listed_by}{self._notes(variant)}" for variant in self.variants),
            *(
                f"Root: {root.name} of {root.scope}, built {time_json(root.built)}"
                + (f"; failed {time_json(root.failed)}" if root.failed is not None else "")
                for root in self.roots
            ),
            *(f"Pin: {pin.name}, pinned {format_time(pin.time)}, kept {pin.keep_text}" for pin in self.pins),
            f"Closure: {paths}, {size}, {packed} compressed; {elsewhere} more elsewhere",
        ]

    def _variant_json(self, variant: Entry) -> JsonObject:
        return {
            "segment": variant.listed_by,
            "published": time_json(variant.published),
            "condemned": variant.is_condemned,
            "narHash": str(variant.narinfo.nar_hash),
            "url": variant.narinfo.url,
            "signedBy": [sig.key_name for sig in variant.narinfo.sigs],
            "served": self._is_served(variant),
        }

    def _signature_lines(self) -> list[str]:
        lines = [f"Signature of {name}: {verdict}" for name, verdict in self.verdicts.items()]
        if is_content_addressed(self.shown.narinfo):
            lines.append("Content address: good, so no signature is needed")
        return lines or ["Signature: none"]

    def _notes(self, variant: Entry) -> str:
        notes = []
        if variant.segment is not None and variant.segment.condemned is not None:
            notes.append(f"condemned {format_time(variant.segment.condemned)}")
        if variant.narinfo.nar_hash != self.shown.narinfo.nar_hash:
            notes.append(f"another NAR, {variant.narinfo.nar_hash}")
        if len(self.variants) > 1 and self._is_served(variant):
            notes.append("served")
        return f" ({', '.join(notes)})" if notes else ""

    def _is_served(self, variant: Entry) -> bool:
        # Several segments may list the very same: clients get either.
        return self.is_served and variant.narinfo == self.shown.narinfo


@dataclass(frozen=True, slots=True)
class Look:
    """Gathers what is known of store paths; the catalog chooses as a proxy with the same settings does."""

    catalog: Catalog
    keys: Sequence[PublicKey]
    keepers: Keepers

    def at(self, variants: Sequence[Entry]) -> Info:
        """Gather it for one store path, of which these are all variants."""
        path = variants[0].narinfo.store_path
        served = self._served(path.hash_part)
        shown = next((one for one in variants if one.narinfo == served), variants[0])
        return Info(
            shown,
            served is not None,
            tuple(variants),
            judge_signatures(shown.narinfo, self.keys),
            tuple(root for root in self.keepers.roots if path in root.paths),
            tuple(pin for pin in self.keepers.pins if pin.path == path),
            run_at_once(measure_closure(self.catalog, shown.narinfo)),
        )

    def _served(self, hash_part: HashPart) -> NarInfo | None:
        text = self.catalog.find(hash_part)
        return NarInfo.parse(text) if text is not None else None
