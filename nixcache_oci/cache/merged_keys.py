"""Which tables may list a store path: one sorted list over all of them, so that no look-up walks the tables.

A value is the first 48 bits of a row's key, then the slot of its table: 8 bytes a path. The list is cut into
pieces of some hundred values, however hash parts are distributed, since a registry may choose them. It is
immutable: an update makes anew only pieces in which rows come or go, and shares all others.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container, Generator, Iterable, Iterator
from typing import Final

from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_search import KEY_BITS

_VALUE_BITS: Final = 64
_SLOT_BITS: Final = 16  # several times ``MAX_SEGMENTS``
_SLOT: Final = (1 << _SLOT_BITS) - 1
_DROPPED_BITS: Final = KEY_BITS + _SLOT_BITS - _VALUE_BITS
_PIECE_VALUES: Final = 256
_MOST_PIECE_VALUES: Final = 2 * _PIECE_VALUES
# On average; fewer are left only where most tables went, and then all pieces are made anew.
_FEWEST_PIECE_VALUES: Final = 32
# Rows that are moved at a time, if hash parts are evenly distributed: 512 KiB.
_ROUND_ROWS: Final = 65536
# What is done in one step takes about a quarter of a millisecond.
_STEP_ROWS: Final = 2000
_STEP_SORTED: Final = 1024


class MergedKeys:
    """The keys of all tables; ``MergedKeys()`` has none.

    Attributes:
        files: each table at its slot; None where a slot is free. Empty tables have none.
    """

    def __init__(self) -> None:
        self.files: tuple[TableFile | None, ...] = ()
        self._pieces = [array("Q")]
        # A piece holds the values from its start up to the next one's.
        self._starts = array("Q", [0])

    @classmethod
    def of(cls, files: Iterable[TableFile]) -> "MergedKeys":
        """Merge tables at once."""
        merged = cls()
        for _ in merged._update(files):
            pass
        return merged

    def updated(self, files: Iterable[TableFile]) -> "Generator[None, None, MergedKeys]":
        """Merge these tables instead; in short steps, between which others get their turn."""
        files = list(files)
        updated = MergedKeys()
        if len(self._pieces) <= 1 + sum(file.count for file in files) // _FEWEST_PIECE_VALUES:
            updated.files, updated._pieces, updated._starts = self.files, self._pieces[:], self._starts[:]
        yield from updated._update(files)
        return updated

    def slots(self, key: int) -> list[int]:
        """Return the slots of all tables that list this ``row_key``; one in a billion others, too."""
        least = key >> _DROPPED_BITS << _SLOT_BITS
        most = least | _SLOT
        found: list[int] = []
        for number in range(bisect_right(self._starts, least) - 1, len(self._pieces)):
            piece = self._pieces[number]
            for at in range(bisect_left(piece, least), len(piece)):
                value = piece[at]
                if value > most:
                    return found
                found.append(value & _SLOT)
        return found

    def _update(self, files: Iterable[TableFile]) -> Iterator[None]:
        gone, new = self._assign_slots(files)
        moves = [*((slot, file, False) for slot, file in gone.items())]
        moves += ((slot, file, True) for slot, file in new.items())
        bits = (sum(file.count for _, file, _ in moves) // _ROUND_ROWS).bit_length()
        # A part of the key space at a time, so that little memory is needed for what is on its way.
        for number in reversed(range(1 << bits)):
            keys = range(number << (KEY_BITS - bits), (number + 1) << (KEY_BITS - bits))
            changes: dict[int, array[int]] = defaultdict(lambda: array("Q"))
            for slot, file, is_new in moves:
                yield
                for values in _values(file, slot, keys):
                    for piece, part in self._cut(values):
                        changes[piece].extend(part if is_new else ())
                    yield
            for piece in sorted(changes, reverse=True):  # backwards: the numbers before stay
                yield from self._replace(piece, changes.pop(piece), gone)

    def _assign_slots(self, files: Iterable[TableFile]) -> tuple[dict[int, TableFile], dict[int, TableFile]]:
        """Return the tables that go, and those that come, by slot."""
        added = {id(file): file for file in files if file.count}
        gone = {
            slot: file
            for slot, file in enumerate(self.files)
            if file is not None and added.pop(id(file), None) is None
        }
        slots = [None if slot in gone else file for slot, file in enumerate(self.files)]
        # Not those of tables that go now: while pieces change, a slot must say which of the two it is.
        free = [slot for slot, file in enumerate(self.files) if file is None]
        slots += [None] * (len(added) - len(free))
        new = dict(zip((*free, *range(len(self.files), len(slots))), added.values(), strict=False))
        for slot, file in new.items():
            slots[slot] = file
        self.files = tuple(slots)
        return gone, new

    def _cut(self, values: "array[int]") -> "Iterator[tuple[int, array[int]]]":
        """Cut ascending values where pieces start, and number them by piece."""
        start = 0
        while start < len(values):
            number = bisect_right(self._starts, values[start]) - 1
            part = values[start : bisect_left(values, self._end(number), start)]
            yield number, part
            start += len(part)

    def _end(self, number: int) -> int:
        return self._starts[number + 1] if number + 1 < len(self._starts) else 1 << _VALUE_BITS

    def _replace(self, number: int, added: "array[int]", gone: Container[int]) -> Iterator[None]:
        """Replace a piece by one or more."""
        kept = [value for value in self._pieces[number] if value & _SLOT not in gone]
        start = self._starts[number]
        made = []
        for piece in _sort(array("Q", kept) + added, start, (self._end(number) - start).bit_length()):
            if piece:
                made.append(piece)
            yield
        if not made and not number:
            made = [array("Q")]  # the first piece stays, for it begins at 0
        self._pieces[number : number + 1] = made
        self._starts[number : number + 1] = array(
            "Q", [start, *(piece[0] for piece in made[1:])][: len(made)]
        )


def _values(file: TableFile, slot: int, keys: range) -> "Iterator[array[int]]":
    start, end = (bisect_left(file.keys, key) for key in (keys.start, keys.stop))
    for first in range(start, end, _STEP_ROWS):
        some = file.keys[first : min(first + _STEP_ROWS, end)].tolist()
        yield array("Q", [key >> _DROPPED_BITS << _SLOT_BITS | slot for key in some])


def _sort(values: "array[int]", low: int, bits: int) -> "Iterator[array[int]]":
    """Sort values into pieces, each once, by their leading bits first; an empty one ends a step, too.

    Args:
        values: to sort.
        low: the least that they may be.
        bits: of the greatest, less ``low``.
    """
    if not bits:
        values = values[:1]  # all the same
    if len(values) <= _STEP_SORTED:
        ordered = list(dict.fromkeys(sorted(values)))  # mostly in order already
        size = -(-len(ordered) // -(-len(ordered) // _MOST_PIECE_VALUES)) if ordered else 1
        for start in range(0, len(ordered), size):
            yield array("Q", ordered[start : start + size])
        return
    shift = max(0, bits - (len(values) // _PIECE_VALUES).bit_length())
    parts = [array("Q") for _ in range(1 << (bits - shift))]
    for start in range(0, len(values), _STEP_ROWS):
        for value in values[start : start + _STEP_ROWS]:
            parts[(value - low) >> shift].append(value)
        yield array("Q")
    for number, part in enumerate(parts):
        yield from _sort(part, low + (number << shift), shift)
