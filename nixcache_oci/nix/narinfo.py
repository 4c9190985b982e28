"""Narinfos: what a binary cache says of a store object.

Strict where some Nix since 2.8 fails hard, because that ends a user's build: no narinfo is better. Lenient
where every Nix is, and then written in the form that Nix writes. Malformed signatures, at which newer Nix
fails, are dropped.

Source: Nix, ``libstore/nar-info`` (there is no specification); what real versions do was observed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.content_address import ContentAddress
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.signature import Signature, read_signatures
from nixcache_oci.nix.store_path import StorePath, check_base_name
from nixcache_oci.wording import counted

COMPRESSIONS: Final = frozenset(
    {"none", "xz", "bzip2", "gzip", "zstd", "br", "lzma", "lz4", "lzip", "compress"}
)
"""What every Nix can unpack; newer ones fail at any other value."""

MAX_LINES: Final = 256
"""Limit per narinfo: ten fields occur once, and 250 signatures or unknown fields are implausible."""

_MISSING_COMPRESSION = "bzip2"
_UNKNOWN_DERIVER = "unknown-deriver"
_SINGLE_FIELDS = frozenset(
    {
        *("StorePath", "URL", "Compression", "FileHash", "FileSize"),
        *("NarHash", "NarSize", "References", "Deriver", "CA"),
    }
)
_FIELDS = _SINGLE_FIELDS | {"Sig"}
_ONCE = frozenset({"References", "CA"})  # Nix fails at a second one, unless the first was empty
MAX_URL_CHARACTERS = 4096
"""Servers accept request lines of 8 KiB; checking a URL of a megabyte takes long."""

_LINE = re.compile(r"([^:\s\x00-\x1f\x7f]+): ([^\x00-\x08\x0a-\x1f\x7f]*)")
# Nix ignores such a line: a name up to the colon, and a value from the second character after it.
_IGNORED_LINE = re.compile(r"([^:\n]*):[^\n][^\n]*")
_UNDECODABLE = "\ufffd"
_SIZE = re.compile(r"\+?([0-9]{1,20})")
_MAX_SIZE = 2**64 - 1
_ABSOLUTE_URL = re.compile(r"https?://[^/?#]+.*")
_URL = re.compile(r"[\x21-\x7e]+")
_FIRST_SEGMENT = re.compile(r"[^/?#]*")


@dataclass(frozen=True, slots=True)
class NarInfo:
    """One narinfo; every value can be written without breaking its line."""

    store_path: StorePath  # of the object
    url: str  # where its NAR is: relative to the cache's root, or absolute
    compression: str  # of the NAR at ``url``; one of ``COMPRESSIONS``
    nar_hash: NixHash  # sha256 of the NAR, uncompressed
    nar_size: int  # bytes in the NAR, uncompressed; not 0
    file_hash: NixHash | None = None  # sha256 of the file at ``url``, or None. Clients do not check it
    file_size: int | None = None  # bytes of the file at ``url``, or None
    references: tuple[str, ...] = ()  # base names, possibly its own among them
    deriver: str | None = None  # base name of the derivation that built it
    sigs: tuple[Signature, ...] = ()  # its signatures
    ca: str | None = None  # its content address, as written
    extra: tuple[tuple[str, str], ...] = ()  # names and values of fields that Nix ignores

    def __post_init__(self) -> None:
        _check_url(self.url)
        if self.compression not in COMPRESSIONS:
            raise FormatError(f"narinfo: no Nix knows the compression {self.compression[:40]!r}")
        if {self.nar_hash.algorithm, (self.file_hash or self.nar_hash).algorithm} != {"sha256"}:
            raise FormatError("narinfo: NarHash and FileHash have to be sha256")
        if not 0 < self.nar_size <= _MAX_SIZE or not 0 <= (self.file_size or 0) <= _MAX_SIZE:
            raise FormatError("narinfo: NarSize has to be above 0, both sizes below 2^64")
        for base_name in (*self.references, *([] if self.deriver is None else [self.deriver])):
            check_base_name(base_name)
        if self.ca is not None:
            ContentAddress.parse(self.ca)
        for name, value in self.extra:
            if name in _FIELDS or not _LINE.fullmatch(f"{name}: {value}"):
                raise FormatError(f"narinfo: cannot be a further field: {name[:80]!r}: {value[:80]!r}")

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read a narinfo; FormatError if some Nix would fail at this.

        If a field is repeated, the last line counts, as in Nix. Dropped are malformed signatures, unknown
        fields that could not be written again, and a FileHash other than sha256, which nobody checks.
        """
        single: dict[str, str] = {}
        sigs: list[str] = []
        extra: list[tuple[str, str]] = []
        for name, value in _read_lines(text):
            if name == "Sig":
                sigs.append(value)
            elif name not in _SINGLE_FIELDS:
                if _UNDECODABLE not in value:
                    extra.append((name, value))
            elif name in _ONCE and single.get(name, "").strip(" "):
                raise FormatError(f"narinfo: two lines of {name}")
            else:
                if name in single:
                    _check_value(name, single[name])
                single[name] = value
        file_hash, deriver = single.get("FileHash"), single.get("Deriver")
        return cls(
            store_path=StorePath.parse(_required(single, "StorePath")),
            url=_required(single, "URL").removeprefix("/").removeprefix("./"),
            compression=single.get("Compression") or _MISSING_COMPRESSION,
            file_hash=None if file_hash is None else _read_file_hash(file_hash),
            file_size=_read_size(single["FileSize"]) if "FileSize" in single else None,
            nar_hash=NixHash.parse(_required(single, "NarHash")),
            nar_size=_read_size(_required(single, "NarSize")),
            references=tuple(dict.fromkeys(filter(None, single.get("References", "").split(" ")))),
            deriver=None if deriver == _UNKNOWN_DERIVER else deriver,
            sigs=read_signatures(sigs),
            ca=single.get("CA") or None,
            extra=tuple(extra),
        )

    def render(self) -> str:
        """Write the narinfo as ``nix copy`` does: no empty line, and a newline after every line."""
        return "".join(f"{name}: {value}\n" for name, value in self._fields())

    def _fields(self) -> Iterator[tuple[str, object]]:
        yield "StorePath", self.store_path
        yield "URL", self.url
        yield "Compression", self.compression
        if self.file_hash is not None:
            yield "FileHash", self.file_hash
        if self.file_size is not None:
            yield "FileSize", self.file_size
        yield "NarHash", self.nar_hash
        yield "NarSize", self.nar_size
        # Without references the trailing space stays: else Nix takes the next line for the value.
        yield "References", " ".join(self.references)
        if self.deriver is not None:
            yield "Deriver", self.deriver
        for signature in self.sigs:
            yield "Sig", signature
        if self.ca is not None:
            yield "CA", self.ca
        yield from self.extra


