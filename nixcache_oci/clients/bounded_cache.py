"""What was learnt a moment ago, and may be forgotten."""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A map that forgets the oldest entry when it is full.

    Args:
        entries: how many it holds.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        """Give a value; None where it is not known."""
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value, as the newest."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._entries:
            self._values.popitem(last=False)

    def forget(self, key: K) -> None:
        """Drop a value that turned out wrong, if it is known."""
        self._values.pop(key, None)
