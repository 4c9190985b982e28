"""Which path had which NAR file: uploaded small NARs end up in packs, and clients remember the old URL.

Kept for 30 days, as long as Nix remembers a narinfo.
"""

import os
import re
import time
from typing import Final

from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.nix.base32 import CHARACTER
from nixcache_oci.nix.store_path import HashPart

KEPT_SECONDS: Final = 30 * 24 * 3600
MOST_KEPT: Final = 100_000
"""Beyond, the oldest are forgotten: a client that asks for one downloads it elsewhere, or builds."""

_MOST_BYTES: Final = 4 * MOST_KEPT * 128
_LINE: Final = re.compile(rf"([0-9a-f]{{64}}) ({CHARACTER}{{32}}) ([0-9]{{1,12}})")


class SentBefore:
    """Maps the FileHash of NARs that left the spool to their path; kept in one file.

    ``load`` and ``save`` block: call them on a thread.
    """

    def __init__(self, folder: RootedPath) -> None:
        self._folder = folder
        self._known: dict[str, tuple[HashPart, int]] = {}

    def find(self, file_hash_hex: str) -> HashPart | None:
        """Return the path whose NAR had this FileHash."""
        known = self._known.get(file_hash_hex)
        return known[0] if known is not None else None

    def add(self, file_hash_hex: str, hash_part: HashPart) -> None:
        """Remember one; ``save`` makes it last."""
        self._known.pop(file_hash_hex, None)
        self._known[file_hash_hex] = (hash_part, int(time.time()))
        while len(self._known) > MOST_KEPT:
            del self._known[next(iter(self._known))]

    def load(self) -> None:
        """Read what earlier runs saved; lines that are none are skipped."""
        try:
            with os.fdopen((self._folder / "sent-before").open(), "rb") as file:
                content = file.read(_MOST_BYTES)
        except FileNotFoundError:
            return
        for line in content.decode(errors="replace").splitlines():
            match = _LINE.fullmatch(line)
            if match is not None:
                self._known[match[1]] = (HashPart(match[2]), int(match[3]))

    def save(self) -> None:
        """Write what is younger than 30 days; OSError if the disk fails."""
        oldest = time.time() - KEPT_SECONDS
        known = [(hex_, *value) for hex_, value in self._known.copy().items() if value[1] > oldest]
        lines = (f"{hex_} {part} {since}\n".encode() for hex_, part, since in known)
        write_file(self._folder / "sent-before", lines, self._folder)
        self._folder.sync()
