"""What README shows of the measurements is what was measured."""

import json
import re
from statistics import median

from bench.chart import RESULTS, render_chart, render_page
from bench.figures import Figures


def _figures() -> list[Figures]:
    return [
        Figures.from_document(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(RESULTS.glob("*.json"))
    ]


def test_the_page_and_the_chart_are_those_of_the_figures() -> None:
    """Nobody edits them, and no newer figures are left out."""
    figures = _figures()
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == render_page(figures)
    (substitution,) = (one for one in figures if one.scenario == "substitution")
    assert (RESULTS / "substitution.svg").read_text(encoding="utf-8") == render_chart(substitution)


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    """Lengths start at nought and are in proportion; the medians stand beside them."""
    (substitution,) = (one for one in _figures() if one.scenario == "substitution")
    chart = render_chart(substitution)
    widths = [int(width) for width in re.findall(r'width="(\d+)" height="22"', chart)]
    seconds = [float(text) for text in re.findall(r">(\d+\.\d\d) s", chart)]
    assert len(widths) == len(seconds) == 3
    for width, one in zip(widths, seconds, strict=True):
        assert abs(width / widths[0] - one / seconds[0]) < 0.01
    newest = substitution.circumstances["Nix"].split(", ")[-1]
    values = {series.name: held for series, held in substitution.values.items() if series.at == 40}
    assert f"{median(values[f'500 small paths, Nix {newest}']['nixcache-oci']):.2f}" == f"{seconds[1]:.2f}"
