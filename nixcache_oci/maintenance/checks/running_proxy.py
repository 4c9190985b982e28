"""Checks that this machine's proxy answers, and serves the right cache."""

from dataclasses import dataclass
from typing import Final

from nixcache_oci.clients.proxy_status import ProxyClient, ProxyStatus
from nixcache_oci.errors import Error
from nixcache_oci.maintenance.checks.finding import Finding, good, skipped, warning, wrong

PROXY: Final = "proxy"
SERVED: Final = "proxy: cache"
CACHE_INFO: Final = "proxy: nix-cache-info"

_UPSTREAM_PRIORITY: Final = 40  # that of cache.nixos.org


@dataclass(frozen=True, slots=True)
class Proxy:
    """What was found out about a proxy; ``public_keys`` are those that it hands out."""

    findings: list[Finding]
    public_keys: tuple[str, ...] = ()


async def check_proxy(url: str, repository: str | None, store_dir: str, *, is_chosen: bool) -> Proxy:
    """Ask the proxy.

    Args:
        url: of the proxy.
        repository: name of the one that it should serve; None if the settings do not say.
        store_dir: of its paths.
        is_chosen: whether the user named the repository, so that another one is an error.
    """
    try:
        async with ProxyClient(url) as client:
            if not await client.is_healthy():
                remedy = "something else listens there: stop it, or set NIXCACHE_PORT"
                return _failed(wrong(PROXY, f"{url}: what answers is not a nixcache-oci proxy", remedy))
            status, keys = await client.status(), await client.public_keys()
    except Error as error:
        remedy = "start it: nixcache-oci proxy; or as a service: systemctl start nixcache-proxy"
        return _failed(wrong(PROXY, str(error), remedy))
    findings = [good(PROXY, f"{url} answers")]
    findings.append(_check_served(status, repository, is_chosen=is_chosen))
    findings.append(_check_cache_info(status, store_dir))
    return Proxy(findings, keys)


def _failed(finding: Finding) -> Proxy:
    return Proxy([finding, *skipped((SERVED, CACHE_INFO), "no proxy answers")])


def _check_served(status: ProxyStatus, repository: str | None, *, is_chosen: bool) -> Finding:
    if repository is not None and status.registry != repository:
        text = f"it serves {status.registry}, but the settings here name {repository}"
        if is_chosen:
            return wrong(SERVED, text, "start it with the same settings")
        remedy = (
            "set NIXCACHE_REPO and NIXCACHE_REGISTRY as in the proxy's own configuration, not as it says: "
            "any user of this machine can listen there"
        )
        return warning(SERVED, text, remedy)
    if not status.is_ready:
        return wrong(SERVED, f"it has no index yet: {status.error or 'it is being read'}", "see its log")
    if status.is_key_changed:
        return warning(
            SERVED,
            "the cache records a different key from the one first seen",
            "ask the cache's owner, and set NIXCACHE_PUBLIC_KEYS",
        )
    if status.error is not None:
        return warning(SERVED, f"it serves an older index, because the last refresh failed: {status.error}")
    return good(SERVED, status.registry)


def _check_cache_info(status: ProxyStatus, store_dir: str) -> Finding:
    if status.store_dir != store_dir:
        return wrong(
            CACHE_INFO,
            f"its paths belong to {status.store_dir}, but the store here is {store_dir}",
            "set NIXCACHE_STORE_DIR for the proxy",
        )
    if status.priority is None or status.priority >= _UPSTREAM_PRIORITY:
        return warning(
            CACHE_INFO,
            f"priority {status.priority}: cache.nixos.org is asked first",
            f"set NIXCACHE_PRIORITY below {_UPSTREAM_PRIORITY}",
        )
    return good(CACHE_INFO, f"priority {status.priority}, {status.store_dir}")
