"""The configuration of the proxy, parsed and frozen."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.nix.signature import PublicKey

UpstreamNars = Literal["stream", "direct"]

MIN_PACK_MEMORY_BYTES: Final = 4 * MAX_PACK_BYTES
"""A quarter is for prefetched packs: one."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What the proxy speaks HTTPS with, in PEM."""

    certificate: Path  # and those that lead to its authority
    key: Path  # secret, of the certificate
    client_authorities: Path | None  # that client certificates come from; clients need none to read


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Settings of the proxy."""

    listen: str  # IP address or host name to listen on, without brackets
    port: int  # TCP port to listen on, 0 for a free one
    # Base URLs of the caches that are asked on a miss, in order, as for ``parse_upstream``; not shown,
    # because a URL may contain a password.
    upstreams: tuple[str, ...] = field(repr=False)
    index_ttl_seconds: float  # between refreshes of the index, at least 1
    index_dir: Path  # folder for the last good index; need not exist
    pack_memory_bytes: int  # limit of packs in memory, at least MIN_PACK_MEMORY_BYTES
    priority: int  # for nix-cache-info; Nix asks lower numbers first
    store_dir: str  # for nix-cache-info, without a trailing slash
    upstream_nars: UpstreamNars  # ``stream`` relays upstream NARs, ``direct`` hands out the upstream's URL
    hosts: frozenset[str]  # further valid Host headers, in lower case, without port
    ahead: bool = True  # whether anything is fetched from upstreams before a client asks for it
    trusted_keys: tuple[PublicKey, ...] = ()  # keys that Nix on this machine trusts
    tls: TlsFiles | None = None  # None for HTTP
