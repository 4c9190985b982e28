"""What README shows of the measurements is what was measured."""

import json
import re
from statistics import median

from bench.chart import RESULTS, render_chart, render_page
from bench.day import ONE_PUSH, series_of_closure
from bench.figures import Figures
from bench.scenario import OURS


def _figures() -> dict[str, Figures]:
    documents = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json")))
    return {document["scenario"]: Figures.from_document(document) for document in documents}


def _day() -> Figures:
    """Make up what a day gives."""
    figures = Figures("day", "a day", {"Nix": "2.8.0, 2.34.8", "cores": "2", "begun": "2026-12-01 03:00 UTC"})
    for publishes, one_push, all_day in ((300, [1.0, 2.0, 4.0], [3.0, 3.0, 3.0]), (1000, [4.0], [2.5])):
        figures.circumstances[f"paths of {publishes} publishes"] = f"{publishes * 10:,}"
        for nix in ("2.8.0", "2.34.8"):
            factor = 1.0 if nix == "2.34.8" else 10.0
            for contender, seconds in ((ONE_PUSH, one_push), (OURS, all_day)):
                for one in seconds:
                    figures.record(series_of_closure(publishes, nix), contender, one * factor)
    return figures


def _bars(chart: str) -> list[tuple[int, float]]:
    """Give the width of each bar, and the seconds beside it."""
    widths = [int(width) for width in re.findall(r'width="(\d+)" height="22"', chart)]
    seconds = [float(text) for text in re.findall(r">(\d+\.\d\d) s", chart)]
    return list(zip(widths, seconds, strict=True))


def test_the_page_and_the_chart_are_those_of_the_figures() -> None:
    """Nobody edits them, and no newer figures are left out."""
    figures = _figures()
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == render_page(figures.values())
    chart = (RESULTS / "substitution.svg").read_text(encoding="utf-8")
    assert chart == render_chart(figures["substitution"], figures.get("day"))


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    """Lengths start at nought and are in proportion; the medians stand beside them."""
    substitution = _figures()["substitution"]
    bars = _bars(render_chart(substitution, None))
    assert len(bars) == 3
    for width, one in bars:
        assert abs(width / bars[0][0] - one / bars[0][1]) < 0.01
    newest = substitution.circumstances["Nix"].split(", ")[-1]
    values = {series.name: held for series, held in substitution.values.items() if series.at == 40}
    assert f"{median(values[f'500 small paths, Nix {newest}']['nixcache-oci']):.2f}" == f"{bars[1][1]:.2f}"


def test_a_day_of_publishes_is_shown_beside_one_push() -> None:
    """Of the newest Nix, each length of a day, on a scale of their own."""
    substitution = _figures()["substitution"]
    alone, chart = render_chart(substitution, None), render_chart(substitution, _day())
    bars = _bars(chart)
    assert bars[:3] == _bars(alone)
    assert [one for _, one in bars[3:]] == [2.0, 3.0, 4.0, 2.5]
    assert [round(width / bars[5][0], 2) for width, _ in bars[3:]] == [0.5, 0.75, 1.0, 0.62]
    assert "3,000 paths published in one push" in chart
    assert "the same in 1,000 publishes, all day" in chart
    assert "Nix 2.34.8 fetches 300 store paths that were published all day" in chart
    height = int(re.findall(r'height="(\d+)"', chart)[0])
    assert (
        height
        > max(int(y) for y in re.findall(r'y="(\d+)"', chart))
        > int(re.findall(r'height="(\d+)"', alone)[0])
    )
