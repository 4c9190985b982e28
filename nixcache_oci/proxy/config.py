"""What the proxy is told at its start, parsed and frozen."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.nix.signature import PublicKey

UpstreamNars = Literal["stream", "direct"]

MIN_PACK_MEMORY_BYTES: Final = 4 * MAX_PACK_BYTES
"""A quarter of it is for packs that nobody has asked for yet: for one."""


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Settings of the journey from a registry to Nix.

    Attributes:
        listen: IP address or host name to listen on, without brackets.
        port: TCP port to listen on, 0 for a free one.
        upstreams: base URLs of the caches that are asked on a miss, in order, as ``parse_upstream`` takes
            them; not shown, because a URL may hold a password.
        index_ttl_seconds: seconds between refreshes of the index, at least 1.
        index_dir: folder where the last good index lies; it need not exist yet.
        pack_memory_bytes: what packs may take in memory, at least MIN_PACK_MEMORY_BYTES.
        priority: for nix-cache-info; Nix asks lower numbers first.
        store_dir: for nix-cache-info: the store that the paths belong to, without a trailing slash.
        upstream_nars: ``stream`` passes upstream NARs through here, ``direct`` hands out the upstream's URL.
        hosts: further names that a Host header may carry, lower-case, without port.
        public_keys: keys that an entry must be signed with; empty accepts what the registry holds.
        trusted_keys: keys that Nix on this machine trusts.
    """

    listen: str
    port: int
    upstreams: tuple[str, ...] = field(repr=False)
    index_ttl_seconds: float
    index_dir: Path
    pack_memory_bytes: int
    priority: int
    store_dir: str
    upstream_nars: UpstreamNars
    hosts: frozenset[str]
    public_keys: tuple[PublicKey, ...]
    trusted_keys: tuple[PublicKey, ...] = ()

    @property
    def client_keys(self) -> tuple[PublicKey, ...]:
        """Keys that clients are known to trust."""
        return tuple(dict.fromkeys((*self.public_keys, *self.trusted_keys)))
