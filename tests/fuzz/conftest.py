"""Names what the fuzzers share."""

from tests.fuzz.results import tried
from tests.hostile.story import blobs_upstream, proxy

__all__ = ["blobs_upstream", "proxy", "tried"]
