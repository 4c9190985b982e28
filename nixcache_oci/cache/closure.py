"""What store paths reach within a cache, and what reaches them; all as jobs in short steps."""

import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart, StorePath

# Whatever mentions a path is looked at; a registry decides how much that is.
_MOST_LOOKED_AT: Final = 1_000
# The catalog has validated it: parsing it again takes ten times as long.
_FOLLOWED: Final = re.compile(
    rb"\n(?:FileSize: (?P<file_size>[0-9]+)\n)?NarHash: [^\n]*\nNarSize: (?P<nar_size>[0-9]+)\n"
    rb"References: (?P<references>[^\n]*)\n"
)


@dataclass(frozen=True, slots=True)
class Closure:
    """What clients get of a path's closure, itself included.

    Attributes:
        paths: how many.
        nar_size: of all, in bytes.
        file_size: of all, compressed, in bytes.
        elsewhere: how many references lead to an upstream.
        is_whole: whether all of it was followed.
    """

    paths: int
    nar_size: int
    file_size: int
    elsewhere: int
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Referrers:
    """Store paths that refer to one, by name; whether these are all."""

    paths: tuple[StorePath, ...]
    is_all: bool


def measure_closure(
    catalog: Catalog, narinfo: NarInfo, most: int | None = None
) -> Generator[None, None, Closure]:
    """Follow the references of a narinfo, up to so many paths."""
    own = narinfo.store_path.base_name
    seen = {own, *narinfo.references}
    waiting = [one for one in narinfo.references if one != own]
    paths, nar_size, file_size, elsewhere = 1, narinfo.nar_size, narinfo.file_size or 0, 0
    is_whole = True
    while waiting and is_whole:
        text = catalog.find(HashPart.of(waiting.pop()))
        followed = _FOLLOWED.search(text) if text is not None else None
        if followed is None:
            elsewhere += 1
        elif paths == most:
            is_whole = False
        else:
            paths += 1
            nar_size += int(followed["nar_size"])
            file_size += int(followed["file_size"] or 0)
            new = [one for one in followed["references"].decode().split() if one not in seen]
            seen.update(new)
            waiting += new
        yield
    return Closure(paths, nar_size, file_size, elsewhere, is_whole)


def find_referrers(catalog: Catalog, path: StorePath, most: int) -> Generator[None, None, Referrers]:
    """Find up to so many store paths that clients get and that refer to this one; not itself."""
    base_name, found, looked_at = path.base_name, set[StorePath](), 0
    for table in catalog.tables:
        for row in table.file.mentioning(base_name.encode()):
            yield
            if row is None:
                continue
            looked_at += 1
            narinfo = None
            with suppress(FormatError):
                text = catalog.find(HashPart(table.file.hash_part(row).decode()))
                narinfo = NarInfo.parse(text) if text is not None else None
            if narinfo is not None and narinfo.store_path != path and base_name in narinfo.references:
                found.add(narinfo.store_path)
            if len(found) > most or looked_at > _MOST_LOOKED_AT:
                return Referrers(_by_name(found)[:most], is_all=False)
    return Referrers(_by_name(found), is_all=True)


def find_reaching(
    catalog: Catalog, starts: Iterable[StorePath], wanted: StorePath, most: int
) -> Generator[None, None, tuple[frozenset[StorePath], bool]]:
    """Find which of some store paths reach one; also returns whether ``most`` paths sufficed to tell."""
    reaches: dict[str, bool] = {wanted.base_name: True}
    found = set[StorePath]()
    for start in starts:
        trail: list[
            tuple[str, Iterator[str]]
        ] = []  # what is being followed, with the references that are left
        name: str | None = start.base_name
        while name is not None:
            if name not in reaches:
                if len(reaches) > most:
                    return frozenset(found), False
                reaches[name] = False
                trail.append((name, iter(_references(catalog, name))))
                yield
            elif reaches[name]:
                reaches |= dict.fromkeys((one for one, _ in trail), True)
                trail.clear()
            name = _next(trail)
        if reaches[start.base_name]:
            found.add(start)
    return frozenset(found), True


def _next(trail: list[tuple[str, Iterator[str]]]) -> str | None:
    """Take the next reference that is left, the last one's first."""
    while trail:
        name = next(trail[-1][1], None)
        if name is not None:
            return name
        trail.pop()
    return None


def references_of(narinfo: bytes) -> list[str]:
    """Read the references of a narinfo that a catalog has found: base names."""
    followed = _FOLLOWED.search(narinfo)
    return followed["references"].decode().split() if followed is not None else []


def _references(catalog: Catalog, base_name: str) -> list[str]:
    text = catalog.find(HashPart.of(base_name))
    return references_of(text) if text is not None else []


def _by_name(paths: Iterable[StorePath]) -> tuple[StorePath, ...]:
    return tuple(sorted(paths, key=lambda path: (path.name, path.hash_part)))
