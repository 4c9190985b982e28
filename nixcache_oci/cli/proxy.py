"""The verb ``proxy``: puts the parts together, and serves until it is told to stop."""

import argparse
import os
import socket
import sys
from collections.abc import Mapping, MutableMapping, Sequence

from nixcache_oci.cli.compose import open_repository, run_async, warn_of_unknown_variables
from nixcache_oci.cli.console import say
from nixcache_oci.cli.log import set_up_logging
from nixcache_oci.cli.verb import DONE, SubParsers
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.server import run_proxy
from nixcache_oci.proxy.systemd import Notifier, activated_sockets
from nixcache_oci.settings.proxy import proxy_config
from nixcache_oci.settings.repository import RepositoryConfig, repository_config
from nixcache_oci.settings.table import LOG_LEVEL, PROXY_VARIABLES, REPOSITORY_VARIABLES
from nixcache_oci.settings.variable import Values, add_flags

_VARIABLES = (*PROXY_VARIABLES, *REPOSITORY_VARIABLES, LOG_LEVEL)


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "proxy",
        description="Serve a cache in an OCI registry to Nix on this machine.",
        allow_abbrev=False,
    )
    add_flags(parser, _VARIABLES)


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Serve until a signal ends it."""
    values = Values(environment, arguments)
    set_up_logging(values.get(LOG_LEVEL), environment, sys.stderr, serves_strangers=True)
    warn_of_unknown_variables(environment)
    config = proxy_config(values)
    location = repository_config(values)
    sockets = activated_sockets(environment, os.getpid())
    run_async(
        _serve(
            config,
            location,
            values.merged_environment(REPOSITORY_VARIABLES),
            sockets,
            Notifier.from_environment(environment),
        )
    )
    return DONE


async def _serve(
    config: ProxyConfig,
    location: RepositoryConfig,
    environment: Mapping[str, str],
    sockets: Sequence[socket.socket],
    notifier: Notifier,
) -> None:
    repository = open_repository(location, environment)
    try:
        await run_proxy(config, repository, activated_sockets=sockets, notify=notifier, announce=_announce)
    finally:
        await repository.close()


def _announce(addresses: Sequence[str]) -> None:
    for address in addresses:
        say(f"listening on {address}")
