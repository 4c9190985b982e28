"""A scenario and its rounds.

A scenario is a module here with ``TITLE`` and ``run(bench)``. Its ``run`` sets up what it needs, and lets
contenders measure side by side:

    def run(bench: Bench) -> None:
        speed = Series("hits", "1/s", better="higher")
        with ...:
            bench.compare({OURS: lambda: {speed: ...}, "nginx": lambda: {speed: ...}})
        bench.expect(Target(speed, OURS, 1.0, beside="nginx"))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from bench.figures import Figures, Series, Target

OURS: Final = "nixcache-oci"
"""What this project's contender is called in every scenario."""

Measurement = Mapping[Series, float]
Contender = Callable[[], Measurement]


class Scenario(Protocol):
    """What a scenario's module holds."""

    TITLE: str

    def run(self, bench: "Bench") -> None:
        """Measure."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of a scenario.

    Attributes:
        figures: what was measured so far.
        rounds: how often each contender measures.
        is_quick: whether the run only has to show that it works: scenarios then take less of everything.
        size: of what is measured, instead of the scenario's own ones.
    """

    figures: Figures
    rounds: int
    is_quick: bool = False
    size: int | None = None

    def compare(self, contenders: Mapping[str, Contender], *, rounds: int | None = None) -> None:
        """Let contenders measure in turn, ``rounds`` times; another one begins each round.

        What the machine does meanwhile then hits all of them alike.
        """
        names = list(contenders)
        for number in range(self.rounds if rounds is None else rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                for series, value in contenders[name]().items():
                    self.figures.record(series, name, value)
                    print(f"  {name}: {series} {value:.6g}", flush=True)

    def expect(self, target: Target) -> None:
        """Hold a contender to a target."""
        self.figures.targets.append(target)

    def note(self, name: str, value: str) -> None:
        """Keep a circumstance, such as the version of a program."""
        self.figures.circumstances[name] = value
