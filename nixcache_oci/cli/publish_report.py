"""What a publish came to: as text, as JSON (see docs/json.md), and as the summary of a workflow's run."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.cli.console import complain, say, say_json
from nixcache_oci.cli.list import JsonObject, failed_json
from nixcache_oci.cli.log import escape_unprintable
from nixcache_oci.cli.publishing import PublishSettings
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import UsageError
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.publish_plan import PublishPlan
from nixcache_oci.wording import counted, format_duration, format_size

PUBLIC_KEY_OUTPUT: Final = "public-key"
"""Of a step in a workflow: the keys, separated by spaces."""

_MAX_ROWS: Final = 100
# Whatever could end a cell, or begin something else in Markdown.
_SPECIAL: Final = str.maketrans(
    {character: f"\\{character}" for character in "\\`*_[]|#~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output of a flake: the store paths that it became, or the reason why it failed."""

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
    """What the summary of a workflow's run tells; ``plan`` is the line of ``describe_plan``."""

    repository: str
    plan: str
    outputs: Sequence[OutputRow]
    pushed: Sequence[PushedRow]
    seconds: float
    public_keys: Sequence[str]


@dataclass(slots=True)
class PublishReport:
    """What a publish came to.

    Attributes:
        cache: name of the repository.
        plan: None where the cache could not be read, and that is no failure.
        published: None where nothing was to be sent.
        left_out: why something that was asked for is not published, by its name.
    """

    settings: PublishSettings
    cache: str
    plan: PublishPlan | None
    published: Published | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[OutputRow] = ()

    def finish(self) -> int:
        """Print the report, write what else was asked for, and choose the exit status.

        Raises:
            UsageError: the file for the public keys cannot be written.
        """
        plan, published = self.plan or PublishPlan(), self.published
        if published is not None:
            self._report(plan, published)
        elif self.settings.flags.json:
            say_json(self._to_json(0))
        else:
            say(
                *(f"push {info.store_path} {format_size(info.nar_size)}" for info in plan.push),
                *(f"sign {info.store_path}" for info, _ in plan.relist),
            )
        failed = self.left_out or (published is not None and published.failed)
        return FAILED if failed or any(row.reason is not None for row in self.outputs) else DONE

    def _report(self, plan: PublishPlan, published: Published) -> None:
        seconds = time.monotonic() - self.settings.began
        flags, actions = self.settings.flags, self.settings.actions
        sizes = {info.store_path: info.nar_size for info in plan.push}
        pushed = [
            PushedRow(narinfo.store_path.base_name, narinfo.nar_size, narinfo.file_size or 0)
            for narinfo in published.listed
            if narinfo.store_path in sizes
        ]
        size = format_size(sum(row.nar_size for row in pushed))
        packed = format_size(sum(row.file_size for row in pushed))
        if published.is_needless:
            line = f"{self.cache}: 0 paths pushed, nothing written: all of it is listed and recorded"
        else:
            sent = f"{counted(len(pushed), 'path')} pushed ({size}, {packed} compressed)"
            relisted = {info.store_path for info, _ in plan.relist}
            signed = sum(narinfo.store_path in relisted for narinfo in published.listed)
            more = f", {counted(signed, 'path')} signed" if signed else ""
            line = f"{self.cache}: {sent}{more} in {format_duration(seconds)}"
        if not published.is_index_confirmed:
            complain("others write the index at the same time; what was pushed is found by its tag")
        keys = self._keys()
        if actions is not None and keys:
            actions.set_output(PUBLIC_KEY_OUTPUT, " ".join(keys))
        if flags.json:
            say_json(self._to_json(seconds))
        else:
            say(line, *(f"public key: {key}" for key in keys))
        if flags.public_key_file is not None:
            _write_public_keys(flags.public_key_file, keys)
        if actions is not None:
            told = describe_plan(plan, self.cache)
            summary = PublishSummary(self.cache, told, self.outputs, pushed, seconds, keys)
            actions.append_summary(render_summary(summary))

    def _to_json(self, seconds: float) -> JsonObject:
        plan, published = self.plan or PublishPlan(), self.published or Published()
        paths = {info.store_path.base_name: str(info.store_path) for info in plan.listed}
        relisted = {info.store_path for info, _ in plan.relist}
        failed = {paths.get(name, name): why for name, why in {**self.left_out, **published.failed}.items()}
        return {
            "cache": self.cache,
            "dryRun": self.settings.flags.dry_run,
            "plan": None if self.plan is None else _plan_json(plan),
            "pushed": [
                {"path": str(one.store_path), "narSize": one.nar_size, "fileSize": one.file_size}
                for one in published.listed
                if one.store_path not in relisted
            ],
            "signed": [str(one.store_path) for one in published.listed if one.store_path in relisted],
            "failed": failed_json(failed),
            "outputs": [
                {"attr": one.attr, "paths": list(one.paths), "reason": one.reason} for one in self.outputs
            ],
            "written": [str(segment.tag) for segment in published.segments],
            "indexConfirmed": published.is_index_confirmed,
            "publicKeys": self._keys(),
            "seconds": round(seconds, 3),
        }

    def _keys(self) -> list[str]:
        return [str(key) for key in self.settings.options.public_keys]


