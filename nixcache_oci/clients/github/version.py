"""Versions of a container package, as GitHub's REST API lists them: one for each manifest, tagged or not.

Source: GitHub's documentation, "REST API endpoints for packages", list package versions.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.document import clip, get_list, get_text, parse_object, within


@dataclass(frozen=True, slots=True)
class PackageVersion:
    """A version.

    Attributes:
        number: GitHub's own, by which it is deleted.
        digest: of the manifest.
        created: when the manifest was pushed first.
        is_tagged: whether a tag points at it.
    """

    number: int
    digest: Digest
    created: datetime
    is_tagged: bool


def parse_versions(body: bytes) -> list[PackageVersion]:
    """Read one page of versions; one that is not named by a sha256 digest is none of ours, and left out.

    Raises:
        FormatError: this is no such page. What is not understood must not be deleted.
    """
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        raise FormatError("the list of versions is not JSON") from None  # what came is not worth showing
    if not isinstance(page, list):
        raise FormatError(f"the list of versions is not a list, but {clip(page)}")
    with within("a version of the package"):
        return [version for value in page for version in _parse_version(parse_object(value))]


def _parse_version(fields: Mapping[str, object]) -> Iterator[PackageVersion]:
    name = get_text(fields, "name")
    if not name.startswith("sha256:"):
        return
    number = fields.get("id")
    if type(number) is not int or number <= 0:  # True is an int, too
        raise FormatError(f"id: expected a number, got {clip(number)}")
    container = parse_object(parse_object(fields.get("metadata")).get("container"))
    yield PackageVersion(
        number, Digest.parse(name), _parse_created(fields), is_tagged=bool(get_list(container, "tags"))
    )


def _parse_created(fields: Mapping[str, object]) -> datetime:
    text = get_text(fields, "created_at")
    try:
        created = datetime.fromisoformat(text)
    except ValueError:
        created = None
    if created is None or created.tzinfo is None:
        raise FormatError(f"created_at: expected a time with its zone, got {clip(text)}")
    return created
