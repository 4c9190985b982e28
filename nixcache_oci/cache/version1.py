"""Version 1: the index of the older tool of the same name, read as it is.

One JSON document holds every narinfo; NARs are plain blobs named by ``nar_digest``, and a narinfo's own URL
does not say where. It is turned into the text of a table, so that all else knows one format only.
Source: design section 2, "Version 1".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from nixcache_oci.cache.nar_url import SUFFIXES, NarUrl
from nixcache_oci.cache.table import MAX_STANZA_BYTES, Table, TableHeader
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.document import clip
from nixcache_oci.oci.manifest import Manifest

# About 300,000 entries: the document is parsed in memory, once.
MAX_DOCUMENT_BYTES: Final = 256 * 1024 * 1024

_STORE_DIR: Final = "/nix/store"  # the older tool knew no other


@dataclass(frozen=True, slots=True)
class Version1:
    """A version 1 index as a table.

    Attributes:
        table: its narinfos, with URLs that say where the bytes lie.
        skipped: hash part and reason of each entry that cannot be served; ``public_key`` and ``gc_roots``
            among them where those cannot be read.
        gc_roots: what the older tool's garbage collection kept, with its closure; not all of them need be
            entries.
    """

    table: Table
    skipped: tuple[tuple[str, str], ...]
    gc_roots: tuple[StorePath, ...] = ()


def version1_layer(manifest: Manifest) -> Descriptor:
    """Find the document in the manifest that ``cache-index`` points at.

    Raises:
        FormatError: the manifest is not a version 1 index.
    """
    if not manifest.layers or manifest.layers[0].media_type != media_type.INDEX_V1:
        raise FormatError("cache-index: an image manifest, but not the index of a Nix cache")
    return manifest.layers[0]


def parse_version1(content: bytes | bytearray) -> Version1:
    """Read the document.

    Raises:
        FormatError: not such a document. An entry that is malformed is skipped and named.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"version 1 index: not JSON: {error}") from None
    match document:
        case {"version": 1, "entries": dict(entries)}:
            pass
        case _:
            raise FormatError("version 1 index: expected an object with version 1 and entries")
    narinfos: dict[HashPart, NarInfo] = {}
    skipped: list[tuple[str, str]] = []
    for hash_part, entry in entries.items():
        try:
            narinfo = _parse_entry(hash_part, entry)
        except FormatError as error:
            skipped.append((hash_part[:80], str(error)))
        else:
            narinfos[narinfo.store_path.hash_part] = narinfo
    keys: tuple[str, ...] = ()
    match document.get("public_key"):
        case str(text) if text.strip():
            try:
                keys = (str(PublicKey.parse(text)),)
            except FormatError as error:
                skipped.append(("public_key", str(error)))
    gc_roots, skipped_roots = _parse_gc_roots(document.get("gc_roots"), narinfos)
    table = Table(TableHeader(EPOCH, public_keys=keys), (), tuple(narinfos.values()))
    return Version1(table, (*skipped, *skipped_roots), tuple(gc_roots))


def _parse_entry(hash_part: str, entry: object) -> NarInfo:
    match entry:
        case {"narinfo": str(text), "nar_digest": str(digest)}:
            pass
        case _:
            raise FormatError("version 1 index: an entry needs narinfo and nar_digest")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise FormatError("version 1 index: half of a surrogate pair, which UTF-8 cannot write") from None
    narinfo = NarInfo.parse(encoded if encoded.endswith(b"\n") else encoded + b"\n")
    if narinfo.store_path.hash_part != hash_part:
        raise FormatError(f"version 1 index: {hash_part[:80]!r} holds the narinfo of {narinfo.store_path}")
    blob = Digest.parse(digest if ":" in digest else f"sha256:{digest}")
    narinfo = replace(narinfo, url=str(NarUrl(blob, suffix=SUFFIXES[narinfo.compression])))
    size = len(narinfo.render().encode())
    if size > MAX_STANZA_BYTES:
        raise FormatError(f"version 1 index: a narinfo of {size} bytes, over the limit of {MAX_STANZA_BYTES}")
    return narinfo


def _parse_gc_roots(
    recorded: object, narinfos: Mapping[HashPart, NarInfo]
) -> tuple[list[StorePath], list[tuple[str, str]]]:
    gc_roots: dict[StorePath, None] = {}
    skipped: list[tuple[str, str]] = []
    match recorded:
        case None:
            values: list[object] = []
        case list():
            values = recorded
        case _:
            values = [recorded]
    for value in values:
        try:
            gc_roots[_parse_gc_root(value, narinfos)] = None
        except FormatError as error:
            skipped.append(("gc_roots", str(error)))
    return list(gc_roots), skipped


def _parse_gc_root(recorded: object, narinfos: Mapping[HashPart, NarInfo]) -> StorePath:
    """Read a store path, a base name, or the hash part of an entry."""
    if not isinstance(recorded, str):
        raise FormatError(f"version 1 index: expected a store path, got {clip(recorded)}")
    store_dir, slash, base_name = recorded.rpartition("/")
    hash_part, dash, _ = base_name.partition("-")
    if (dash or not slash) and hash_part in narinfos:
        return narinfos[HashPart(hash_part)].store_path
    if not dash:
        raise FormatError(f"version 1 index: no entry, and no store path: {recorded[:80]!r}")
    return StorePath.from_base_name(base_name, store_dir if slash else _STORE_DIR)
