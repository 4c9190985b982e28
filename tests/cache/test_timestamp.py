"""Times as the format writes them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from nixcache_oci.cache.timestamp import format_tag_time, format_time, parse_tag_time, parse_time
from nixcache_oci.errors import FormatError

TIME = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)


def test_both_forms() -> None:
    """In UTC and to the second, whatever the zone that it was given in."""
    given = (TIME + timedelta(microseconds=999_999)).astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert format_time(given) == "2026-11-21T03:15:00Z"
    assert format_tag_time(given) == "20261121t031500z"
    assert parse_time("2026-11-21T03:15:00Z") == parse_tag_time("20261121t031500z") == TIME
    assert parse_tag_time("20261121T031500Z") == TIME


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-21",
        "2026-11-21T03:15:00",
        "2026-11-21T03:15:00+00:00",
        "2026-11-21T3:15:00Z",
        "2026-11-21T03:15:00.5Z",
        "2026-02-30T03:15:00Z",
        "2026-11-21T24:00:00Z",
        "2026-11-21T03:15:60Z",
        "0000-11-21T03:15:00Z",
        "2026-11-21T03:15:0\N{ARABIC-INDIC DIGIT ZERO}Z",
        "2026-11-21T03:15:00Z\n",
    ],
)
def test_any_other_form_is_refused(text: str) -> None:
    """gc deletes by these times: it must not guess one."""
    with pytest.raises(FormatError):
        parse_time(text)
    with pytest.raises(FormatError):
        parse_tag_time(text.replace("-", "").replace(":", ""))
