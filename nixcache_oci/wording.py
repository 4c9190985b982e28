"""Counts, sizes, times and odd letters, for every line that people read: results, logs and errors."""

from typing import Final

_STEP: Final = 1024
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_MINUTE: Final = 60
_HOUR: Final = 3600


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write how many there are: ``0 paths``, ``1 path``, ``2 entries``.

    Args:
        number: how many.
        noun: in the singular.
        plural: where it does more than add an s.
    """
    return f"{number} {inflected(number, noun, plural)}"


def inflected(number: int, noun: str, plural: str | None = None) -> str:
    """Give the noun alone, as it stands after such a number; the arguments are those of ``counted``."""
    return noun if number == 1 else plural or f"{noun}s"


def format_size(size: float) -> str:
    """Write a number of bytes: ``512 B``, ``34.1 MiB``."""
    divisor, unit = _unit_for(size)
    return f"{_shown(size, divisor)} {unit}"


def format_share(part: float, whole: float) -> str:
    """Write how many bytes of how many, in the unit of the whole: ``34.1 of 120.5 MiB``."""
    divisor, unit = _unit_for(whole)
    return f"{_shown(part, divisor)} of {_shown(whole, divisor)} {unit}"


def format_duration(seconds: float) -> str:
    """Write a time: ``4.2 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if round(seconds, 1) < _MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def show_unprintable(text: str) -> str:
    r"""Make letters visible that are not, or that turn others around: ``\n`` for a newline, ``\u202e``."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _unit_for(size: float) -> tuple[int, str]:
    if size < _STEP:
        return 1, "B"
    divisor = _STEP
    units = iter(_UNITS)
    unit = next(units)
    # What would be rounded up to 1,024 is told in the next unit.
    while round(size / divisor, 1) >= _STEP and (larger := next(units, None)) is not None:
        divisor, unit = divisor * _STEP, larger
    return divisor, unit


def _shown(size: float, divisor: int) -> str:
    return f"{size:.0f}" if divisor == 1 else f"{size / divisor:.1f}"
