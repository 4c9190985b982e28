"""A cache that is bounded by its number of entries."""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A map that drops its oldest entry when it would hold more than ``entries``."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        """Return a value; None for an unknown key."""
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value, as the newest entry."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._entries:
            self._values.popitem(last=False)

    def forget(self, key: K) -> None:
        """Drop a value, if it is there."""
        self._values.pop(key, None)
