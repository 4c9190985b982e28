"""How to publish, parsed and frozen."""

from dataclasses import dataclass, field

from nixcache_oci.cache.segment import MAX_LAYERS
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.nix.signature import PublicKey, SecretKey
from nixcache_oci.publisher.compression import NarEncoding


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """How to publish.

    Attributes:
        keys: what every listed path is signed with.
        upstream_key_names: who signs what clients get elsewhere.
        verify_upstream: whether the upstreams are asked if they really have it.
        encoding: how NARs are compressed.
        jobs: how many store objects are staged at once.
        max_layers: of a manifest.
        is_strict: whether one path that cannot be sent keeps all others from being listed.
        source: where the paths come from, such as the address of a commit; for the table's header.
        allow_unsigned: whether paths are listed that nobody vouches for.
        allow_new_key: whether a key signs that a cache with keys does not record yet.
        repository_source: address of the GitHub repository: GHCR links the package to it.
    """

    keys: tuple[SecretKey, ...] = ()
    upstream_key_names: frozenset[str] = frozenset()
    verify_upstream: bool = False
    encoding: NarEncoding = field(default_factory=NarEncoding)
    jobs: int = 2
    max_layers: int = MAX_LAYERS
    is_strict: bool = False
    source: str | None = None
    allow_unsigned: bool = False
    allow_new_key: bool = False
    repository_source: str | None = None

    @property
    def segments(self) -> SegmentOptions:
        """Of the segments that are written."""
        return SegmentOptions(self.max_layers, self.encoding.max_blob_bytes, self.repository_source)

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """Of the keys that sign."""
        return tuple(key.public_key for key in self.keys)
