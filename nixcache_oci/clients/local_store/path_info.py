"""Parses what Nix prints about store paths, in the formats of all its versions. No I/O.

``nix path-info --json`` prints a list up to 2.18, an object by path since 2.19, and, when asked for format 2,
an object by base name inside another. ``nix-store --dump-db`` prints lines, without signatures and content
addresses. Source: the programs; the tests' fixtures are their output.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.content_address import Method
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.signature import Signature, read_signatures
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.document import clip, get_list, get_optional_text, get_text, parse_object, within

_WHAT: Final = "nix path-info"
_WRAPPED_VERSION: Final = 2
_METHODS: Final = MappingProxyType(
    {"text": Method.TEXT.value, "flat": Method.FLAT.value, "nar": Method.NAR.value, "git": "fixed:git:"}
)
_COUNT = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A valid path's metadata in its store."""

    store_path: StorePath  # the object
    nar_hash: NixHash  # sha256 of its NAR
    nar_size: int  # bytes in its NAR
    references: tuple[str, ...] = ()  # base names, possibly its own among them
    deriver: str | None = None  # base name of the derivation that built it; None if unknown
    sigs: tuple[Signature, ...] = ()  # its signatures, as far as they can be read
    ca: str | None = None  # its content address, as in narinfos


PathInfos = dict[StorePath, PathInfo | None]
"""By path; None for an invalid one."""


def parse_path_infos(content: bytes, store_dir: str) -> PathInfos:
    """Read what ``nix path-info --json`` printed; FormatError for an unknown format, or another store."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{_WHAT}: not JSON: {error}") from None
    infos: PathInfos = {}
    with within(_WHAT):
        for text, fields in _entries(document):
            path = _parse_path(text, store_dir)
            is_unknown = fields is None or fields.get("valid") is False
            with within(path.base_name):
                infos[path] = None if is_unknown else _parse_info(path, fields or {})
    return infos


def parse_registrations(content: bytes, store_dir: str) -> PathInfos:
    """Read what ``nix-store --dump-db PATH…`` printed, which lists valid paths only.

    For each path, one per line: the path, the hash in base 16, the size, the deriver or nothing, the number
    of references, and these. Raises FormatError for something else, or a path in another store.
    """
    infos: PathInfos = {}
    with within("nix-store --dump-db"):
        *complete, rest = content.decode(errors="replace").split("\n")
        if rest:
            raise FormatError(f"the last line does not end: {rest[:80]!r}")
        lines = iter(complete)
        for text in lines:
            path = _parse_path(text, store_dir)
            fields: dict[str, object] = {
                "narHash": f"sha256:{next(lines, '')}",
                "narSize": _parse_count(next(lines, "")),
                "deriver": next(lines, ""),
                "references": [next(lines, "") for _ in range(_parse_count(next(lines, "")))],
            }
            infos[path] = _parse_info(path, fields)
    return infos


def _entries(document: object) -> Iterator[tuple[str, dict[str, object] | None]]:
    """Yield each path or base name with its fields; FormatError for an unknown version."""
    if isinstance(document, list):
        for entry in document:
            fields = parse_object(entry)
            yield get_text(fields, "path"), fields
        return
    by_path = parse_object(document)
    if "info" in by_path:
        if by_path.get("version") != _WRAPPED_VERSION:
            raise FormatError(f"expected version {_WRAPPED_VERSION}, got {clip(by_path.get('version'))}")
        by_path = parse_object(by_path["info"])
    for path, entry in by_path.items():
        yield path, None if entry is None else parse_object(entry)


def _parse_path(text: str, store_dir: str) -> StorePath:
    """Read a full path or a base name."""
    if "/" in text:
        return StorePath.parse(text, store_dir)
    return StorePath.from_base_name(text, store_dir)


def _parse_info(path: StorePath, fields: Mapping[str, object]) -> PathInfo:
    size = fields.get("narSize")
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise FormatError(f"narSize: expected a size in bytes, got {clip(size)}")
    deriver = get_optional_text(fields, "deriver")
    return PathInfo(
        store_path=path,
        nar_hash=NixHash.parse(get_text(fields, "narHash")),
        nar_size=size,
        references=tuple(
            _parse_path(text, path.store_dir).base_name for text in _texts(fields, "references")
        ),
        deriver=_parse_path(deriver, path.store_dir).base_name if deriver else None,
        sigs=read_signatures(_texts(fields, "signatures")),
        ca=_parse_ca(fields.get("ca")),
    )


def _texts(fields: Mapping[str, object], name: str) -> Iterator[str]:
    """Read a list of strings, which older versions omit if empty; FormatError for anything else."""
    for text in get_list(fields, name) if name in fields else []:
        if not isinstance(text, str):
            raise FormatError(f"{name}: expected strings, got {clip(text)}")
        yield text


def _parse_ca(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    fields = parse_object(value)
    method = get_text(fields, "method")
    if method not in _METHODS:
        raise FormatError(f"ca: expected one of {', '.join(_METHODS)}, got {method[:40]!r}")
    return f"{_METHODS[method]}{NixHash.parse(get_text(fields, 'hash'))}"


def _parse_count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise FormatError(f"expected a number, got {text[:80]!r}")
    return int(text)
