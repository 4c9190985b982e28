"""Counters of the proxy, shown by ``/_status`` and ``/metrics``."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Totals since the start.

    Attributes:
        hits: narinfos answered from this cache.
        upstream_hits: narinfos answered by an upstream.
        misses: narinfos that neither this cache nor an upstream has.
        unknown: narinfos that an unavailable upstream may have; answered 404.
        nar_bytes: bytes of NARs sent, from this cache's blobs and packs.
        upstream_nar_bytes: bytes of NARs sent, streamed from upstreams.
        nars: NAR requests answered with their first byte.
        nars_refused: NAR requests answered 404.
        nars_cut: transfers cut because the rest was unavailable or wrong.
        packs_fetched: packs downloaded.
        packs_fetched_ahead: packs prefetched.
        nars_fetched_ahead: small NARs outside packs, prefetched.
        refreshes: refreshes of the index.
        refresh_failures: those that failed.
        index_regressions: how often the registry showed an older state of the cache than before.
    """

    hits: int = 0
    upstream_hits: int = 0
    misses: int = 0
    unknown: int = 0
    nar_bytes: int = 0
    upstream_nar_bytes: int = 0
    nars: int = 0
    nars_refused: int = 0
    nars_cut: int = 0
    packs_fetched: int = 0
    packs_fetched_ahead: int = 0
    nars_fetched_ahead: int = 0
    refreshes: int = 0
    refresh_failures: int = 0
    index_regressions: int = 0
