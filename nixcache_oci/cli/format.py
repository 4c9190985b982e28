"""Sizes and times as people read them."""

from typing import Final

_STEP: Final = 1024
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_MINUTE: Final = 60
_HOUR: Final = 3600


def format_size(size: float) -> str:
    """Write a number of bytes: ``512 B``, ``34.1 MiB``."""
    if size < _STEP:
        return f"{size:.0f} B"
    shown = size / _STEP
    units = iter(_UNITS)
    unit = next(units)
    # What would be rounded up to 1,024 is told in the next unit.
    while round(shown, 1) >= _STEP and (larger := next(units, None)) is not None:
        shown, unit = shown / _STEP, larger
    return f"{shown:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Write a time: ``4.2 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if round(seconds, 1) < _MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
