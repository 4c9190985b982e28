"""Numbers with the noun that they count, for every line that people read: results, logs and errors."""


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
