"""Options of a publish, parsed and frozen."""

from dataclasses import dataclass, field

from nixcache_oci.cache.segment import MAX_LAYERS
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.nix.signature import PublicKey, SecretKey
from nixcache_oci.publisher.compression import NarEncoding


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """Options of a publish.

    Attributes:
        keys: that sign every listed path.
        upstream_key_names: of keys that sign what clients get elsewhere.
        verify_upstream: whether to check that the upstreams have it.
        encoding: how NARs are compressed.
        jobs: store objects staged at once.
        max_layers: of a manifest.
        is_strict: list nothing if a path fails.
        source: such as the URL of a commit; for the table's header.
        repository_source: URL of the GitHub repository: GHCR links the package to it.
    """

    keys: tuple[SecretKey, ...] = ()
    upstream_key_names: frozenset[str] = frozenset()
    verify_upstream: bool = False
    encoding: NarEncoding = field(default_factory=NarEncoding)
    jobs: int = 2
    max_layers: int = MAX_LAYERS
    is_strict: bool = False
    source: str | None = None
    repository_source: str | None = None

    @property
    def segments(self) -> SegmentOptions:
        """Options of its segments."""
        return SegmentOptions(self.max_layers, self.encoding.max_blob_bytes, self.repository_source)

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """The public keys of ``keys``."""
        return tuple(key.public_key for key in self.keys)
