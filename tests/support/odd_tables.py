"""Tables and narinfos that no publisher of ours would write."""

from datetime import timedelta

import zstandard

from tests.support.objects import hash_part_of
from tests.support.publish import CREATED

LATER = CREATED + timedelta(hours=1)
HEADER = "Nixcache-Table: 2\nCreated: 2026-11-21T04:15:00Z\n"
FORMAT = {"dev.nixcache.format": "2", "dev.nixcache.watermark": "1970-01-01T00:00:00Z"}


def table_of(*stanzas: str) -> bytes:
    return zstandard.compress("\n".join([HEADER, *stanzas]).encode())


def narinfo_of(seed: str, **changes: str) -> str:
    """A narinfo in a table; a field that is changed to nothing is left out."""
    fields = {
        "StorePath": f"/nix/store/{hash_part_of(seed)}-{seed}",
        "URL": f"nar/{'0' * 64}.nar.zst",
        "Compression": "zstd",
        "NarHash": f"sha256:{'0' * 52}",
        "NarSize": "120",
        "References": "",
        **changes,
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value or key == "References")
