"""Checks that this machine's proxy answers and serves the right cache, and that Nix uses it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from nixcache_oci.clients.http.forward_proxy import find_http_proxy, no_proxy_words
from nixcache_oci.clients.local_store.nix_settings import NixSettings
from nixcache_oci.clients.proxy_status import ProxyClient, ProxyStatus, ServedCache
from nixcache_oci.errors import Error
from nixcache_oci.maintenance.checks.finding import Finding, good, skipped, warning, wrong
from nixcache_oci.nix.nix_conf import find_conflict, find_substituter, has_substituter, trusts_blindly

PROXY: Final = "proxy"
SERVED: Final = "proxy: cache"
CACHE_INFO: Final = "proxy: nix-cache-info"
SUBSTITUTER: Final = "nix.conf: substituters"
TRUSTED_KEY: Final = "nix.conf: trusted-public-keys"
FALLBACK: Final = "nix.conf: fallback"
HTTP_PROXY: Final = "HTTP proxy"
CHECKS: Final = (SUBSTITUTER, TRUSTED_KEY, FALLBACK, HTTP_PROXY)

_UPSTREAM_PRIORITY: Final = 40  # that of cache.nixos.org
_MOST_CHARACTERS: Final = 200  # of a key that anybody may have made up
_USE: Final = "nixcache-oci use --apply"
_SUBSTITUTE: Final = "remove it from nix.conf and NIX_CONFIG; without a network, Nix decides so by itself"


@dataclass(frozen=True, slots=True)
class Proxy:
    """What was found out about a proxy; ``public_keys`` are those that it hands out."""

    findings: list[Finding]
    public_keys: tuple[str, ...] = ()


async def check_proxy(url: str, repositories: Sequence[str], store_dir: str, *, is_chosen: bool) -> Proxy:
    """Ask the proxy, which should serve these repositories, unless the settings do not say which.

    If the user has chosen them, others are an error.
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
    findings += _check_served(status, repositories, is_chosen=is_chosen)
    findings.append(_check_cache_info(status, store_dir))
    return Proxy(findings, keys)


def _failed(finding: Finding) -> Proxy:
    return Proxy([finding, *skipped((SERVED, CACHE_INFO), "no proxy answers")])


def _check_served(status: ProxyStatus, repositories: Sequence[str], *, is_chosen: bool) -> list[Finding]:
    first, served = status.caches[0].registry, {cache.registry: cache for cache in status.caches}
    missing = [name for name in repositories if name not in served]
    if repositories and (missing or first not in repositories):
        text = f"it serves {first}, but the settings here name {' and '.join(repositories)}"
        if first in repositories:
            text = f"it does not serve {' and '.join(missing)}, which the settings here name"
        if is_chosen:
            return [wrong(SERVED, text, "start it with the same settings")]
        remedy = (
            "set NIXCACHE_REPO and NIXCACHE_REGISTRY as in the proxy's own configuration, not as it says: "
            "any user of this machine can listen there"
        )
        return [warning(SERVED, text, remedy)]
    findings = [_check_cache(served[name]) for name in repositories or [first]]
    if len(findings) == 1:
        return findings
    return [
        replace(finding, check=f"{SERVED} {name}")
        for finding, name in zip(findings, repositories, strict=True)
    ]


def _check_cache(cache: ServedCache) -> Finding:
    if not cache.is_ready:
        return wrong(SERVED, f"it has no index yet: {cache.error or 'it is being read'}", "see its log")
    if cache.is_key_changed:
        return warning(
            SERVED,
            "the cache records a different key from the one first seen",
            "ask the cache's owner, and set NIXCACHE_PUBLIC_KEYS",
        )
    if cache.error is not None:
        return warning(SERVED, f"it serves an older index, because the last refresh failed: {cache.error}")
    return good(SERVED, cache.registry)


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


@dataclass(frozen=True, slots=True)
class NixClient:
    """Nix, as the current user has it."""

    own: NixSettings  # settings, the user's included
    system: NixSettings  # settings of a daemon
    user: str
    is_daemon: bool  # whether a daemon does the work
    is_trusted: bool  # whether that daemon obeys the user's settings
    environment: Mapping[str, str]  # of a Nix that is started here

    def effective(self) -> NixSettings:
        """Return the settings that are in effect."""
        if not self.is_daemon or self.is_trusted:
            return self.own
        allowed = {url.rstrip("/") for url in (*self.system.substituters, *self.system.trusted_substituters)}
        return replace(
            self.own,
            substituters=tuple(url for url in self.own.substituters if url.rstrip("/") in allowed),
            trusted_public_keys=self.system.trusted_public_keys,
            require_sigs=self.system.require_sigs,
        )


