"""Substitution over a distance: a real Nix realises a closure into an empty store."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.distance import Distance
from bench.figures import Target
from bench.places import Client, Place, prepare
from bench.scenario import OURS, Bench, Measurement

TITLE = "real Nix realises a closure into an empty store, over a distance"

_FLOOR: Final = "no distance"
_FLOOR_AND_TRANSFER: Final = "no distance + transfer"
_PLAIN: Final = "plain cache"
_NAIVE: Final = "naive proxy"
_NEAR = Distance(0.040)
_FAR = Distance(0.100)


def run(bench: Bench) -> None:
    """Measure the small paths alone, and the whole closure; then from further away, and from nothing."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        setting = stack.enter_context(prepare(Path(folder), 100 if bench.is_quick else 500))
        bench.note("Nix", ", ".join(nix.version for nix in setting.clients))
        bench.note("small paths", f"{setting.closures.small_count}")
        bench.note("large NARs, compressed bytes", " ".join(map(str, setting.large_sizes)))
        with setting.at(_NEAR) as place:
            for nix in setting.clients:
                _compare_small(bench, place, nix)
                _compare_whole(bench, place, nix)
                _compare_layered(bench, place, nix)
        with setting.at(_FAR) as place:
            for nix in setting.clients:
                _compare_small(bench, place, nix)


def _compare_small(bench: Bench, place: Place, nix: Client) -> None:
    setting, small = place.setting, place.setting.closures.small
    what = f"{setting.closures.small_count} small paths"
    series = place.series(what, nix)
    in_use = place.series(f"{what}, proxy in use", nix)
    first = place.series(f"{what}, no index yet", nix)

    def ours() -> Measurement:
        return {
            first: place.time_ours(nix, small, "new"),
            series: place.time_ours(nix, small),
            in_use: place.time_ours(nix, small, "in use"),
        }

    def floor() -> Measurement:
        seconds = place.time(nix, setting.plain_url, small)
        return {series: seconds, in_use: seconds, first: seconds}

    bench.compare({OURS: ours, _FLOOR: floor})
    # What takes these so long is the distance: it hardly varies, and would take most of the whole run.
    bench.compare({_PLAIN: lambda: {series: place.time(nix, place.plain_url, small)}}, rounds=1)
    if place.distance == _NEAR:
        bench.compare({_NAIVE: lambda: {series: place.time(nix, place.naive_url, small)}}, rounds=1)
    for one in (series, in_use, first):
        bench.expect(Target(one, OURS, 1.15, beside=_FLOOR))
    if not nix.loads_at_once:
        bench.expect(Target(series, OURS, 0.1, beside=_PLAIN))


def _compare_whole(bench: Bench, place: Place, nix: Client) -> None:
    setting, whole = place.setting, place.setting.closures.whole
    series = place.series("the same and 5 large ones", nix)
    sizes = setting.large_sizes
    transfer = (max(sizes) if nix.loads_at_once else sum(sizes)) / place.distance.rate

    def ours() -> Measurement:
        return {series: place.time_ours(nix, whole)}

    def floor() -> Measurement:
        seconds = place.time(nix, setting.plain_url, whole)
        bench.figures.record(series, _FLOOR_AND_TRANSFER, seconds + transfer)
        return {series: seconds}

    bench.compare({OURS: ours, _FLOOR: floor})
    bench.compare({_PLAIN: lambda: {series: place.time(nix, place.plain_url, whole)}}, rounds=1)
    bench.expect(Target(series, OURS, 1.15, beside=_FLOOR_AND_TRANSFER))


def _compare_layered(bench: Bench, place: Place, nix: Client) -> None:
    setting, layered = place.setting, place.setting.closures.layered
    series = place.series(f"{setting.closures.layered_count} paths in layers, proxy in use", nix)
    bench.compare(
        {
            OURS: lambda: {series: place.time_ours(nix, layered, "in use")},
            _FLOOR: lambda: {series: place.time(nix, setting.plain_url, layered)},
        }
    )
    bench.compare({_PLAIN: lambda: {series: place.time(nix, place.plain_url, layered)}}, rounds=1)
