"""Descriptors: how manifests and image indexes point at content.

Source: OCI image specification, "Content Descriptors".
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type as types
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.document import (
    clip,
    get_annotations,
    get_list,
    get_optional_text,
    get_others,
    get_text,
    parse_object,
    within,
)

_KNOWN = ("annotations", "artifactType", "digest", "mediaType", "size")
_MAX_SIZE = 2**63 - 1  # registries are Go programs, and parse it as int64
_MEDIA_TYPE = re.compile(
    r"[A-Za-z0-9][\w!#$&^.+-]{0,126}/[A-Za-z0-9][\w!#$&^.+-]{0,126}", re.ASCII
)  # RFC 6838


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at content."""

    media_type: str  # what the content is
    digest: Digest  # what it hashes to
    size: int  # its length in bytes
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)  # free text by key
    artifact_type: str | None = None  # of a manifest
    # Unknown fields (``platform``, ``urls``, ``data``), as JSON values.
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, text in (("mediaType", self.media_type), ("artifactType", self.artifact_type)):
            if text is not None and not _MEDIA_TYPE.fullmatch(text):
                raise FormatError(f"{name}: expected type/subtype, got {clip(text)}")
        if type(self.size) is not int or not 0 <= self.size <= _MAX_SIZE:  # True is an int
            raise FormatError(f"size: expected a number of bytes, got {clip(self.size)}")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a descriptor from parsed JSON; FormatError, which names it, if a field is missing or wrong."""
        fields = parse_object(value)
        return cls(
            media_type=get_text(fields, "mediaType"),
            digest=Digest.parse(get_text(fields, "digest")),
            size=_get_size(fields),
            annotations=get_annotations(fields),
            artifact_type=get_optional_text(fields, "artifactType") or None,
            extra=get_others(fields, _KNOWN),
        )

    def is_surely(self, value: object) -> bool:
        """Check whether ``from_json`` would return this descriptor; False if it has unknown fields."""
        if not isinstance(value, dict) or self.extra:
            return False
        return type(value.get("size")) is int and value == self.to_json()  # True and 1.0 equal 1

    def to_json(self) -> dict[str, object]:
        """Return JSON values, unknown fields included."""
        fields: dict[str, object] = {
            **self.extra,
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.artifact_type is not None:
            fields["artifactType"] = self.artifact_type
        if self.annotations:
            fields["annotations"] = dict(self.annotations)
        return fields


def get_descriptors(
    fields: Mapping[str, object], name: str, known: Iterable[Descriptor] = ()
) -> tuple[Descriptor, ...]:
    """Read a required list of descriptors; FormatError if it is missing, or a descriptor is malformed.

    Those that are known are not parsed again: an index may list thousands, of which one is new.
    """
    by_digest = {str(one.digest): one for one in known}
    descriptors = []
    for position, value in enumerate(get_list(fields, name)):
        match value:
            case {"digest": str(digest)} if digest in by_digest and by_digest[digest].is_surely(value):
                descriptors.append(by_digest[digest])
            case _:
                with within(f"{name}[{position}]"):
                    descriptors.append(Descriptor.from_json(value))
    return tuple(descriptors)


def _get_size(fields: Mapping[str, object]) -> int:
    size = fields.get("size")
    if not isinstance(size, int):
        raise FormatError(f"size: expected a number of bytes, got {clip(size)}")
    return size


EMPTY_CONFIG_CONTENT = b"{}"
EMPTY_CONFIG = Descriptor(types.EMPTY, Digest.of(EMPTY_CONFIG_CONTENT), len(EMPTY_CONFIG_CONTENT))
"""The config of a manifest that is not a container image; its blob is ``EMPTY_CONFIG_CONTENT``."""
