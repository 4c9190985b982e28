"""Times as the format writes them: UTC, to the second.

Source: design section 2. In text ``2026-11-21T03:15:00Z`` (RFC 3339), in a tag ``20261121t031500z``,
because a tag may hold no colon, and some registries store it in lower case.
"""

import re
from datetime import UTC, datetime, timedelta

from nixcache_oci.errors import FormatError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TEXT = "%Y-%m-%dT%H:%M:%SZ"
_TAG = "%Y%m%dt%H%M%Sz"
# strptime also accepts one digit for two.
_TEXT_SHAPE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_TAG_SHAPE = re.compile(r"[0-9]{8}t[0-9]{6}z")


def now() -> datetime:
    """Return the time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def other_than(time: datetime, former: datetime) -> datetime:
    """Return a time for what replaces a segment of ``former``, at most a second later than the given one.

    A replacement with the same content and time would have the digest of what it replaces.
    """
    return time if time != former else time + timedelta(seconds=1)


def format_time(time: datetime) -> str:
    """Write an aware time as ``2026-11-21T03:15:00Z``; fractions of a second are dropped."""
    # strftime writes years before 1000 with fewer digits, which cannot be parsed.
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def parse_time(text: str) -> datetime:
    """Read ``2026-11-21T03:15:00Z``.

    Raises:
        FormatError: any other form, or no such time.
    """
    return _parse(text, _TEXT_SHAPE, _TEXT)


def format_tag_time(time: datetime) -> str:
    """Write an aware time as ``20261121t031500z``."""
    return format_time(time).replace("-", "").replace(":", "").lower()


def parse_tag_time(text: str) -> datetime:
    """Read ``20261121t031500z``, in either case: older versions wrote upper case.

    Raises:
        FormatError: any other form, or no such time.
    """
    return _parse(text.lower(), _TAG_SHAPE, _TAG)


def _parse(text: str, shape: re.Pattern[str], form: str) -> datetime:
    if shape.fullmatch(text):
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            pass  # the right shape, but no such day or hour
    raise FormatError(f"time: expected one like {_example(form)}, got {text[:40]!r}")


def _example(form: str) -> str:
    return datetime(2026, 11, 21, 3, 15, tzinfo=UTC).strftime(form)
