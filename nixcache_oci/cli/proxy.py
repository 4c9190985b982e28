"""The verb ``proxy``: puts the parts together, and serves until it is told to stop."""

import argparse
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_address

from nixcache_oci.cli.compose import open_anonymously, open_repository, run_async, start_logging
from nixcache_oci.cli.console import say
from nixcache_oci.cli.verb import DONE
from nixcache_oci.oci.reference import is_loopback
from nixcache_oci.proxy.cache_set import ConfiguredCache
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.on_demand.settings import OnDemandSettings
from nixcache_oci.proxy.server import run_proxy
from nixcache_oci.proxy.systemd import Notifier, activated_sockets
from nixcache_oci.proxy.uploads.interface import UploadSettings
from nixcache_oci.settings.cache_config import CacheConfig, cache_configs
from nixcache_oci.settings.proxy_config import proxy_config
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.settings.variables import (
    LOG_LEVEL,
    ON_DEMAND,
    PROXY_VARIABLES,
    REPOS,
    REPOSITORY_VARIABLES,
    UPLOAD_VARIABLES,
    UPLOADS,
)

_VARIABLES = (*PROXY_VARIABLES, *UPLOAD_VARIABLES, REPOS, *REPOSITORY_VARIABLES[1:], LOG_LEVEL)

DESCRIPTION = "Serve a cache in an OCI registry to Nix on this machine."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    add_flags(parser, _VARIABLES)


def run(values: Values) -> int:
    """Serve until a signal ends it."""
    start_logging(values, logging.INFO, serves_strangers=True)
    config = proxy_config(values)
    caches = cache_configs(values)
    sockets = activated_sockets(values.environment, os.getpid())
    run_async(_serve(values, config, caches, sockets))
    return DONE


async def _serve(
    values: Values, config: ProxyConfig, caches: Sequence[CacheConfig], sockets: Sequence[socket.socket]
) -> None:
    notifier = Notifier.from_environment(values.environment)
    async with AsyncExitStack() as stack:
        repositories = []
        for cache in caches:
            repositories.append(repository := open_repository(cache.location, cache.environment))
            stack.push_async_callback(repository.close)
        named = {each.name: cache for each, cache in zip(repositories, caches, strict=True)}
        uploads = _uploads(values, config, named) if values.get(UPLOADS) else {}
        configured = [
            ConfiguredCache(each, cache.prefix, cache.public_keys, uploads.get(each.name))
            for each, cache in zip(repositories, caches, strict=True)
        ]
        await run_proxy(
            config,
            configured,
            on_demand=_on_demand(values, config, sockets),
            activated_sockets=sockets,
            notify=notifier,
            announce=_announce,
        )


def _uploads(
    values: Values, config: ProxyConfig, caches: Mapping[str, CacheConfig]
) -> Mapping[str, UploadSettings]:
    # What publishes takes a tenth of the start to import, and most proxies only serve.
    from nixcache_oci.cli.upload_publishing import upload_settings  # noqa: PLC0415 -- see above

    return upload_settings(
        values, config, {name: cache for name, cache in caches.items() if cache.takes_uploads}
    )


def _on_demand(
    values: Values, config: ProxyConfig, sockets: Sequence[socket.socket]
) -> OnDemandSettings | None:
    """Return what may be opened on demand; unless that is set, nothing if other machines can connect."""
    if not values.is_given(ON_DEMAND) and not _is_local(config, sockets):
        return None
    patterns = values.get(ON_DEMAND)
    return OnDemandSettings(patterns, open_anonymously) if patterns else None


def _is_local(config: ProxyConfig, sockets: Sequence[socket.socket]) -> bool:
    if not sockets:
        return is_loopback(f"[{config.listen}]" if ":" in config.listen else config.listen)
    # Who can reach a Unix socket is unknown here: what stands before it may serve others.
    return all(
        each.family in (socket.AF_INET, socket.AF_INET6) and ip_address(each.getsockname()[0]).is_loopback
        for each in sockets
    )


def _announce(addresses: Sequence[str]) -> None:
    for address in addresses:
        say(f"listening on {address}")
