"""The time that gc decides by, which knows how long it may be used again."""

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
        return self._compare(time, duration) <= timedelta(0)

    def is_long_past(self, time: datetime, duration: timedelta) -> bool:
        """Tell whether a duration after a time is over."""
        return self._compare(time, duration) < timedelta(0)

    def _compare(self, time: datetime, duration: timedelta) -> timedelta:
        # A difference, because a sum overflows for a time in the year 9999.
        left = duration - (self.now - time)
        if left >= timedelta(0):
            self.rest = min(self.rest, left)
        return left
