"""The verb ``pin``: store paths that gc keeps under a name."""

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from nixcache_oci.cache.keepers import PinningRecord, counting_pins
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import PinRecord, UnpinRecord
from nixcache_oci.cache.timestamp import format_time, now
from nixcache_oci.cli.cache_view import CacheView, add_view_flags, read_cache, warn
from nixcache_oci.cli.compose import opened, run_async, start_logging
from nixcache_oci.cli.console import say, say_json, say_table
from nixcache_oci.cli.list import failed_json, pin_json
from nixcache_oci.cli.paths import Asked, add_paths, find_all
from nixcache_oci.cli.verb import DONE, FAILED, number
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.maintenance.pinning import Relisted, find_condemned, write_pinning
from nixcache_oci.settings import variables
from nixcache_oci.settings.repository_config import repository_config, segment_options
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted

_MAX_KEPT = 36_500  # a century of days
_IF_INTERRUPTED = "the change was made completely or not at all: `nixcache-oci pin list` shows which"

DESCRIPTION = "Keep store paths of a cache, with all that they refer to, under a name that gc obeys."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="pin store paths")
    create.add_argument(
        "name", metavar="NAME", help="such as release-1.0; a later pin of the name adds to it"
    )
    add_paths(create, of_cache=True)
    keep = create.add_mutually_exclusive_group()
    keep.add_argument("--keep-days", type=number(1, _MAX_KEPT), metavar="N", help="keep for this many days")
    keep.add_argument(
        "--keep-revisions",
        type=number(1, _MAX_KEPT),
        metavar="N",
        help="keep until N other paths have been pinned under the name",
    )
    keep.add_argument("--keep-forever", action="store_true", help="keep until removed [default]")
    show = actions.add_parser("list", help="list the pins that count")
    remove = actions.add_parser("remove", help="remove every pin under a name")
    remove.add_argument("name", metavar="NAME")
    for one in (create, show, remove):
        add_view_flags(one)
    for one in (create, remove):
        add_flags(one, (variables.MAX_LAYERS, variables.MAX_BLOB_BYTES))


def run(values: Values) -> int:
    """Pin, list or unpin."""
    start_logging(values)
    arguments = values.flags
    asked = Asked.read(arguments, "pin create", act="pin") if arguments.action == "create" else None
    view = run_async(read_cache(values))
    if arguments.action == "list":
        _print_pins(view, is_json=arguments.json)
        return DONE if view.is_whole else FAILED
    change = _unpin(arguments.name, view) if asked is None else _pin(arguments, view, asked)
    if change.records:
        relisted = find_condemned(view.inventory, [pin.path.hash_part for pin in change.pinned])
        if relisted.narinfos:
            warn(f"listing again what gc has marked as dead: {counted(len(relisted.narinfos), 'path')}")
        run_async(_write(values, change.records, relisted), _IF_INTERRUPTED)
    if arguments.json:
        say_json(change.to_json(view.name))
    elif asked is not None and asked.nothing is not None:
        say(asked.nothing)
    else:
        say(*change.to_lines(view))
    return FAILED if change.left_out else DONE


@dataclass(frozen=True, slots=True)
class _Change:
    """A change to the pins of one name: what was recorded before, what is written, and what is left out."""

    name: str
    known: Sequence[PinningRecord]
    records: tuple[PinningRecord, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def pinned(self) -> list[PinRecord]:
        """What this pins."""
        return [record for record in self.records if isinstance(record, PinRecord)]

    @property
    def after(self) -> list[PinRecord]:
        """The pins that count under the name after this."""
        return [pin for pin in _counting([*self.known, *self.records]) if pin.name == self.name]

    @property
    def released(self) -> list[PinRecord]:
        """The pins that count under the name no more."""
        after = self.after
        return [pin for pin in _counting(self.known) if pin.name == self.name and pin not in after]

    def to_json(self, cache: str) -> dict[str, object]:
        """Give the whole change."""
        return {
            "cache": cache,
            "name": self.name,
            "pinned": list(map(pin_json, self.pinned)),
            "released": list(map(pin_json, self.released)),
            "pins": list(map(pin_json, self.after)),
            "failed": failed_json(self.left_out),
        }

    def to_lines(self, view: CacheView) -> list[str]:
        """Write the change for people: what is pinned and for how long, what ended, what else is kept."""
        roots = view.inventory.roots()
        lines = []
        for pin in self.pinned:
            known = ", ".join(f"{root.name} of {root.scope}" for root in roots if pin.path in root.paths)
            where = f" (root {known})" if known else ""
            lines.append(f"{view.name}: pinned {pin.path} as {self.name}, kept {pin.keep_text}{where}")
        lines += (f"{view.name}: {pin.path} is no longer pinned as {self.name}" for pin in self.released)
        others = [pin for pin in self.after if pin not in self.records]
        lines += (
            f"{view.name}: {pin.path} stays pinned as {self.name}, kept {pin.keep_text}" for pin in others
        )
        return lines


async def _write(values: Values, records: Sequence[PinningRecord], relisted: Relisted) -> None:
    location = repository_config(values)
    async with opened(location, values, push=True) as repository:
        await write_pinning(
            repository, records, relisted, segment_options(values, location, values.get(variables.REPO))
        )


def _pin(arguments: argparse.Namespace, view: CacheView, asked: Asked) -> _Change:
    found, left_out = find_all(view, view.inventory.roots(), asked)
    known = _recorded(view)
    ends = (one.time for one in known if isinstance(one, UnpinRecord) and one.name == arguments.name)
    time, keep = max((now(), *(_just_after(end) for end in ends))), "forever"
    if arguments.keep_days is not None:
        keep = f"until {format_time(time + timedelta(days=arguments.keep_days))}"
    elif arguments.keep_revisions is not None:
        keep = f"for {arguments.keep_revisions} revisions"
    paths = [variants[0].narinfo.store_path for variants in found]
    try:
        records = tuple(PinRecord(arguments.name, path, time, keep) for path in paths)
    except FormatError as error:
        raise UsageError(f"pin: {error}") from None
    change = _Change(arguments.name, known, records, left_out)
    if keep == "forever" and not change.released:
        # What is kept so already gains nothing by another record.
        kept = {pin.path for pin in _counting(known) if (pin.name, pin.keep) == (arguments.name, keep)}
        change = replace(change, records=tuple(pin for pin in records if pin.path not in kept))
    return change


def _unpin(name: str, view: CacheView) -> _Change:
    known = _recorded(view)
    pins = _counting(known)
    times = [pin.time for pin in pins if pin.name == name]
    if not times:
        names = sorted({pin.name for pin in pins})
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names) or 'none at all'}"
        raise Error(f"{view.name}: there is no pin {name}; {hint}")
    return _Change(name, known, (UnpinRecord(name, max(now(), *map(_just_after, times))),))


def _just_after(time: datetime) -> datetime:
    """Return a later time: only a later record counts, and recorded times are whole seconds."""
    return time + timedelta(seconds=1)


def _recorded(view: CacheView) -> list[PinningRecord]:
    return [one for one in view.inventory.records() if isinstance(one, (PinRecord, UnpinRecord))]


def _counting(records: Iterable[PinningRecord]) -> list[PinRecord]:
    return counting_pins(records, Moment(now()))


def _print_pins(view: CacheView, *, is_json: bool) -> None:
    pins = _counting(_recorded(view))
    if is_json:
        say_json({"pins": list(map(pin_json, pins))})
    else:
        say_table([(pin.name, pin.path.base_name, format_time(pin.time), pin.keep_text) for pin in pins])
