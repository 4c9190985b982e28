"""Image indexes: lists of manifests. The tag ``cache-index`` is one, and so is ``index.json`` of a layout.

Source: OCI image specification, "Image Index".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from nixcache_oci.oci import media_type as types
from nixcache_oci.oci.descriptor import Descriptor, get_descriptors
from nixcache_oci.oci.document import (
    get_annotations,
    get_optional_text,
    get_others,
    render_document,
    within,
)
from nixcache_oci.oci.manifest import parse_fields

_KNOWN = ("annotations", "manifests", "mediaType", "schemaVersion")


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """A list of manifests; ``dataclasses.replace`` keeps unknown fields.

    Attributes:
        manifests: what it lists.
        annotations: free text by key.
        media_type: as in the document, or None.
        extra: unknown fields, as JSON values.
    """

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    media_type: str | None = types.IMAGE_INDEX
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read an OCI image index or a Docker manifest list.

        Raises:
            FormatError: a field is missing or wrong; the error names it.
        """
        fields = parse_fields(content, "image index", types.IMAGE_INDEXES)
        with within("image index"):
            return cls(
                manifests=get_descriptors(fields, "manifests"),
                annotations=get_annotations(fields),
                media_type=get_optional_text(fields, "mediaType"),
                extra=get_others(fields, _KNOWN),
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
