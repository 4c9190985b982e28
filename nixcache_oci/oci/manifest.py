"""Image manifests and image indexes, and how to tell them apart.

No document may be read as both: a checker may have read it as the other kind (CVE-2021-41190). Docker's
schema 2 is the same under other names. The tag ``cache-index`` is an image index, and so is ``index.json`` of
a layout.
Source: OCI image specification, "Image Manifest" and "Image Index".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type as types
from nixcache_oci.oci.descriptor import Descriptor, get_descriptors
from nixcache_oci.oci.document import (
    clip,
    get_annotations,
    get_optional_text,
    get_others,
    parse_document,
    render_document,
    within,
)

MAX_MANIFEST_BYTES = 4 * 2**20
"""Read at most, of a manifest or image index: registries refuse larger ones."""
MAX_WRITTEN_MANIFEST_BYTES = 2**20
"""Written at most: far below the limits of registries."""

_ONLY_IN_MANIFESTS = ("config", "fsLayers", "layers")
_ONLY_IN_IMAGE_INDEXES = ("manifests",)
_ALL_TYPES = types.MANIFESTS + types.IMAGE_INDEXES


@dataclass(frozen=True, slots=True)
class Manifest:
    """A list of layers."""

    artifact_type: str | None  # None for a container image
    config: Descriptor  # a blob that describes the layers
    layers: tuple[Descriptor, ...]  # the blobs
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)  # free text by key
    media_type: str | None = types.IMAGE_MANIFEST  # as in the document, or None

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read an OCI or Docker image manifest; unknown fields are dropped.

        Raises FormatError, which names it, if a field is missing or wrong.
        """
        fields = parse_fields(content, "manifest", types.MANIFESTS)
        with within("manifest"):
            with within("config"):
                config = Descriptor.from_json(fields.get("config"))
            return cls(
                artifact_type=get_optional_text(fields, "artifactType") or None,
                config=config,
                layers=get_descriptors(fields, "layers"),
                annotations=get_annotations(fields),
                media_type=get_optional_text(fields, "mediaType"),
            )

    def render(self) -> bytes:
        """Write it: equal manifests give equal bytes and digests."""
        fields: dict[str, object] = {
            "schemaVersion": 2,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.media_type is not None:
            fields["mediaType"] = self.media_type
        if self.artifact_type is not None:
            fields["artifactType"] = self.artifact_type
        if self.annotations:
            fields["annotations"] = dict(self.annotations)
        return render_document(fields, "manifest")


def parse_media_type(content: bytes, stated: str = "") -> str:
    """Determine whether a document is a manifest or an image index, and return its media type.

    ``stated`` is the one from its repository; a general one, such as ``application/json``, is ignored. Raises
    FormatError if it is neither, or the stated type contradicts its own.
    """
    what = "manifest or image index"
    fields = parse_document(content, what, MAX_MANIFEST_BYTES)
    with within(what):
        media_type = _choose_media_type(fields, stated.partition(";")[0].strip().lower())
        _refuse_fields_of_the_other_kind(fields, media_type)
    return media_type


def parse_fields(content: bytes, what: str, media_types: tuple[str, ...]) -> dict[str, object]:
    """Read the fields of a manifest or an image index, which ``what`` names in errors.

    Raises FormatError if it is no JSON object, of another schema, or states another than these media types.
    """
    fields = parse_document(content, what, MAX_MANIFEST_BYTES)
    with within(what):
        version = fields.get("schemaVersion")
        if isinstance(version, bool) or version != 2:  # noqa: PLR2004 # a name would only repeat the field's
            raise FormatError(f"schemaVersion: expected 2, got {clip(version)}")
        media_type = get_optional_text(fields, "mediaType")
        if media_type is not None and media_type not in media_types:
            raise FormatError(f"mediaType: expected {media_types[0]}, got {clip(media_type)}")
        _refuse_fields_of_the_other_kind(fields, media_types[0])
    return fields


def _choose_media_type(fields: Mapping[str, object], stated: str) -> str:
    own = get_optional_text(fields, "mediaType")
    if own is not None and own not in _ALL_TYPES:
        raise FormatError(f"mediaType: {clip(own)} is neither")
    if stated in _ALL_TYPES:
        if own not in (None, stated):
            raise FormatError(f"it is stored as {stated}, but mediaType says {own}")
        return stated
    if own is not None:
        return own
    if "layers" in fields:
        return types.IMAGE_MANIFEST
    if "manifests" in fields:
        return types.IMAGE_INDEX
    raise FormatError("it has neither mediaType nor layers nor manifests")


def _refuse_fields_of_the_other_kind(fields: Mapping[str, object], media_type: str) -> None:
    is_image_index = media_type in types.IMAGE_INDEXES
    for name in _ONLY_IN_MANIFESTS if is_image_index else _ONLY_IN_IMAGE_INDEXES:
        if name in fields:
            raise FormatError(f"{name}: does not belong in {media_type}")


_KNOWN_IN_IMAGE_INDEXES = ("annotations", "manifests", "mediaType", "schemaVersion")


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """A list of manifests; ``dataclasses.replace`` keeps unknown fields."""

    manifests: tuple[Descriptor, ...]  # what it lists
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)  # free text by key
    media_type: str | None = types.IMAGE_INDEX  # as in the document, or None
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)  # unknown fields, as JSON values

    @classmethod
    def parse(cls, content: bytes, known: Iterable[Descriptor] = ()) -> Self:
        """Read an OCI image index or a Docker manifest list; known descriptors are not parsed again.

        Raises FormatError, which names it, if a field is missing or wrong.
        """
        fields = parse_fields(content, "image index", types.IMAGE_INDEXES)
        with within("image index"):
            return cls(
                manifests=get_descriptors(fields, "manifests", known),
                annotations=get_annotations(fields),
                media_type=get_optional_text(fields, "mediaType"),
                extra=get_others(fields, _KNOWN_IN_IMAGE_INDEXES),
            )

    def render(self) -> bytes:
        """Write it: equal indexes give equal bytes and digests."""
        fields: dict[str, object] = {
            **self.extra,
            "schemaVersion": 2,
            "manifests": [manifest.to_json() for manifest in self.manifests],
        }
        if self.media_type is not None:
            fields["mediaType"] = self.media_type
        if self.annotations:
            fields["annotations"] = dict(self.annotations)
        return render_document(fields, "image index")
