"""Counters of the proxy, shown by ``/_status`` and ``/metrics``."""

from dataclasses import dataclass
from typing import Final


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    hits: int = 0  # narinfos answered from this cache
    upstream_hits: int = 0  # narinfos answered by an upstream
    misses: int = 0  # narinfos that neither this cache nor an upstream has
    unknown: int = 0  # narinfos that an unavailable upstream may have; answered 404
    nar_bytes: int = 0  # bytes of NARs sent, from this cache's blobs and packs
    upstream_nar_bytes: int = 0  # bytes of NARs sent, streamed from upstreams
    nars: int = 0  # NAR requests answered with their first byte
    nars_refused: int = 0  # NAR requests answered 404
    nars_cut: int = 0  # transfers cut because the rest was unavailable or wrong
    packs_fetched: int = 0  # whole packs downloaded
    ranges_fetched_ahead: int = 0  # ranges of packs, and whole packs, prefetched
    uploaded_bytes: int = 0  # bytes received of uploads
    nars_fetched_ahead: int = 0  # small NARs outside packs, prefetched
    upstream_nars_fetched_ahead: int = 0  # small NARs of upstreams that no client had asked for yet
    upstream_nars_ahead_used: int = 0  # those that a client asked for
    upstream_nars_ahead_unused: int = 0  # those that were dropped: no client asked, or they were wrong
    upstream_narinfos_fetched_ahead: int = 0  # narinfos that upstreams were asked for before clients
    upstream_narinfos_ahead_used: int = 0  # those that a client asked for
    upstream_bytes_fetched_ahead: int = 0  # bytes of NARs fetched ahead
    upstream_bytes_ahead_unused: int = 0  # bytes of those that were dropped
    refreshes: int = 0  # refreshes of the index
    refresh_failures: int = 0  # those that failed
    index_regressions: int = 0  # how often the registry showed an older state of the cache than before


CACHE_COUNTERS: Final = (
    "hits",
    "misses",
    "unknown",
    "nar_bytes",
    "packs_fetched",
    "refreshes",
    "refresh_failures",
    "index_regressions",
)
"""Those that tell caches apart. What a cache lacks, another one or an upstream may have."""
