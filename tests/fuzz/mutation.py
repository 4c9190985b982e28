"""Mutations: what is almost right finds more in a parser than what is merely random.

A seed is taken to pieces as the formats are made of (lines, numbers, quoted strings, bytes), and some of the
pieces are lost, doubled, exchanged, or replaced by what has confused parsers before.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from hypothesis import strategies as st

_MOST_STEPS: Final = 4
_MOST_BYTES: Final = 64 * 1024  # of a mutant: what is long is tried by name, not by chance
_NUMBER: Final = re.compile(rb"[0-9]+")
_WORD: Final = re.compile(rb'"[^"]*"|[A-Za-z0-9_.+/=-]+')

NUMBERS: Final = tuple(
    text.encode()
    for text in (
        *("0", "00", "-0", "-1", "+1", "1.0", "1e2", "1e400", "-1e400", "0x10", "1_0", " 1", "1 ", "1,1"),
        *("2147483648", "4294967296", "9223372036854775807", "9223372036854775808"),
        *("18446744073709551615", "18446744073709551616", str(10**30), str(10**100), "9" * 5000),
        *("true", "null", "NaN", "Infinity", '"1"', "[]", "{}", "\u0661", "\uff11"),
    )
)
"""What stands where a number should."""

WORDS: Final = tuple(
    text.encode("utf-8", "surrogatepass")
    for text in (
        *("", " ", "\t", ":", ": ", "=", "/", "//", ".", "..", "../..", "%2e%2e", "%2F", "%00", "\\", "-"),
        *("\0", "\x01", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff", "\ud800", "\U0001f600", "é", "e\u0301"),
        *("\n", "\r", "\r\n", "\n\n", "\r\n\r\n", "\nStorePath: /nix/store/x", "null", "true", "{}", "[]"),
        *('"', '\\"', "\\ud800", "\\u0000", "'", "<", ">", ",", ";", "#", "?", "@", "*", "$(id)", "a" * 300),
        *("sha256:", "sha512:", "md5:", "http://", "file:///etc/passwd", "oci:", "0001-01-01T00:00:00Z"),
        *("9999-12-31T23:59:59Z", "00010101T000000Z", "[" * 200, "[" * 5000, '{"a":' * 2000),
    )
)
"""What stands where a word should."""

_Step: TypeAlias = Callable[[random.Random, bytes], bytes]


def mutants(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Make inputs: mutants of the seeds, joints of two of them, and now and then mere bytes."""
    near = st.builds(_mutate, st.sampled_from(seeds), st.sampled_from(seeds), st.integers(0, 2**64 - 1))
    return st.one_of(near, near, near, st.binary(max_size=200))


def _mutate(seed: bytes, other: bytes, number: int) -> bytes:
    """Mutate a seed; the number says how, and the same number does it again."""
    chance = random.Random(number)
    steps: tuple[_Step, ...] = (
        _replace_number,
        _replace_number,
        _replace_word,
        _insert_word,
        _lose_line,
        _double_line,
        _move_line,
        _flip_bit,
        _insert_byte,
        _lose_bytes,
        _double_bytes,
        _cut,
        _end_lines_otherwise,
        lambda chance, data: _join(chance, data, other),
    )
    data = seed
    for _ in range(chance.randint(1, _MOST_STEPS)):
        data = chance.choice(steps)(chance, data)[:_MOST_BYTES]
    return data


def _replace(
    chance: random.Random, data: bytes, pattern: re.Pattern[bytes], values: Sequence[bytes]
) -> bytes:
    matches = list(pattern.finditer(data))
    if not matches:
        return data + chance.choice(values)
    match = chance.choice(matches)
    return data[: match.start()] + chance.choice(values) + data[match.end() :]


def _replace_number(chance: random.Random, data: bytes) -> bytes:
    return _replace(chance, data, _NUMBER, NUMBERS)


def _replace_word(chance: random.Random, data: bytes) -> bytes:
    return _replace(chance, data, _WORD, WORDS)


def _insert_word(chance: random.Random, data: bytes) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.choice(WORDS) + data[at:]


def _lose_line(chance: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def _double_line(chance: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        lines.insert(chance.randint(0, len(lines)), chance.choice(lines))
    return b"".join(lines)


def _move_line(chance: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        line = lines.pop(chance.randrange(len(lines)))
        lines.insert(chance.randint(0, len(lines)), line)
    return b"".join(lines)


def _flip_bit(chance: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _insert_byte(chance: random.Random, data: bytes) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + bytes([chance.randrange(256)]) + data[at:]


def _lose_bytes(chance: random.Random, data: bytes) -> bytes:
    start = chance.randint(0, len(data))
    return data[:start] + data[start + chance.randint(1, 16) :]


def _double_bytes(chance: random.Random, data: bytes) -> bytes:
    start = chance.randint(0, len(data))
    end = start + chance.randint(1, 64)
    return data[:end] + data[start:end] * chance.choice((1, 1, 1, 300)) + data[end:]


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randint(0, len(data))]


def _end_lines_otherwise(chance: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", chance.choice((b"\r\n", b"\r", b"\n\n", b"\0", "\u2028".encode())))


def _join(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]
