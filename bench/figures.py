"""What a scenario measured, as plain data: values of contenders in series, and what was to be reached.

Absolute values mean little away from the machine that they were taken on; ratios within one run do.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Series:
    """One thing that is measured.

    Attributes:
        name: such as ``time of 500 small paths``.
        unit: such as ``s``.
        better: which direction is.
        at: where on the axis, for series of the same name that make a curve.
        axis: such as ``paths``; empty where the series stands for itself.
    """

    name: str
    unit: str
    better: Better = "lower"
    at: float | None = None
    axis: str = ""

    def __str__(self) -> str:
        place = f", {self.at:,.10g} {self.axis}" if self.at is not None else ""
        return f"{self.name}{place} [{self.unit}]"


@dataclass(frozen=True, slots=True)
class Target:
    """What a contender must reach.

    Attributes:
        series: of the value.
        contender: who must reach it.
        limit: the value that is still good, in the series' better direction; with ``beside``, a ratio.
        beside: the contender that its median is divided by; empty: the median itself counts.
    """

    series: Series
    contender: str
    limit: float
    beside: str = ""

    def __str__(self) -> str:
        bound = "at most" if self.series.better == "lower" else "at least"
        what = f"{self.limit:g} times {self.beside}" if self.beside else f"{self.limit:g} {self.series.unit}"
        return f"{self.series}: {self.contender} {bound} {what}"


@dataclass(slots=True)
class Figures:
    """All that one run of a scenario gave.

    Attributes:
        scenario: its name.
        title: what it asks, for people.
        circumstances: of the run, such as the machine's load.
        values: one a round, by series and contender.
        targets: what was to be reached.
    """

    scenario: str
    title: str
    circumstances: dict[str, str] = field(default_factory=dict)
    values: dict[Series, dict[str, list[float]]] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def record(self, series: Series, contender: str, value: float) -> None:
        """Add the value of one round."""
        self.values.setdefault(series, {}).setdefault(contender, []).append(value)

    def reached(self, target: Target) -> float | None:
        """Give the value that a target is held against; None where it was not measured."""
        held = self.values.get(target.series, {})
        if target.contender not in held or (target.beside and target.beside not in held):
            return None
        value = median(held[target.contender])
        return value / median(held[target.beside]) if target.beside else value

    def to_document(self) -> dict[str, Any]:
        """Give what JSON can hold."""
        return {
            "scenario": self.scenario,
            "title": self.title,
            "circumstances": self.circumstances,
            "series": [{**asdict(series), "values": held} for series, held in self.values.items()],
            "targets": [
                {**asdict(target), "reached": self.reached(target), "is_met": is_met(target, self)}
                for target in self.targets
            ],
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Figures":
        """Read what ``to_document`` gave."""
        values = {
            Series(one["name"], one["unit"], one["better"], one["at"], one["axis"]): one["values"]
            for one in document["series"]
        }
        targets = [
            Target(Series(**one["series"]), one["contender"], one["limit"], one["beside"])
            for one in document["targets"]
        ]
        return cls(document["scenario"], document["title"], document["circumstances"], values, targets)


def is_met(target: Target, figures: Figures) -> bool:
    """Tell whether a target was reached."""
    reached = figures.reached(target)
    if reached is None:
        return False
    return reached <= target.limit if target.series.better == "lower" else reached >= target.limit


def spread(values: Sequence[float]) -> float:
    """Tell how far values lie from each other: the largest less the smallest, as a part of the median."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0
