"""Figures as text: medians with spread, ratios to this project's contender, and the targets."""

from collections.abc import Iterator
from statistics import median

from bench.figures import Figures, is_met, spread
from bench.scenario import OURS


def render_report(figures: Figures) -> str:
    """Write one scenario's tables."""
    lines = ["", f"{figures.scenario}: {figures.title}"]
    lines += [f"  {name}: {value}" for name, value in figures.circumstances.items()]
    lines += _table(
        ("series", "contender", "median", "spread", f"{OURS} / it"), list(_rows(figures)), is_number_from=2
    )
    if figures.targets:
        lines += ["", *_table(("target", "reached", ""), list(_target_rows(figures)), is_number_from=1)]
    return "\n".join(lines)


def _rows(figures: Figures) -> Iterator[tuple[str, ...]]:
    for series, held in figures.values.items():
        ours = median(held[OURS]) if OURS in held else None
        for name, values in held.items():
            middle = median(values)
            ratio = f"{ours / middle:.3g}" if ours is not None and middle and name != OURS else ""
            yield str(series), name, f"{middle:.4g}", f"{spread(values):.0%}", ratio


def _target_rows(figures: Figures) -> Iterator[tuple[str, ...]]:
    for target in figures.targets:
        reached = figures.reached(target)
        value = "not measured" if reached is None else f"{reached:.3g}"
        yield str(target), value, "met" if is_met(target, figures) else "MISSED"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], *, is_number_from: int) -> list[str]:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column >= is_number_from else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
