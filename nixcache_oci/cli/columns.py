"""Plain tables: aligned, greppable, and safe to look at whatever the names in them are."""

from collections.abc import Sequence

from nixcache_oci.cli.console import say
from nixcache_oci.cli.log import escape_unprintable


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of as many cells each, in columns that two spaces part."""
    clean = [tuple(map(escape_unprintable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    for row in clean:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
