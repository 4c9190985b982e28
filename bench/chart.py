"""Shows what was measured: README's chart, and a page with every table.

python -m bench.chart         reads and writes bench/results
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final
from xml.sax.saxutils import escape

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
_LABELS: Final = 290
_BARS: Final = 330


@dataclass(frozen=True, slots=True)
class Bar:
    """One contender's rounds, in seconds."""

    label: str
    seconds: Sequence[float]

    @property
    def text(self) -> str:
        """Give the median, and the range where there was more than one round."""
        range_ = f" ({min(self.seconds):.2f} to {max(self.seconds):.2f})" if len(self.seconds) > 1 else ""
        return f"{median(self.seconds):.2f} s{range_}"


def main() -> None:
    """Write both."""
    found = {
        path.stem: Figures.from_document(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(RESULTS.glob("*.json"))
    }
    (RESULTS / "README.md").write_text(render_page(found.values()), encoding="utf-8")
    (RESULTS / "substitution.svg").write_text(render_chart(found["substitution"]), encoding="utf-8")


def render_page(found: Iterable[Figures]) -> str:
    """Write the tables of all scenarios."""
    tables = "\n".join(f"```text{render_report(figures)}\n```\n" for figures in found)
    return f"""# Results

Written by `python -m bench.chart` from the JSON files in this folder. Compare ratios within a run, not
absolute values: the machine is shared. Spread is the largest value minus the smallest, divided by the median.
[PROFILE.md](../PROFILE.md) explains where the time goes, and why some targets are missed.

{tables}"""


def render_chart(figures: Figures) -> str:
    """Draw the bars, with what was measured, where and how above them."""
    circumstances = figures.circumstances
    nix = circumstances["Nix"].split(", ")[-1]
    held = next(
        values
        for series, values in figures.values.items()
        if series.name == _SERIES + nix and series.at == _MILLISECONDS
    )
    bars = [Bar(label, held[name]) for name, label in _CALLED.items()]
    title = f"Nix {nix} fetches 500 small store paths into an empty store (seconds, lower is better)"
    distant = _rounds(held["plain cache"])
    notes = [
        (
            f"Shared {circumstances['cores']}-core machine, {circumstances['begun'][:10]}. "
            "Distance is simulated, at 200 Mbit/s per connection; the registry is a test double of GHCR."
        ),
        (
            "Proxy running, with its index but none of the paths. "
            f"Medians of {len(held[OURS])} rounds with their range; {distant} for the distant cache."
        ),
    ]
    longest = max(median(bar.seconds) for bar in bars)
    height = _TOP + _ROW * len(bars)
    lines = [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" role="img" '
            f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">'
        ),
        "<style>text{font:13px sans-serif;fill:#1a202c}.note{font-size:11px;fill:#4a5568}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="12" y="22" font-weight="bold">{escape(title)}</text>',
        *(
            f'<text class="note" x="12" y="{40 + 15 * number}">{escape(note)}</text>'
            for number, note in enumerate(notes)
        ),
    ]
    for number, bar in enumerate(bars):
        y = _TOP + _ROW * number
        width = round(_BARS * median(bar.seconds) / longest)
        colour = "#2b6cb0" if bar.label == _CALLED[OURS] else "#a0aec0"
        lines += [
            f'<text x="{_LABELS - 8}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{_LABELS}" y="{y}" width="{width}" height="22" fill="{colour}"/>',
            f'<text x="{_LABELS + width + 6}" y="{y + 15}">{bar.text}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _rounds(seconds: Sequence[float]) -> str:
    return "one round" if len(seconds) == 1 else f"{len(seconds)} rounds"


if __name__ == "__main__":
    main()