async def report_nothing(settings: PublishSettings, line: str) -> int:
    """Report that there was nothing to do."""
    async with settings.opened() as repository:
        status = PublishReport(settings, repository.name, PublishPlan()).finish()
    if not settings.flags.json:
        say(line)
    return status


def describe_plan(plan: PublishPlan, cache: str) -> str:
    """Write in one line what goes where."""
    relist = f", {len(plan.relist)} to sign" if plan.relist else ""
    return (
        f"{counted(plan.paths, 'path')}: {len(plan.upstream)} upstream, {len(plan.cached)} cached{relist}, "
        f"{len(plan.push)} to push ({format_size(plan.push_bytes)}) to {cache}"
    )


def render_summary(summary: PublishSummary) -> str:
    """Write the summary as Markdown. No I/O."""
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
        largest = sorted(summary.pushed, key=lambda row: (-row.nar_size, row.base_name))[:_MAX_ROWS]
        rows = (
            (_plain(row.base_name), format_size(row.nar_size), format_size(row.file_size)) for row in largest
        )
        blocks.append(_table(("pushed", "size", "compressed"), rows))
        if len(summary.pushed) > _MAX_ROWS:
            blocks.append(f"and {len(summary.pushed) - _MAX_ROWS} more")
    if summary.public_keys:
        # Nothing can end the block early: its only line begins with a word of ours.
        keys = escape_unprintable(" ".join(summary.public_keys))
        blocks.append(f"Clients trust it by\n\n```\nextra-trusted-public-keys = {keys}\n```")
    return "\n\n".join(blocks) + "\n\n"


def _output_cells(row: OutputRow) -> tuple[str, str, str]:
    if row.reason is not None:
        return _plain(row.attr), "✗", _plain(row.reason)
    return _plain(row.attr), "✓", "<br>".join(_plain(path.rpartition("/")[2]) for path in row.paths)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    return escape_unprintable(" ".join(text.splitlines())).translate(_SPECIAL)


def _plan_json(plan: PublishPlan) -> JsonObject:
    return {
        "upstream": len(plan.upstream),
        "cached": len(plan.cached),
        "sign": [str(info.store_path) for info, _ in plan.relist],
        "push": [{"path": str(info.store_path), "narSize": info.nar_size} for info in plan.push],
    }


def _write_public_keys(path: Path, keys: Iterable[str]) -> None:
    """Write public keys, one per line; a file that holds them already stays untouched."""
    text = "".join(f"{key}\n" for key in keys)
    if not text:
        raise UsageError("--public-key-file: there is no signing key; set NIXCACHE_SIGNING_KEY_FILE")
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            file = RootedPath.of(path)
            write_file(file, [text.encode()], file.parent)
    except UnicodeDecodeError:
        raise UsageError(f"--public-key-file: {path}: it is not text in UTF-8") from None
    except OSError as error:
        raise UsageError(f"--public-key-file: {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--public-key-file: {path}: {error}") from None
