"""The summary of a publish that GitHub shows beside a workflow's run, as Markdown. No I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nixcache_oci.cli.log import escape_unprintable
from nixcache_oci.wording import counted, format_duration, format_size

_MOST_ROWS: Final = 100
# Whatever could end a cell, or begin something else in Markdown.
_SPECIAL: Final = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]|#~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output of a flake.

    Attributes:
        attr: names it.
        paths: store paths that it became; none where it failed.
        reason: why it failed, or None.
    """

    attr: str
    paths: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PushedRow:
    """One store path that was sent; sizes are bytes."""

    base_name: str
    nar_size: int
    file_size: int


@dataclass(frozen=True, slots=True)
class PublishSummary:
    """What a publish did.

    Attributes:
        repository: where to.
        plan: the line that stood before everything.
        outputs: what was built, and what was not.
        pushed: what was sent.
        seconds: that all of it took.
        public_keys: that clients trust it by.
    """

    repository: str
    plan: str
    outputs: Sequence[OutputRow]
    pushed: Sequence[PushedRow]
    seconds: float
    public_keys: Sequence[str]


def render_summary(summary: PublishSummary) -> str:
    """Write the summary."""
    size = sum(row.nar_size for row in summary.pushed)
    packed = sum(row.file_size for row in summary.pushed)
    did = (
        f"{_plain(summary.plan)}. Pushed {counted(len(summary.pushed), 'path')}, {format_size(size)}, "
        f"{format_size(packed)} compressed, in {format_duration(summary.seconds)}."
    )
    blocks = [f"## Published to {_plain(summary.repository)}", did]
    if summary.outputs:
        blocks.append(_table(("output", "", "store path"), map(_output_cells, summary.outputs)))
    if summary.pushed:
        largest = sorted(summary.pushed, key=lambda row: (-row.nar_size, row.base_name))[:_MOST_ROWS]
        blocks.append(_table(("pushed", "size", "compressed"), map(_pushed_cells, largest)))
        if len(summary.pushed) > _MOST_ROWS:
            blocks.append(f"and {len(summary.pushed) - _MOST_ROWS} more")
    if summary.public_keys:
        # Nothing can end the block early: its only line begins with a word of ours.
        keys = escape_unprintable(" ".join(summary.public_keys))
        blocks.append(f"Clients trust it by\n\n```\nextra-trusted-public-keys = {keys}\n```")
    return "\n\n".join(blocks) + "\n\n"


def _output_cells(row: OutputRow) -> tuple[str, str, str]:
    if row.reason is not None:
        return _plain(row.attr), "✗", _plain(row.reason)
    return _plain(row.attr), "✓", "<br>".join(_plain(path.rpartition("/")[2]) for path in row.paths)


def _pushed_cells(row: PushedRow) -> tuple[str, str, str]:
    return _plain(row.base_name), format_size(row.nar_size), format_size(row.file_size)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    return escape_unprintable(" ".join(text.splitlines())).translate(_SPECIAL)