def _read_lines(text: str | bytes) -> Iterator[tuple[str, str]]:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if not text.endswith("\n"):
        raise FormatError("narinfo: empty, or the last line does not end")
    if (lines := text.count("\n")) > MAX_LINES:
        raise FormatError(f"narinfo: {counted(lines, 'line')}, over the limit of {MAX_LINES}")
    for line in text[:-1].split("\n"):
        match = _LINE.fullmatch(line)
        if match is not None:
            yield match[1], match[2]
            continue
        ignored = _IGNORED_LINE.fullmatch(line)
        if ignored is None or ignored[1] in _FIELDS:
            raise FormatError(f"narinfo: expected <field>: <value>, got {line[:160]!r}")


def _check_value(name: str, value: str) -> None:
    """Check a value that a later line replaces: Nix parses it too; FormatError if it would fail at it."""
    match name:
        case "StorePath":
            StorePath.parse(value)
        case "NarHash" | "FileHash":
            NixHash.parse(value)
        case "NarSize" | "FileSize":
            _read_size(value)
        case "Deriver" if value != _UNKNOWN_DERIVER:
            check_base_name(value)


def _read_file_hash(text: str) -> NixHash | None:
    file_hash = NixHash.parse(text)
    return file_hash if file_hash.algorithm == "sha256" else None


def _required(fields: Mapping[str, str], name: str) -> str:
    if name not in fields:
        raise FormatError(f"narinfo: {name} is missing")
    return fields[name]


def _read_size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise FormatError(f"narinfo: expected a size in bytes, got {text[:40]!r}")
    return int(match[1])


def _check_url(url: str) -> None:
    if len(url) > MAX_URL_CHARACTERS:
        raise FormatError(
            f"narinfo: URL of {counted(len(url), 'character')}, over the limit of {MAX_URL_CHARACTERS}"
        )
    first_segment = _FIRST_SEGMENT.match(url)
    is_plain = first_segment is not None and first_segment[0] != "" and ":" not in first_segment[0]
    if not _URL.fullmatch(url) or not (is_plain or _ABSOLUTE_URL.fullmatch(url)):
        raise FormatError(f"narinfo: URL is neither relative nor http(s): {url[:300]!r}")
