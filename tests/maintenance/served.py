"""What a reader of a model repository would see: written anew here, from the format alone.

It shares no code with what it checks but the names of tags and annotations, and takes nothing on trust:
a path is served if its bytes are where its URL says, and are the right ones.
"""

import hashlib
import json
import re
from dataclasses import dataclass

import zstandard

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.oci.digest import Digest
from tests.support.model_repository import ModelStorage

TAG = re.compile(r"segment-(\d{8}t\d{6}z)-([0-9a-f]{64})", re.IGNORECASE)
URL = re.compile(r"nar/([0-9a-f]{64})(?:/(\d+)-(\d+))?\.nar.*")


@dataclass(frozen=True)
class Entry:
    """One narinfo of a table."""

    base_name: str
    references: frozenset[str]
    blob: str
    start: int
    length: int | None
    file_hash: str


@dataclass(frozen=True)
class View:
    """What is there at one moment, by base name."""

    served: dict[str, frozenset[str]]
    good: frozenset[str]
    runs: frozenset[str]
    listed: int
    condemned: int
    unmerged: int
    index_bytes: int
    tables: dict[str, int]

    def broken(self, upstream: frozenset[str]) -> set[str]:
        """Find references of served paths that nobody serves."""
        wanted = {reference for references in self.served.values() for reference in references}
        return wanted - self.served.keys() - upstream


class Reader:
    """Reads one storage again and again; what cannot change is read once."""

    def __init__(self, storage: ModelStorage) -> None:
        self._storage = storage
        self._tables: dict[str, list[Entry]] = {}
        self._runs: dict[str, frozenset[str]] = {}
        self._checked: set[Entry] = set()

    def view(self) -> View:
        listed, watermark = self._index()
        for tag in self._storage.tags:
            match = TAG.fullmatch(tag)
            if match and match[1].upper() >= watermark and f"sha256:{match[2]}" not in listed:
                manifest = json.loads(self._storage.manifests[Digest(match[2])])
                layers = manifest["layers"]
                listed[f"sha256:{match[2]}"] = {
                    **manifest["annotations"],
                    "dev.nixcache.table": layers[0]["digest"],
                }
        taken_in = {
            f"sha256:{named}"
            for notes in listed.values()
            if "dev.nixcache.condemned" not in notes
            for named in notes.get("dev.nixcache.merges", "").split()
        }
        served: dict[str, frozenset[str]] = {}
        good: set[str] = set()
        runs: set[str] = set()
        condemned = unmerged = 0
        tables: dict[str, int] = {}
        for digest, notes in listed.items():
            is_condemned = "dev.nixcache.condemned" in notes
            condemned += is_condemned
            if Digest.parse(digest) not in self._storage.manifests:
                assert is_condemned, "a manifest that is listed and not condemned is gone"
                continue
            for entry in self.entries(notes["dev.nixcache.table"]):
                self._check(entry)  # older readers see what was taken in, too
            if digest in taken_in:
                continue
            unmerged += not is_condemned
            tables[notes["dev.nixcache.table"]] = len(self._blob(notes["dev.nixcache.table"]))
            runs |= self._runs_of(notes["dev.nixcache.table"])
            for entry in self.entries(notes["dev.nixcache.table"]):
                served[entry.base_name] = served.get(entry.base_name, frozenset()) | entry.references
                if not is_condemned:
                    good.add(entry.base_name)
        size = len(self._storage.manifests.get(self._storage.tags.get("cache-index", Digest.of(b"")), b""))
        return View(served, frozenset(good), frozenset(runs), len(listed), condemned, unmerged, size, tables)

    def sizes(self) -> int:
        """Bytes of all blobs and manifests."""
        manifests = sum(len(content) for content in self._storage.manifests.values())
        return manifests + sum(len(content) for content in self._storage.blobs.values())

    def _index(self) -> tuple[dict[str, dict[str, str]], str]:
        """Read annotations of each segment, by digest, and the watermark as tags have it."""
        if "cache-index" not in self._storage.tags:
            return {}, "19700101T000000Z"
        index = json.loads(self._storage.manifests[self._storage.tags["cache-index"]])
        listed = {one["digest"]: one["annotations"] for one in index["manifests"]}
        return listed, re.sub("[-:]", "", index["annotations"]["dev.nixcache.watermark"])

    def _blob(self, digest: str) -> bytes:
        return self._storage.blobs[Digest.parse(digest)]

    def entries(self, table: str) -> list[Entry]:
        if table not in self._tables:
            text = self._text(table)
            stanzas = [stanza for stanza in text.split("\n\n") if stanza.startswith("StorePath: ")]
            self._tables[table] = [read_entry(stanza) for stanza in stanzas]
        return self._tables[table]

    def _runs_of(self, table: str) -> frozenset[str]:
        if table not in self._runs:
            self._runs[table] = frozenset(
                re.findall(r"^Publish: \S+ (\S+) ", self._text(table), re.MULTILINE)
            )
        return self._runs[table]

    def _text(self, table: str) -> str:
        return zstandard.ZstdDecompressor().decompressobj().decompress(self._blob(table)).decode()

    def _check(self, entry: Entry) -> None:
        content = self._storage.blobs.get(Digest(entry.blob))
        assert content is not None, f"{entry.base_name}: its blob is gone"
        if entry not in self._checked:
            end = None if entry.length is None else entry.start + entry.length
            actual = hashlib.sha256(content[entry.start : end]).hexdigest()
            assert actual == entry.file_hash, f"{entry.base_name}: its URL points at other bytes"
            self._checked.add(entry)


def read_entry(stanza: str) -> Entry:
    fields = dict(line.split(": ", 1) for line in stanza.rstrip("\n").split("\n"))
    match = URL.fullmatch(fields["URL"])
    assert match
    base_name = fields["StorePath"].rsplit("/", 1)[1]
    return Entry(
        base_name,
        frozenset(fields["References"].split()) - {base_name},
        match[1],
        int(match[2] or 0),
        int(match[3]) if match[3] else None,
        NixHash.parse(fields["FileHash"]).digest_hex,
    )
