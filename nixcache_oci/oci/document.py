"""JSON documents of manifests: parsed strictly, written so that equal values give equal bytes.

Go programs write an empty list or map as ``null``, which is read as empty; a missing field is not.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from nixcache_oci.errors import FormatError
from nixcache_oci.wording import counted

MAX_VALUES: Final = 250_000
"""Per document: an index of 4 MiB has 100,000. Two bytes can be a list: a million lists take hundreds of MiB,
and parsing blocks all threads until the next object. This many values take 30 ms."""


def parse_document(content: bytes, what: str, limit: int) -> dict[str, object]:
    """Read one JSON object from UTF-8 text; ``what`` names it in errors.

    Raises FormatError if it is over the limit, in bytes, has too many values, is not JSON (NaN is not),
    nested too deeply, or not an object.
    """
    if len(content) > limit:
        raise FormatError(f"{what}: {counted(len(content), 'byte')}, over the limit of {limit}")
    # Each value comes behind one of these, all but the first of an object or list behind a comma.
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise FormatError(f"{what}: over the limit of {MAX_VALUES} values")
    try:
        document = json.loads(
            content.decode(),
            parse_constant=_refuse_constant,
            parse_float=_parse_finite_float,
            object_hook=_let_others_run,
        )
    except ValueError as error:
        raise FormatError(f"{what}: not a JSON document in UTF-8: {error}") from error
    except RecursionError as error:
        raise FormatError(f"{what}: nested too deeply") from error
    if not isinstance(document, dict):
        raise FormatError(f"{what}: expected a JSON object, got {clip(document)}")
    return document


def read_json(content: bytes | str) -> object:
    """Read a stranger's JSON, of which nothing may get into a message; None if it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def render_document(document: Mapping[str, object], what: str) -> bytes:
    """Write a JSON object: compact, keys sorted, ASCII only; FormatError for what JSON cannot represent."""
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{what}: cannot be written as JSON: {error}") from error


@contextmanager
def within(where: str) -> Iterator[None]:
    """Prefix every FormatError with its place in the document."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def parse_object(value: object) -> dict[str, object]:
    """Check that a value is a JSON object; FormatError if it is not."""
    if not isinstance(value, dict):
        raise FormatError(f"expected an object, got {clip(value)}")
    return value


def get_text(fields: Mapping[str, object], name: str) -> str:
    """Read a required string; FormatError if it is missing, or not a string."""
    text = get_optional_text(fields, name)
    if text is None:
        raise FormatError(f"{name}: is missing")
    return text


def get_optional_text(fields: Mapping[str, object], name: str) -> str | None:
    """Read an optional string; FormatError if it is something else."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{name}: expected a string, got {clip(value)}")
    return value


def get_list(fields: Mapping[str, object], name: str) -> list[object]:
    """Read a required list; FormatError if it is missing, or not a list."""
    if name not in fields:
        raise FormatError(f"{name}: is missing")
    value = fields[name]
    if value is None:
        return []
    if not isinstance(value, list):
        raise FormatError(f"{name}: expected a list, got {clip(value)}")
    return value


def get_annotations(fields: Mapping[str, object]) -> dict[str, str]:
    """Read the optional annotations; FormatError unless they are a map of strings."""
    value = fields.get("annotations")
    if value is None:
        return {}
    annotations: dict[str, str] = {}
    with within("annotations"):
        for key, text in parse_object(value).items():
            if not isinstance(text, str):
                raise FormatError(f"{key[:80]!r}: expected a string, got {clip(text)}")
            annotations[key] = text
    return annotations


def get_others(fields: Mapping[str, object], known: Collection[str]) -> dict[str, object]:
    """Return the unknown fields, which a rewrite carries over."""
    return {name: value for name, value in fields.items() if name not in known}


def clip(value: object) -> str:
    """Show an untrusted value in an error: one short line."""
    return type(value).__name__ if isinstance(value, dict | list) else repr(value)[:80]


def _let_others_run(fields: dict[str, object]) -> dict[str, object]:
    """Return an object as it is: only between calls of Python functions do other threads get their turn."""
    return fields


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _parse_finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
