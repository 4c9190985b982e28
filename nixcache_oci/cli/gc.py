"""The verb ``gc``: forgets what no root reaches, in steps that lose nothing."""

import argparse
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import timedelta

from nixcache_oci.cache.timestamp import format_time, now
from nixcache_oci.cli.compose import open_remover, opened, run_async, start_logging
from nixcache_oci.cli.console import complain, say, say_json, say_table
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.verb import DONE, FAILED, number
from nixcache_oci.maintenance.gc.collect import Collected, carry_out_gc, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan, PlanRow
from nixcache_oci.maintenance.gc.idle import IdleNote, find_idle_note
from nixcache_oci.settings import variables
from nixcache_oci.settings.repository_config import (
    RepositoryConfig,
    repository_config,
    segment_options,
)
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted, format_size

_VARIABLES = (
    *variables.REPOSITORY_VARIABLES,
    variables.MAX_LAYERS,
    variables.MAX_BLOB_BYTES,
    variables.PUBLIC_KEYS,
    variables.LOG_LEVEL,
)
_MAX_DAYS = 36_500
_IF_INTERRUPTED = "nothing that is needed was deleted; run the same command again to finish"

_IDLE = "nothing to collect: nothing was published since the last gc"

# What each row of the plan means, for who sees it for the first time.
_MEANINGS = {
    "keep": "reached by a root or pin, or too young to judge",
    "lift": "needed again: the mark is taken off",
    "wait": "marked or unlisted, and not old enough for the next step",
    "condemn": "not needed, or merged: marked, and still served until the grace is over",
    "rewrite": "more than half is not needed: the rest moves to a new segment",
    "merge": "many of one size become one",
    "unlist": "marked for the whole grace: leaves the index",
    "delete": "left the index in an earlier run: leaves the repository",
    "sweep": "former versions of the index, and what only they still listed",
}

DESCRIPTION = (
    "Forget what no root and no pin reaches. What is dead is marked first, leaves the index after "
    "the grace, and is deleted by the run after that; nothing is ever built."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    for flag, default, text in (
        ("--retention-days", 30, "days that a root counts after a later publish superseded it"),
        ("--scope-ttl", 90, "days that a scope counts after its last publish; 0 for ever"),
        ("--grace-days", 30, "days between mark and deletion; Nix clients remember a path for 30"),
        ("--min-age-hours", 24, "younger segments are left alone"),
    ):
        parser.add_argument(
            flag, type=number(0, _MAX_DAYS), default=default, metavar="N", help=f"{text} [{default}]"
        )
    parser.add_argument(
        "--force",
        action="store_true",
        help="proceed even if no root is left, or over half of the live bytes would go; reads everything",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, _VARIABLES)


def run(values: Values) -> int:
    """Collect."""
    start_logging(values)
    arguments = values.flags
    location = repository_config(values)
    options = GcOptions(
        retention=timedelta(days=arguments.retention_days),
        scope_ttl=timedelta(days=arguments.scope_ttl) if arguments.scope_ttl else None,
        grace=timedelta(days=arguments.grace_days),
        min_age=timedelta(hours=arguments.min_age_hours),
        segments=segment_options(values, location, values.get(variables.REPO)),
        public_keys=values.get(variables.PUBLIC_KEYS),
    )
    return run_async(_collect(values, options, location), "" if arguments.dry_run else _IF_INTERRUPTED)


async def _collect(values: Values, options: GcOptions, location: RepositoryConfig) -> int:
    arguments = values.flags
    actions = GithubActions.from_environment(values.environment)
    async with AsyncExitStack() as stack:
        repository = await stack.enter_async_context(opened(location, values, push=not arguments.dry_run))
        remover = open_remover(location, values.merged_environment(variables.REPOSITORY_VARIABLES))
        stack.push_async_callback(remover.close)
        progress = stack.enter_context(showing(actions, is_quiet=arguments.quiet))
        if not (arguments.dry_run or arguments.force):
            note = await find_idle_note(repository, options, now())
            if note is not None:
                _report_idle(note, actions, is_json=arguments.json)
                return DONE
        prepared = await prepare_gc(repository, remover, options, progress=progress)
        # Of a dry run, the plan is the result.
        if not arguments.json and (arguments.dry_run or not arguments.quiet):
            _print_plan(prepared.plan, repository.name)
        collected = None
        if not arguments.dry_run:
            collected = await carry_out_gc(
                repository,
                remover,
                prepared,
                force=arguments.force,
                progress=progress,
            )
    if arguments.json:
        say_json(_to_json(prepared.plan, collected))
    elif collected is not None:
        _print_result(collected)
    if actions is not None:
        actions.append_summary(_summary(prepared.plan, is_dry_run=arguments.dry_run))
    return FAILED if collected is not None and collected.refused else DONE


def _report_idle(note: IdleNote, actions: GithubActions | None, *, is_json: bool) -> None:
    if is_json:
        until = format_time(note.until)
        say_json({**_to_json(GcPlan(), Collected()), "roots": None, "plan": [], "idleUntil": until})
    else:
        say(_IDLE)
    if actions is not None:
        actions.append_summary(f"## gc\n\n{_IDLE}\n\n")


def _print_plan(plan: GcPlan, name: str) -> None:
    say(f"{name}: {counted(plan.roots, 'root or pin', 'roots or pins')}")
    say_table([(*_cells(row), _MEANINGS[row.action]) for row in plan.rows() if row.segments])
    for refusal in plan.refusals:
        say(f"wants --force: {refusal}")


def _print_result(collected: Collected) -> None:
    if not collected.is_index_confirmed:
        say("others write the index at the same time: nothing was deleted; the next run goes on")
    written, deleted = len(collected.written), len(collected.deleted)
    say(f"{counted(written, 'segment')} written, {counted(deleted, 'manifest')} deleted")
    if collected.waiting:
        until = max(until for _, until in collected.waiting)
        say(
            f"{counted(len(collected.waiting), 'segment')} cannot be deleted yet: former versions of the"
            f" index list them, the last of which goes after {format_time(until)}"
        )
    for manifest, reason in collected.refused:
        complain(f"kept {manifest}: {reason}")


def _to_json(plan: GcPlan, collected: Collected | None) -> dict[str, object]:
    """Tell plan and result; sizes are bytes."""
    document: dict[str, object] = {
        "roots": plan.roots,
        "plan": [asdict(row) for row in plan.rows()],
        "refusals": list(plan.refusals),
        "freed": plan.freed,
        "idleUntil": None,
    }
    if collected is not None:
        document["done"] = {
            "written": [str(segment.tag) for segment in collected.written],
            "indexConfirmed": collected.is_index_confirmed,
            "deleted": [str(manifest) for manifest in collected.deleted],
            "refused": {str(manifest): reason for manifest, reason in collected.refused},
            "waiting": {str(manifest): format_time(until) for manifest, until in collected.waiting},
        }
    return document


def _cells(row: PlanRow) -> tuple[str, str, str, str]:
    return row.action, counted(row.segments, "segment"), counted(row.paths, "path"), format_size(row.size)


def _summary(plan: GcPlan, *, is_dry_run: bool) -> str:
    head = "## gc, a dry run" if is_dry_run else "## gc"
    rows = [f"| {' | '.join(_cells(row))} |" for row in plan.rows() if row.segments]
    return "\n".join([head, "", "| | segments | paths | size |", "|---|---|---|---|", *rows, "", ""])
