"""What the proxy counts: plain numbers, shown by ``/_status`` and ``/metrics`` alike."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Totals since the start.

    Attributes:
        hits: narinfos answered from this cache.
        upstream_hits: narinfos answered by an upstream.
        misses: narinfos that nobody has.
        unknown: narinfos that somebody may have who could not be asked; Nix is told that nobody has.
        nar_bytes: bytes of NARs sent, from this cache's blobs and packs.
        upstream_nar_bytes: bytes of NARs sent, streamed from upstreams.
        nars: NAR requests answered with their first byte.
        nars_refused: NAR requests answered 404.
        nars_cut: transfers cut because the rest could not be had, or was wrong.
        packs_fetched: packs downloaded.
        packs_fetched_ahead: packs downloaded before anybody asked.
        refreshes: times that the index was looked at.
        refresh_failures: times that this failed.
        index_regressions: times that the registry showed an older state of the cache than before.
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
    refreshes: int = 0
    refresh_failures: int = 0
    index_regressions: int = 0
