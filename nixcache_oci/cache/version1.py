"""Version 1: the index of the older tool of the same name.

One JSON document holds every narinfo; NARs are plain blobs named by ``nar_digest``, not by the narinfo's URL.
It is converted to the text of a table, so that all other code knows one format. It is parsed one entry at a
time: as a whole, 64 MiB of JSON may take 1.5 GiB.
Source: design section 2, "Version 1".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from nixcache_oci.cache.json_stream import JsonStream
from nixcache_oci.cache.nar_url import SUFFIXES, NarUrl
from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, TableHeader, render_table
from nixcache_oci.cache.table_search import MAX_STANZA_BYTES
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
from nixcache_oci.wording import counted

MAX_DOCUMENT_BYTES: Final = MAX_TABLE_BYTES
"""Some 75,000 entries: the document and its narinfos are held in memory."""
MAX_ENTRIES: Final = 200_000
"""And as many roots. A valid entry has 350 bytes; smaller ones are skipped, but counted."""

_SHOWN: Final = 20  # skipped entries: all may be

_STORE_DIR: Final = "/nix/store"  # the older tool knew no other


@dataclass(slots=True)
class Version1:
    """A version 1 index as a table.

    Attributes:
        narinfos: as in a table, with URLs of this cache.
        public_keys: the recorded one, if it is valid.
        gc_roots: roots of the older tool's garbage collection; not all need be entries.
        unreadable: names of malformed entries.
        skipped: name and reason of the first malformed entries, ``public_key`` and ``gc_roots``.
        skipped_count: how many were skipped in all.
    """

    narinfos: dict[HashPart, bytes] = field(default_factory=dict)
    public_keys: tuple[str, ...] = ()
    gc_roots: tuple[StorePath, ...] = ()
    unreadable: set[str] = field(default_factory=set)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    skipped_count: int = 0

    def skip(self, name: str, reason: str) -> None:
        """Note a malformed item."""
        self.skipped_count += 1
        if len(self.skipped) < _SHOWN:
            self.skipped.append((name[:80], reason))

    def to_table(self) -> Table:
        """Parse the narinfos, which takes five times their size."""
        narinfos = map(NarInfo.parse, self.narinfos.values())
        return Table(TableHeader(EPOCH, public_keys=self.public_keys), (), tuple(narinfos))

    def text(self) -> Iterator[bytes]:
        """Yield the table's text, stanza by stanza."""
        yield render_table(Table(TableHeader(EPOCH, public_keys=self.public_keys)))
        for hash_part in sorted(self.narinfos):
            yield b"\n" + self.narinfos[hash_part]


def version1_layer(manifest: Manifest) -> Descriptor:
    """Find the document in the manifest that ``cache-index`` points at.

    Raises:
        FormatError: the manifest is not a version 1 index.
    """
    if not manifest.layers or manifest.layers[0].media_type != media_type.INDEX_V1:
        raise FormatError("cache-index: an image manifest, but not the index of a Nix cache")
    return manifest.layers[0]


def parse_version1(content: bytes | bytearray) -> Version1:
    """Parse the document, in at most as much memory again; malformed entries are skipped and named.

    Raises:
        FormatError: not such a document, or over 200,000 entries, roots or fields.
    """
    stream = JsonStream(content, "version 1 index")
    found = Version1()
    version: object = None
    has_entries = False
    key: object = None
    roots: list[object] = []
    for name in _bounded(stream.members()):
        match name:
            case "version":
                version = stream.value()
            case "entries" if stream.is_at("{"):
                has_entries = True
                _read_entries(stream, found)
            case "public_key":
                key = stream.value()
            case "gc_roots" if stream.is_at("["):
                roots = [stream.value() for _ in _bounded(stream.elements())]
            case "gc_roots":
                roots = [value] if (value := stream.value()) is not None else []
            case _:
                stream.skip()
    stream.end()
    if type(version) is not int or version != 1 or not has_entries:
        raise FormatError("version 1 index: expected an object with version 1 and entries")
    if isinstance(key, str) and key.strip():
        try:
            found.public_keys = (str(PublicKey.parse(key)),)
        except FormatError as error:
            found.skip("public_key", str(error))
    found.gc_roots = _parse_gc_roots(roots, found)
    return found


def _read_entries(stream: JsonStream, found: Version1) -> None:
    # If a name is repeated, its last value counts.
    found.narinfos.clear()
    for name in _bounded(stream.members()):
        entry = stream.value()
        try:
            narinfo = _parse_entry(name, entry)
        except FormatError as error:
            found.unreadable.add(name[:80])
            found.skip(name, str(error))
        else:
            found.narinfos[narinfo.store_path.hash_part] = narinfo.render().encode()


def _bounded(members: Iterator[str]) -> Iterator[str]:
    for count, name in enumerate(members):
        if count >= MAX_ENTRIES:
            raise FormatError(f"version 1 index: over the limit of {MAX_ENTRIES} entries, roots or fields")
        yield name


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
        raise FormatError(
            f"version 1 index: a narinfo of {counted(size, 'byte')}, over the limit of {MAX_STANZA_BYTES}"
        )
    return narinfo


def _parse_gc_roots(recorded: list[object], found: Version1) -> tuple[StorePath, ...]:
    gc_roots: dict[StorePath, None] = {}
    for value in recorded:
        try:
            gc_roots[_parse_gc_root(value, found.narinfos)] = None
        except FormatError as error:
            found.skip("gc_roots", str(error))
    return tuple(gc_roots)


def _parse_gc_root(recorded: object, narinfos: Mapping[HashPart, bytes]) -> StorePath:
    """Read a store path, a base name, or the hash part of an entry."""
    if not isinstance(recorded, str):
        raise FormatError(f"version 1 index: expected a store path, got {clip(recorded)}")
    store_dir, slash, base_name = recorded.rpartition("/")
    hash_part, dash, _ = base_name.partition("-")
    if (dash or not slash) and hash_part in narinfos:
        return NarInfo.parse(narinfos[HashPart(hash_part)]).store_path
    if not dash:
        raise FormatError(f"version 1 index: no entry, and no store path: {recorded[:80]!r}")
    return StorePath.from_base_name(base_name, store_dir if slash else _STORE_DIR)
