"""What was measured: kept whole in JSON, and held against targets in the right direction."""

import json

import pytest

from bench.figures import Figures, Series, Target, is_met
from bench.report import render_report
from bench.scenario import OURS, Bench

TIME = Series("time", "s")
SPEED = Series("speed", "1/s", better="higher", at=40, axis="ms")


def measured() -> Figures:
    figures = Figures("made up", "a scenario")
    bench = Bench(figures, rounds=3)
    numbers = iter(range(1, 100))
    bench.compare({OURS: lambda: {TIME: next(numbers), SPEED: 30}, "other": lambda: {TIME: 10, SPEED: 10}})
    return figures


def test_json_keeps_everything() -> None:
    """Charts are drawn later, from the file."""
    figures = measured()
    figures.targets.append(Target(SPEED, OURS, 2, beside="other"))
    document = json.loads(json.dumps(figures.to_document()))
    assert Figures.from_document(document) == figures


@pytest.mark.parametrize(
    ("target", "reached", "met"),
    [
        (Target(TIME, OURS, 2), 2, True),
        (Target(TIME, OURS, 1.9), 2, False),
        (Target(TIME, OURS, 0.2, beside="other"), 0.2, True),
        (Target(SPEED, OURS, 3, beside="other"), 3, True),
        (Target(SPEED, OURS, 3.1, beside="other"), 3, False),
        (Target(SPEED, "nobody", 1), None, False),
    ],
)
def test_targets_know_their_direction(target: Target, reached: float | None, met: bool) -> None:
    """What was not measured is not met."""
    figures = measured()
    assert figures.reached(target) == reached
    assert is_met(target, figures) is met
    figures.targets.append(target)
    assert ("MISSED" in render_report(figures)) is not met


def test_contenders_take_turns() -> None:
    """Another one begins each round: what the machine does meanwhile hits all alike."""
    order: list[str] = []

    def contender(name: str) -> dict[Series, float]:
        order.append(name)
        return {TIME: 1}

    Bench(Figures("made up", ""), rounds=2).compare(
        {"a": lambda: contender("a"), "b": lambda: contender("b")}
    )
    assert order == ["a", "b", "b", "a"]
