"""Every parser of what strangers wrote: a value that survives a rewrite, or the package's own error."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import corpus
from tests.fuzz.mutation import mutants
from tests.fuzz.targets import TARGETS, Target

QUICK = settings(max_examples=150, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=20_000, suppress_health_check=list(HealthCheck))

LONG_BYTES = 200_000
LONG_PIECES = tuple(
    piece.encode()
    for piece in (
        *'a09.-_:/,;=" \t\\%[{<\r\n',
        "a.",
        "a,",
        'a="',
        '\\"',
        *("a-a_", "%25", "1h", "a=b, ", "<>;", "a: b\n"),
    )
)
BY_NAME = {target.name: target for target in TARGETS}
FILES = [(target.name, path) for target in TARGETS for path in corpus.files(target.name)]


def run(target: Target, extent: settings, tried: Counter[str]) -> None:
    times = accepted = 0

    @extent
    @given(data=mutants(corpus.seeds(target.name)))
    def fuzz(data: bytes) -> None:
        nonlocal times, accepted
        times += 1
        accepted += target.holds(data)

    fuzz()
    assert accepted, "nothing of it was accepted: the mutants are too far off to find anything"
    tried[target.name] += times


@pytest.mark.parametrize(("name", "path"), FILES, ids=[f"{name}/{path.name}" for name, path in FILES])
def test_seeds(name: str, path: Path) -> None:
    """Each of the corpus holds the rule; what is not named otherwise is accepted, or it is a poor seed."""
    is_accepted = BY_NAME[name].holds(path.read_bytes())
    assert is_accepted == (not path.name.startswith("refused-")) or path.name.startswith("failure-")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_is_long_takes_no_longer_than_its_length(target: Target) -> None:
    """A pattern that tries every way to part its input would still be at it when the test's time is over."""
    for seed in corpus.seeds(target.name)[:2]:
        half = len(seed) // 2
        for piece in LONG_PIECES:
            long = piece * (LONG_BYTES // len(piece))
            for data in (long, seed + long, seed[:half] + long + seed[half:]):
                target.holds(data)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_parser(target: Target, tried: Counter[str]) -> None:
    """The same inputs each time."""
    run(target, QUICK, tried)


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_parser_for_long(target: Target, tried: Counter[str]) -> None:
    """Other inputs each time; a failure goes into the corpus."""
    run(target, LONG, tried)
