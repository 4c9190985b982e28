"""The verb ``pin``: store paths that gc keeps under a name."""

import argparse
from collections.abc import MutableMapping
from datetime import timedelta

from nixcache_oci.cache.record import PinRecord, UnpinRecord
from nixcache_oci.cache.timestamp import format_time, now
from nixcache_oci.cli.cache_view import CacheView, add_view_flags, read_cache, warn
from nixcache_oci.cli.compose import open_repository, run_async, set_up_quiet_logging
from nixcache_oci.cli.console import say_json
from nixcache_oci.cli.table import print_table
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.maintenance.pinning import Relisted, find_condemned, write_pinning
from nixcache_oci.maintenance.pins import PinningRecord, count_pins
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.settings import table
from nixcache_oci.settings.publish import max_blob_bytes
from nixcache_oci.settings.repository import repository_config
from nixcache_oci.settings.source import repository_source
from nixcache_oci.settings.variable import Values, add_flags
from nixcache_oci.wording import counted


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "pin",
        description="Keep store paths of a cache, with all that they refer to, under a name that gc obeys.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="pin a store path", allow_abbrev=False)
    create.add_argument(
        "name", metavar="NAME", help="such as release-1.0; a later pin of the name adds to it"
    )
    create.add_argument("path", metavar="PATH", help="a store path that the cache lists")
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
        add_flags(one, (table.MAX_LAYERS, table.MAX_BLOB_BYTES))


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Pin, list or unpin."""
    set_up_quiet_logging(Values(environment, arguments))
    values = Values(environment, arguments)
    view = run_async(read_cache(arguments, environment))
    if arguments.action == "list":
        _print_pins(view, is_json=arguments.json)
        return DONE if view.is_whole else FAILED
    if arguments.action == "create":
        pin = _pin(arguments, view)
        relisted = find_condemned(view.inventory, pin.path.hash_part)
        if relisted.narinfos:
            warn(f"listing again what gc has marked as dead: {counted(len(relisted.narinfos), 'path')}")
        run_async(_write(values, pin, relisted))
    else:
        run_async(_write(values, _unpin(arguments.name, view), Relisted()))
    return DONE


async def _write(values: Values, record: PinningRecord, relisted: Relisted) -> None:
    location = repository_config(values)
    environment = values.merged_environment(table.REPOSITORY_VARIABLES)
    repository = open_repository(location, environment, push=True)
    try:
        await write_pinning(
            repository,
            record,
            repository_source(location, values),
            relisted,
            max_layers=values.get(table.MAX_LAYERS),
            max_blob_bytes=max_blob_bytes(values, location),
        )
    finally:
        await repository.close()


def _pin(arguments: argparse.Namespace, view: CacheView) -> PinRecord:
    try:
        path = StorePath.parse(arguments.path)
    except FormatError as error:
        raise UsageError(f"pin: {error}") from None
    if not view.inventory.find(path.hash_part):
        raise Error(f"{view.name}: does not list {path}; publish it first, then pin it")
    time, keep = now(), "forever"
    if arguments.keep_days is not None:
        keep = f"until {format_time(time + timedelta(days=arguments.keep_days))}"
    elif arguments.keep_revisions is not None:
        keep = f"for {arguments.keep_revisions} revisions"
    try:
        return PinRecord(arguments.name, path, time, keep)
    except FormatError as error:
        raise UsageError(f"pin: {error}") from None


def _unpin(name: str, view: CacheView) -> UnpinRecord:
    pins = _pins(view)
    times = [pin.time for pin in pins if pin.name == name]
    if not times:
        known = ", ".join(sorted({pin.name for pin in pins})) or "none at all"
        raise Error(f"{view.name}: there is no pin {name}; there are: {known}")
    # Only what is later ends a pin, and times are told to the second.
    return UnpinRecord(name, max(now(), max(times) + timedelta(seconds=1)))


def _pins(view: CacheView) -> list[PinRecord]:
    records = [one for one in view.inventory.records() if isinstance(one, (PinRecord, UnpinRecord))]
    return sorted(count_pins(records, now()).pins, key=lambda pin: (pin.name, pin.time))


def _print_pins(view: CacheView, *, is_json: bool) -> None:
    pins = _pins(view)
    if is_json:
        fields = [
            {"name": pin.name, "path": str(pin.path), "pinned": format_time(pin.time), "keep": pin.keep}
            for pin in pins
        ]
        say_json({"pins": fields})
    else:
        print_table([(pin.name, pin.path.base_name, format_time(pin.time), pin.keep_text) for pin in pins])


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 36_500):  # noqa: PLR2004 -- a century of days
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 36500, got {text[:40]!r}")
    return int(text)
