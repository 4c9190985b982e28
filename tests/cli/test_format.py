"""Sizes and times as people read them."""

import pytest

from nixcache_oci.cli.format import format_duration, format_share, format_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (35_756_442, "34.1 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3 * 1024**5, "3072.0 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    """One digit behind the point, never 1024 of a unit that has a larger one."""
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (59.96, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.7, "1 h 0 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """Two units at most, and never sixty of one."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (35_756_442, 126_353_408, "34.1 of 120.5 MiB"),
        (3, 512, "3 of 512 B"),
        (512, 5 * 1024**3, "0.0 of 5.0 GiB"),
        (1024 * 1024 - 1, 1024 * 1024 - 1, "1.0 of 1.0 MiB"),
    ],
)
def test_shares(part: int, whole: int, text: str) -> None:
    """Both are told in one unit, so that they can be compared at a glance."""
    assert format_share(part, whole) == text
