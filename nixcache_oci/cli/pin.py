"""The verb ``pin``: store paths that gc keeps under a name."""

import argparse
import difflib
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from nixcache_oci.cache.record import PinRecord, UnpinRecord
from nixcache_oci.cache.timestamp import format_time, now
from nixcache_oci.cli.cache_view import CacheView, add_view_flags, read_cache, warn
from nixcache_oci.cli.columns import print_table
from nixcache_oci.cli.compose import open_repository, run_async, set_up_quiet_logging
from nixcache_oci.cli.console import say, say_json
from nixcache_oci.cli.interrupt import if_interrupted
from nixcache_oci.cli.list import failed_json, pin_json
from nixcache_oci.cli.paths import Asked, add_paths, find_all
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.maintenance.gc.roots import PinningRecord, count_pins
from nixcache_oci.maintenance.pinning import Relisted, find_condemned, write_pinning
from nixcache_oci.settings import variables
from nixcache_oci.settings.publish_config import segment_options
from nixcache_oci.settings.repository_config import repository_config
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "pin",
        description="Keep store paths of a cache, with all that they refer to, under a name that gc obeys.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="pin store paths", allow_abbrev=False)
    create.add_argument(
        "name", metavar="NAME", help="such as release-1.0; a later pin of the name adds to it"
    )
    add_paths(create, of_cache=True)
    keep = create.add_mutually_exclusive_group()
    keep.add_argument("--keep-days", type=_parse_count, metavar="N", help="until so many days from now")
    keep.add_argument(
        "--keep-revisions",
        type=_parse_count,
        metavar="N",
        help="until N other paths were pinned under the name",
    )
    keep.add_argument("--keep-forever", action="store_true", help="until it is removed [default]")
    show = actions.add_parser("list", help="list the pins that count", allow_abbrev=False)
    remove = actions.add_parser(
        "remove", help="let go of all that is pinned under a name", allow_abbrev=False
    )
    remove.add_argument("name", metavar="NAME")
    for one in (create, show, remove):
        add_view_flags(one)
    for one in (create, remove):
        add_flags(one, (variables.MAX_LAYERS, variables.MAX_BLOB_BYTES))


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Pin, list or unpin."""
    set_up_quiet_logging(Values(environment, arguments))
    values = Values(environment, arguments)
    asked = Asked.read(arguments, "pin create", act="pin") if arguments.action == "create" else None
    view = run_async(read_cache(arguments, environment))
    if arguments.action == "list":
        _print_pins(view, is_json=arguments.json)
        return DONE if view.is_whole else FAILED
    change = _unpin(arguments.name, view) if asked is None else _pin(arguments, view, asked)
    if change.records:
        relisted = find_condemned(view.inventory, [pin.path.hash_part for pin in change.pinned])
        if relisted.narinfos:
            warn(f"listing again what gc has marked as dead: {counted(len(relisted.narinfos), 'path')}")
        with if_interrupted("all of the change was made, or none of it: `nixcache-oci pin list` tells"):
            run_async(_write(values, change.records, relisted))
    if arguments.json:
        say_json(change.to_json(view.name))
    elif asked is not None and asked.nothing is not None:
        say(asked.nothing)
    else:
        say(*change.to_lines(view))
    return FAILED if change.left_out else DONE


@dataclass(frozen=True, slots=True)
class _Change:
    """What is done to the pins of one name.

    Attributes:
        name: of the pins.
        known: all pins and ends of pins that were recorded before.
        records: that are written.
        left_out: what was to be pinned and is not, and why.
    """

    name: str
    known: Sequence[PinningRecord]
    records: tuple[PinningRecord, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def pinned(self) -> list[PinRecord]:
        """What is pinned now."""
        return [record for record in self.records if isinstance(record, PinRecord)]

    @property
    def after(self) -> list[PinRecord]:
        """What counts under the name now."""
        return [pin for pin in _counting([*self.known, *self.records]) if pin.name == self.name]

    @property
    def released(self) -> list[PinRecord]:
        """What counted under the name, and does not any more."""
        after = self.after
        return [pin for pin in _counting(self.known) if pin.name == self.name and pin not in after]

    def to_json(self, cache: str) -> dict[str, object]:
        """Tell all of it."""
        return {
            "cache": cache,
            "name": self.name,
            "pinned": list(map(pin_json, self.pinned)),
            "released": list(map(pin_json, self.released)),
            "pins": list(map(pin_json, self.after)),
            "failed": failed_json(self.left_out),
        }

    def to_lines(self, view: CacheView) -> list[str]:
        """Write what people read: what is pinned and for how long, what ended, what else the name keeps."""
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
    environment = values.merged_environment(variables.REPOSITORY_VARIABLES)
    repository = open_repository(location, environment, push=True)
    try:
        await write_pinning(repository, records, relisted, segment_options(values, location))
    finally:
        await repository.close()


def _pin(arguments: argparse.Namespace, view: CacheView, asked: Asked) -> _Change:
    found = find_all(view, view.inventory.roots(), asked)
    known = _recorded(view)
    ends = (one.time for one in known if isinstance(one, UnpinRecord) and one.name == arguments.name)
    time, keep = max((now(), *(_just_after(end) for end in ends))), "forever"
    if arguments.keep_days is not None:
        keep = f"until {format_time(time + timedelta(days=arguments.keep_days))}"
    elif arguments.keep_revisions is not None:
        keep = f"for {arguments.keep_revisions} revisions"
    paths = [variants[0].narinfo.store_path for variants in found.paths]
    try:
        records = tuple(PinRecord(arguments.name, path, time, keep) for path in paths)
    except FormatError as error:
        raise UsageError(f"pin: {error}") from None
    change = _Change(arguments.name, known, records, found.left_out)
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
    """Only what is later ends a pin, or begins anew what was ended, and times are told to the second."""
    return time + timedelta(seconds=1)


def _recorded(view: CacheView) -> list[PinningRecord]:
    return [one for one in view.inventory.records() if isinstance(one, (PinRecord, UnpinRecord))]


def _counting(records: Iterable[PinningRecord]) -> list[PinRecord]:
    return sorted(count_pins(records, now()).pins, key=lambda pin: (pin.name, pin.time, pin.path))


def _print_pins(view: CacheView, *, is_json: bool) -> None:
    pins = _counting(_recorded(view))
    if is_json:
        say_json({"pins": list(map(pin_json, pins))})
    else:
        print_table([(pin.name, pin.path.base_name, format_time(pin.time), pin.keep_text) for pin in pins])


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 36_500):  # noqa: PLR2004 -- a century of days
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 36500, got {text[:40]!r}")
    return int(text)
