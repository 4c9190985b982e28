"""Draws the charts of what was measured: one PNG for each JSON file.

python -m bench.charts                 all of bench/results
python -m bench.charts FOLDER

Needs matplotlib: requirements.txt beside this file has it.
"""

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.figures import Figures, Series
from bench.scenario import OURS

_RESULTS = Path(__file__).parent / "results"
_PANEL_INCHES = (5.2, 3.0)
_COLUMNS = 3
_DOTS_PER_INCH = 110
_OURS_COLOUR: Final = "#2b6cb0"
_OTHER_COLOURS: Final = ("#a0aec0", "#d69e2e", "#718096", "#c05621", "#38a169")

Held = Mapping[str, Sequence[float]]


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.charts", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=_RESULTS)
    mpl.use("agg")
    for path in sorted(parser.parse_args().folder.glob("*.json")):
        figures = Figures.from_document(json.loads(path.read_text(encoding="utf-8")))
        draw(figures).savefig(path.with_suffix(".png"), dpi=_DOTS_PER_INCH)
        print(path.with_suffix(".png"))


def draw(figures: Figures) -> Figure:
    """Draw a panel for each name of a series: bars, or a curve where it has three points and more."""
    panels: dict[str, dict[Series, Held]] = {}
    for series, held in figures.values.items():
        panels.setdefault(series.name, {})[series] = held
    colours = _colours(figures)
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(columns * width, rows * height + 0.5), layout="constrained")
    figure.suptitle(f"{figures.scenario}: {figures.title}")
    for number, (name, points) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_panel(axes, points, colours)
        unit, better = next((series.unit, series.better) for series in points)
        axes.set_title("\n".join(textwrap.wrap(f"{name} [{unit}], {better} is better", 52)), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_panel(axes: Axes, points: Mapping[Series, Held], colours: Mapping[str, str]) -> None:
    if len(points) >= 3:
        _draw_curves(axes, points, colours)
    else:
        _draw_bars(axes, points, colours)


def _draw_curves(axes: Axes, points: Mapping[Series, Held], colours: Mapping[str, str]) -> None:
    names = dict.fromkeys(name for held in points.values() for name in held)
    for name in names:
        known = [(series.at or 0.0, held[name]) for series, held in points.items() if name in held]
        axes.plot(
            [at for at, _ in known],
            [median(values) for _, values in known],
            marker="o",
            color=colours[name],
            label=name,
        )
    places = [series.at or 0.0 for series in points]
    if max(places) >= 100 * min(places) > 0:
        axes.set_xscale("log")
        axes.set_xticks(places)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(next(series.axis for series in points), fontsize=7)
    axes.set_ylim(bottom=0)
    if len(names) > 1:
        axes.legend(fontsize=7, frameon=False)


def _draw_bars(axes: Axes, points: Mapping[Series, Held], colours: Mapping[str, str]) -> None:
    """Draw medians, with a line from the least to the most."""
    bars = [
        (name if series.at is None else f"{name}, {series.at:g} {series.axis}", name, values)
        for series, held in points.items()
        for name, values in held.items()
    ]
    labels = [label for label, _, _ in bars]
    middles = [median(values) for _, _, values in bars]
    reach = [
        [middle - min(values) for middle, (_, _, values) in zip(middles, bars, strict=True)],
        [max(values) - middle for middle, (_, _, values) in zip(middles, bars, strict=True)],
    ]
    drawn = axes.barh(
        labels, middles, xerr=reach, color=[colours[name] for _, name, _ in bars], ecolor="#333"
    )
    axes.bar_label(drawn, labels=[f"{middle:.3g}" for middle in middles], fontsize=7, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def _colours(figures: Figures) -> dict[str, str]:
    names = dict.fromkeys(name for held in figures.values.values() for name in held)
    others = [name for name in names if name != OURS]
    return {OURS: _OURS_COLOUR} | {
        name: _OTHER_COLOURS[number % len(_OTHER_COLOURS)] for number, name in enumerate(others)
    }


if __name__ == "__main__":
    main()
