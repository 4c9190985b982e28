"""What must hold after a load, and how it is reported."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.reliability.results import FAILED, Cell, write_suite
from tests.soak.chaos import WRONG_BYTES
from tests.soak.load import Outcome, Size
from tests.soak.process_figures import Figures, summarise

_MIB: Final = 1024 * 1024
_EXECUTOR_THREADS: Final = min(32, (os.cpu_count() or 1) + 4)  # as concurrent.futures has it
# The load generator must not be what is measured.
_ALLOWED_CPU_SHARE: Final = 0.7
_SUITE: Final = 70
_CELLS: Final = 12


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing that must hold.

    Attributes:
        what: is promised.
        holds: whether it does.
        seen: the figures.
        times: how often it was tried.
    """

    what: str
    holds: bool
    seen: str
    times: int = 1


def assert_held(outcome: Outcome, size: Size) -> None:
    """Assert each promise; all figures are in the message."""
    broken = [f"{each.what}: {each.seen}" for each in _promises(outcome, size) if not each.holds]
    assert not broken, "\n".join([*broken, outcome.figures()])


def report_load(outcome: Outcome, size: Size) -> None:
    """Write the suite's result."""
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.injected.items()))
    what = (
        f"The proxy as a process, and {size.connections} clients for {size.seconds:.0f} s: slow ones, hasty"
        " ones, such as hang up, resume, pipeline, or say half a request. Meanwhile the registry and an"
        " upstream fail at random, a publisher adds segments, and gc and the registry's own collector take"
        f" what no root reaches. Faults that were ordered: {faults} (`unmet` met no request). Seed:"
        f" {outcome.seed}."
    )
    cells = [
        Cell(each.what, each.times, each.seen if each.holds else f"{FAILED}: {each.seen}")
        for each in _promises(outcome, size)
    ]
    write_suite(_SUITE, "Load", what, _CELLS, cells)


def _promises(outcome: Outcome, size: Size) -> Iterator[Promise]:
    assert outcome.before is not None
    assert outcome.warm is not None
    assert outcome.after is not None
    yield from _answers(outcome)
    yield from _holdings(outcome, size, outcome.before, outcome.warm, outcome.after)
    yield from _conditions(outcome, size)


def _answers(outcome: Outcome) -> Iterator[Promise]:
    reports = outcome.reports
    wrong_orders = sum(count for kind, count in outcome.injected.items() if kind in WRONG_BYTES)
    wrong_parts = _total(outcome, "wrong bytes")
    failures = [failure for report in reports for failure in report.failures]
    ends = [f"{_total(outcome, end):,} {end}" for end in ("whole and right", "right", "cut", "404")]
    yield Promise(
        "every request has an answer, and each is right, cut or 404",
        holds=not failures,
        seen="; ".join(failures) or f"NARs: {', '.join(ends)}",
        times=sum(each.requests for each in reports),
    )
    yield Promise(
        "parts with wrong bytes, which are passed on for Nix to check: at most one a fault",
        holds=wrong_parts <= wrong_orders,
        seen=f"{wrong_parts}; faults that make wrong bytes: {wrong_orders}",
    )
    yield Promise(
        "blobs that are refused at the end for wrong bytes: at most one a fault",
        holds=outcome.refused <= wrong_orders,
        seen=f"{outcome.refused}",
    )
    yield Promise(
        "nothing that was published is lost",
        holds=not outcome.lost,
        seen=f"{outcome.lost} blobs lost; {outcome.collections} gcs, {outcome.collection_failures} of them"
        f" failed in a fault; {outcome.publish_failures} publishes did, and were tried again",
        times=outcome.published,
    )
    yield Promise("no traceback in the log", holds=not outcome.tracebacks, seen=str(outcome.tracebacks))


def _holdings(
    outcome: Outcome, size: Size, before: Figures, warm: Figures, after: Figures
) -> Iterator[Promise]:
    growth = after.own - warm.own
    yield Promise(
        "memory: no more at rest than after warming up",
        holds=growth <= size.growth_bytes,
        seen=f"{growth / _MIB:+.1f} MiB (RssAnon without packs). Before: {before}. Warm: {warm}. During:"
        f" {summarise(outcome.during)}. At rest: {after}",
    )
    yield Promise(
        "descriptors: no more at rest than before",
        holds=after.files <= before.files + size.spare_files,
        seen=f"{before.files} before, {warm.files} warm, {after.files} at rest; sockets"
        f" {before.sockets}, {warm.sockets}, {after.sockets}",
    )
    yield Promise(
        "tables: none is held that is not listed",
        holds=after.holds_listed_tables,
        seen=f"{after.maps} maps for {after.segments} tables",
    )
    yield Promise(
        "threads: no more than before, and those of one executor",
        holds=after.threads <= before.threads + _EXECUTOR_THREADS,
        seen=f"{before.threads} before, {warm.threads} warm, {after.threads} at rest",
    )


def _conditions(outcome: Outcome, size: Size) -> Iterator[Promise]:
    last = outcome.reports[-1]
    yield Promise(
        "the load generator has time to spare",
        holds=last.cpu_share <= _ALLOWED_CPU_SHARE,
        seen=f"{last.cpu_share} of one core; late by {last.lag_p99_seconds} s at most in 99 of 100 looks",
    )
    yield Promise(
        "connections at once",
        holds=last.connections >= size.least_connections,
        seen=f"{last.connections} (median)",
    )
    yield Promise(
        "NARs in flight",
        holds=last.nars_in_flight >= size.least_nars,
        seen=f"{last.nars_in_flight} (median)",
    )


def _total(outcome: Outcome, end: str) -> int:
    return sum(
        count
        for report in outcome.reports
        for name, count in report.outcomes.items()
        if name.startswith("NAR") and name.endswith(f": {end}")
    )
