"""Shows what was measured: README's chart, and a page with every table.

python -m bench.chart         reads and writes bench/results
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final
from xml.sax.saxutils import escape

from bench.day import CLOSURE, ONE_PUSH, series_of_closure
from bench.figures import Figures
from bench.report import render_report
from bench.scenario import OURS

RESULTS: Final = Path(__file__).parent / "results"
# What README compares: contenders of one series of the scenario `substitution`, with their labels.
_SERIES: Final = "500 small paths, Nix "
_MILLISECONDS: Final = 40
_CALLED: Final = {
    "plain cache": "plain HTTP/1.1 cache (nginx), 40 ms away",
    OURS: "nixcache-oci, registry 40 ms away",
    "no distance": "plain HTTP/1.1 cache (nginx), no distance",
}
_WIDTH: Final = 800
_ROW: Final = 34
_TOP: Final = 76
_GAP: Final = 20
_LABELS: Final = 290
_BARS: Final = 330


@dataclass(frozen=True, slots=True)
class Bar:
    """One contender's rounds, in seconds."""

    label: str
    seconds: Sequence[float]
    is_ours: bool

    @property
    def text(self) -> str:
        """Give the median, and the range where there was more than one round."""
        range_ = f" ({min(self.seconds):.2f} to {max(self.seconds):.2f})" if len(self.seconds) > 1 else ""
        return f"{median(self.seconds):.2f} s{range_}"


@dataclass(frozen=True, slots=True)
class Group:
    """Bars on one scale, with what was measured, where and how above them."""

    title: str
    notes: Sequence[str]
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        """What it takes, in pixels."""
        return _TOP + _ROW * len(self.bars)

    def render(self, top: int) -> Iterator[str]:
        """Draw it from there on."""
        yield f'<text x="12" y="{top + 22}" font-weight="bold">{escape(self.title)}</text>'
        for number, note in enumerate(self.notes):
            yield f'<text class="note" x="12" y="{top + 40 + 15 * number}">{escape(note)}</text>'
        longest = max(median(bar.seconds) for bar in self.bars)
        for number, bar in enumerate(self.bars):
            y = top + _TOP + _ROW * number
            width = round(_BARS * median(bar.seconds) / longest)
            colour = "#2b6cb0" if bar.is_ours else "#a0aec0"
            yield f'<text x="{_LABELS - 8}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>'
            yield f'<rect x="{_LABELS}" y="{y}" width="{width}" height="22" fill="{colour}"/>'
            yield f'<text x="{_LABELS + width + 6}" y="{y + 15}">{bar.text}</text>'


def main() -> None:
    """Write both."""
    found = {
        path.stem: Figures.from_document(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(RESULTS.glob("*.json"))
    }
    (RESULTS / "README.md").write_text(render_page(found.values()), encoding="utf-8")
    (RESULTS / "substitution.svg").write_text(
        render_chart(found["substitution"], found.get("day")), encoding="utf-8"
    )


def render_page(found: Iterable[Figures]) -> str:
    """Write the tables of all scenarios."""
    tables = "\n".join(f"```text{render_report(figures)}\n```\n" for figures in found)
    return f"""# Results

Written by `python -m bench.chart` from the JSON files in this folder. Compare ratios within a run, not
absolute values: the machine is shared. Spread is the largest value minus the smallest, divided by the median.
[PROFILE.md](../PROFILE.md) explains where the time goes, and why some targets are missed.

{tables}"""


def render_chart(substitution: Figures, day: Figures | None) -> str:
    """Draw both scenarios, the latter where it was measured."""
    groups = [_substitution_group(substitution), *([_day_group(day)] if day is not None else [])]
    height = sum(group.height for group in groups) + _GAP * (len(groups) - 1)
    lines = [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" role="img" '
            f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">'
        ),
        "<style>text{font:13px sans-serif;fill:#1a202c}.note{font-size:11px;fill:#4a5568}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    top = 0
    for group in groups:
        lines += group.render(top)
        top += group.height + _GAP
    return "\n".join([*lines, "</svg>", ""])


def _substitution_group(figures: Figures) -> Group:
    nix = _newest_nix(figures)
    held = next(
        values
        for series, values in figures.values.items()
        if series.name == _SERIES + nix and series.at == _MILLISECONDS
    )
    return Group(
        f"Nix {nix} fetches 500 small store paths into an empty store (seconds, lower is better)",
        [
            (
                f"{_machine(figures)} "
                "Distance is simulated, at 200 Mbit/s per connection; the registry is a test double of GHCR."
            ),
            (
                "Proxy running, with its index but none of the paths. "
                f"Medians of {len(held[OURS])} rounds with their range; "
                f"{_rounds(held['plain cache'])} for the distant cache."
            ),
        ],
        [Bar(label, held[name], name == OURS) for name, label in _CALLED.items()],
    )


def _day_group(figures: Figures) -> Group:
    nix = _newest_nix(figures)
    held = {
        round(series.at or 0): values
        for series, values in figures.values.items()
        if series == series_of_closure(round(series.at or 0), nix)
    }
    bars: list[Bar] = []
    for publishes, values in sorted(held.items()):
        paths = figures.circumstances[f"paths of {publishes} publishes"]
        bars += [
            Bar(f"{paths} paths published in one push", values[ONE_PUSH], is_ours=False),
            Bar(f"the same in {publishes:,} publishes, all day", values[OURS], is_ours=True),
        ]
    return Group(
        f"Nix {nix} fetches {CLOSURE} store paths that were published all day (seconds, lower is better)",
        [
            f"{_machine(figures)} The registry is docker-registry, 40 ms away; nixcache-oci in both cases.",
            (
                "Proxy running, with its index but none of the paths. "
                f"Medians of {len(bars[0].seconds)} rounds with their range."
            ),
        ],
        bars,
    )


def _newest_nix(figures: Figures) -> str:
    return figures.circumstances["Nix"].split(", ")[-1]


def _machine(figures: Figures) -> str:
    circumstances = figures.circumstances
    return f"Shared {circumstances['cores']}-core machine, {circumstances['begun'][:10]}."


def _rounds(seconds: Sequence[float]) -> str:
    return "one round" if len(seconds) == 1 else f"{len(seconds)} rounds"


if __name__ == "__main__":
    main()
