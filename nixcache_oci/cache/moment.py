"""The time that decisions about age are made by, which knows how long it may be used again."""

from datetime import datetime, timedelta


class Moment:
    """A time; every comparison of ages is made here.

    A decision that looks at the time in no other way is the same until ``rest`` is over.

    Attributes:
        now: the time.
        rest: how long it takes until one of the comparisons so far comes out differently.
    """

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.rest = timedelta.max

    def is_past(self, time: datetime, duration: timedelta = timedelta(0)) -> bool:
        """Tell whether a duration after a time is over, or ends now."""
        left = self._left(time, duration)
        return left <= timedelta(0) or self._not_yet(left)

    def is_long_past(self, time: datetime, duration: timedelta) -> bool:
        """Tell whether a duration after a time is over."""
        left = self._left(time, duration)
        return left < timedelta(0) or self._not_yet(left)

    def _left(self, time: datetime, duration: timedelta) -> timedelta:
        # A difference, because a sum overflows for a time in the year 9999.
        return duration - (self.now - time)

    def _not_yet(self, left: timedelta) -> bool:
        """Remember when the answer changes."""
        self.rest = min(self.rest, left)
        return False