def check_nix_use(client: NixClient, url: str, keys: Sequence[str], *, is_configured: bool) -> list[Finding]:
    """Check that Nix asks the proxy, and accepts what it serves.

    Unless the user configured the cache's keys, the proxy or the registry named them: that proves nothing, so
    no hint may ask to trust them.
    """
    effective = client.effective()
    return [
        _check_substituter(client, effective, url),
        _check_key(client, effective, url, keys, is_configured=is_configured),
        _check_fallback(client, effective),
        _check_http_proxy(client, url),
    ]


def _check_substituter(client: NixClient, effective: NixSettings, url: str) -> Finding:
    if not effective.substitute:
        return wrong(SUBSTITUTER, "substitute = false: Nix downloads nothing", _SUBSTITUTE)
    if has_substituter(effective.substituters, url):
        return good(SUBSTITUTER, f"{url} is among them")
    if has_substituter(client.own.substituters, url):
        return wrong(SUBSTITUTER, f"{url} is in your own settings, which the daemon ignores", _trust(client))
    others = [other for other in effective.substituters if _is_near(other, url)]
    if others:
        return wrong(
            SUBSTITUTER,
            f"{others[0]} is there, and the proxy is set to {url}",
            "set NIXCACHE_PORT to the port that the proxy uses, or fix the line",
        )
    return wrong(SUBSTITUTER, f"{url} is not among them", _use(client))


def _check_key(
    client: NixClient, effective: NixSettings, url: str, keys: Sequence[str], *, is_configured: bool
) -> Finding:
    found = find_substituter(effective.substituters, url)
    if found is not None and trusts_blindly(found):
        return warning(
            TRUSTED_KEY,
            f"{found} needs no signature, and while the proxy is down, any user of this machine can answer",
            "sign the cache, and trust its key; otherwise let systemd hold a port below 1024",
        )
    if not effective.require_sigs:
        return warning(TRUSTED_KEY, "require-sigs = false: Nix takes unsigned paths from every substituter")
    if not keys:
        return warning(
            TRUSTED_KEY,
            "the cache's key is not known",
            "set NIXCACHE_PUBLIC_KEYS to the key that the cache's owner published",
        )
    if set(keys) & set(effective.trusted_public_keys):
        return good(TRUSTED_KEY, "the cache's key is among them")
    if not is_configured:
        shown = keys[0][:_MOST_CHARACTERS]
        return wrong(
            TRUSTED_KEY,
            f"{shown} is not among them; it is what the proxy or the registry names, which proves nothing",
            f"get the key from the cache's owner, then {_use(client)} --public-key NAME:BASE64",
        )
    return _explain_missing_key(client, effective, keys)


def _explain_missing_key(client: NixClient, effective: NixSettings, keys: Sequence[str]) -> Finding:
    if conflict := find_conflict(effective.trusted_public_keys, keys):
        name = conflict.partition(":")[0]
        return wrong(
            TRUSTED_KEY,
            f"another key is trusted under the name {name}",
            "find out which one is right, and remove the other: Nix takes only the first of each name",
        )
    if set(keys) & set(client.own.trusted_public_keys):
        return wrong(TRUSTED_KEY, "the key is in your own settings, which the daemon ignores", _trust(client))
    return wrong(TRUSTED_KEY, f"{keys[0]} is not among them", _use(client))


def _check_fallback(client: NixClient, effective: NixSettings) -> Finding:
    if effective.fallback:
        return good(FALLBACK, "true")
    return warning(FALLBACK, "false: a download that fails for good fails the build", _use(client))


def _check_http_proxy(client: NixClient, url: str) -> Finding:
    variable = find_http_proxy(url, client.environment)
    if variable is None:
        return good(HTTP_PROXY, f"Nix asks {url} itself")
    host = urlsplit(url).hostname
    text = f"{variable} is set, and no_proxy does not have {host}: Nix asks the HTTP proxy for {url}"
    words = shlex.quote(",".join((*no_proxy_words(client.environment), str(host))))
    remedy = f"export no_proxy={words}"
    if client.is_daemon:
        # Only root can read its environment.
        text += ", if nix-daemon has the same variables"
        daemon = f"as root: systemctl edit nix-daemon, with Environment=no_proxy={words} below [Service]"
        return warning(HTTP_PROXY, text, f"{remedy}; {daemon}; then restart nix-daemon")
    return wrong(HTTP_PROXY, text, f"run: {remedy}")


def _use(client: NixClient) -> str:
    """Say how to add what is missing where Nix obeys it: a daemon obeys only trusted users."""
    is_ignored = client.is_daemon and not client.is_trusted
    return f"as root: {_USE}" if is_ignored else f"run: {_USE}"


def _trust(client: NixClient) -> str:
    return f"as root: {_USE}; or add {client.user} to trusted-users; then restart nix-daemon"


def _is_near(other: str, url: str) -> bool:
    """Tell whether a URL has the same host as the proxy's."""
    try:
        return urlsplit(other).hostname == urlsplit(url).hostname
    except ValueError:
        return False
