"""What an earlier run left in the spool's folder: each narinfo is held to its NAR again."""

import logging
from dataclasses import dataclass, field
from typing import Final

from nixcache_oci.cache.nar_url import SUFFIXES
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.uploads.intake import Measured
from nixcache_oci.proxy.uploads.journal import Journal, Kind, Loaded, Place
from nixcache_oci.proxy.uploads.nar_files import NarFiles
from nixcache_oci.proxy.uploads.spooled import SpooledNar, SpooledPath

FOLDER_MODE: Final = 0o700

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Leftovers:
    """Paths with their NARs, paths with signatures alone, and all NARs by FileHash in hex."""

    paths: dict[HashPart, SpooledPath] = field(default_factory=dict)
    signed: dict[HashPart, SpooledPath] = field(default_factory=dict)
    nars: dict[str, SpooledNar] = field(default_factory=dict)


def load(folder: RootedPath, journal: Journal, files: NarFiles) -> Leftovers:
    """Read a folder, which is made where there is none; blocks, OSError if it cannot be used."""
    for each in (folder, folder / "journal"):
        each.make_folder(FOLDER_MODE)
    files.make(FOLDER_MODE)
    left = Leftovers()
    found, places = _read(journal, left)
    named = {narinfo.file_hash: narinfo.file_size for narinfo, _ in found.values()}
    for measured, suffix, since in files.load(named.__contains__):
        if named.get(measured.file_hash, measured.file_size) != measured.file_size:
            files.remove(measured, suffix)  # torn: it must not be taken for the NAR when that comes again
            continue
        nar = SpooledNar(measured, suffix, since)
        left.nars[nar.hex] = nar
    for part, (narinfo, record) in found.items():
        usable = _find_nar(narinfo, places, left.nars)
        if usable is None:
            _tell_unusable(str(narinfo.store_path), "its NAR is missing, or has another size")
            continue
        usable.uses += 1
        left.paths[part] = SpooledPath(narinfo, record.text, usable, record.place)
    return left


def _read(
    journal: Journal, left: Leftovers
) -> tuple[dict[HashPart, tuple[NarInfo, Loaded]], dict[NixHash, Place]]:
    """Read the journal: signatures into what is left; returns paths, and where NARs are."""
    found: dict[HashPart, tuple[NarInfo, Loaded]] = {}
    places: dict[NixHash, Place] = {}
    for record in journal.load():
        if record.kind in (Kind.PATH_GONE, Kind.SIGNATURES_GONE):
            gone = found if record.kind is Kind.PATH_GONE else left.signed
            gone.pop(HashPart(record.text.decode()), None)
        elif (narinfo := _parse(record)) is not None:
            part = narinfo.store_path.hash_part
            if record.kind is Kind.SIGNATURES:
                left.signed[part] = SpooledPath(narinfo, record.text, None, record.place)
                continue
            found[part] = narinfo, record
            if record.place.size and narinfo.file_hash is not None:
                places[narinfo.file_hash] = record.place
    return found, places


def _find_nar(
    narinfo: NarInfo, places: dict[NixHash, Place], nars: dict[str, SpooledNar]
) -> SpooledNar | None:
    if narinfo.file_hash is None:
        return None
    hex_ = narinfo.file_hash.digest_hex
    nar = nars.get(hex_)
    if nar is None and (place := places.get(narinfo.file_hash)) is not None:
        measured = Measured(narinfo.file_hash, place.size, narinfo.nar_hash, narinfo.nar_size)
        nar = nars[hex_] = SpooledNar(measured, SUFFIXES[narinfo.compression], 0, place=place)
    return nar if nar is not None and nar.measured.file_size == narinfo.file_size else None


def _parse(record: Loaded) -> NarInfo | None:
    try:
        return NarInfo.parse(record.text)
    except FormatError as error:
        _tell_unusable(str(record.place), str(error))
        return None


def _tell_unusable(path: str, reason: str) -> None:
    _log.error("spooled path not usable", extra={"fields": {"path": path, "error": reason}})
