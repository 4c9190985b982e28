"""The double of GHCR at a distance, and whatever stands beside it there."""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.distance import Distance, at_distance
from tests.support.registries import Ghcr


@contextmanager
def registry_at(distance: Distance, registry: Ghcr, *others: str) -> Iterator[list[str]]:
    """Put a registry, its storage, and other servers at a distance.

    Args:
        distance: of all of them.
        registry: the double.
        others: ``host:port`` of each.

    Yields:
        Where the registry is now, and each of the others.
    """
    double = registry.server
    with at_distance(distance, double.host, double.storage_host, *others) as (host, storage_host, *places):
        # It hands out addresses of its own, for tokens and for blobs: they must be the distant ones.
        service = double._service  # noqa: SLF001  nothing but a bench wants to change where it says it is
        nearby = service.host, service.storage_host
        service.host, service.storage_host = host, storage_host
        try:
            yield [host, *places]
        finally:
            service.host, service.storage_host = nearby
