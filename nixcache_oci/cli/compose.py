"""From settings to the parts that do the work, for every verb."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Final, TypeVar

from yarl import URL

from nixcache_oci.cli.log import set_up_logging
from nixcache_oci.clients.github.api import find_api_url
from nixcache_oci.clients.github.packages import GithubPackages
from nixcache_oci.clients.http.proxy import check_proxies
from nixcache_oci.clients.keyring import Keyring
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.layout_removal import LayoutRemover
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.clients.removal import Remover
from nixcache_oci.clients.repository import Repository
from nixcache_oci.proxy.open_files import allow_many_files
from nixcache_oci.settings.repository import LayoutLocation, RegistryLocation, RepositoryConfig
from nixcache_oci.settings.table import LOG_LEVEL
from nixcache_oci.settings.variable import Values

try:
    import uvloop
except ImportError:  # not built for every platform; asyncio's own loop does the same, slower
    _loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
else:
    _loop_factory = uvloop.new_event_loop

# How long one operation tries. A Nix client waits for what is pulled, and 404 lets it go elsewhere; a
# publisher rather sits out a registry's rate limit, which takes minutes, than begin anew.
_PULL_PATIENCE_SECONDS: Final = 10.0
_PUSH_PATIENCE_SECONDS: Final = 600.0

T = TypeVar("T")


def run_async(main: Coroutine[object, object, T]) -> T:
    """Run a coroutine to its end, on the fastest event loop and with as many open files as there may be.

    Each table of a cache is two open files, and a publisher or gc that cannot open all has to leave some out.

    SIGTERM, which ends a job in CI, ends it like Ctrl-C: no program that was started, and no file that was
    staged, stays behind. A coroutine may handle signals in a way of its own.

    Raises:
        KeyboardInterrupt: it was ended so.
    """
    allow_many_files()
    with asyncio.Runner(loop_factory=_loop_factory) as runner:
        task = runner.get_loop().create_task(main)
        runner.get_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return runner.run(_wait_for(task))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _wait_for(task: asyncio.Task[T]) -> T:
    return await task


def set_up_quiet_logging(values: Values) -> None:
    """Log warnings and errors alone, unless told: for commands that say themselves what they do."""
    level = values.get(LOG_LEVEL) if values.is_given(LOG_LEVEL) else logging.WARNING
    set_up_logging(level, values.environment, sys.stderr)


def open_remover(config: RepositoryConfig, environment: Mapping[str, str]) -> Remover:
    """Open what removes manifests from the repository that the settings name; whoever opens it closes it.

    It has connections and tokens of its own: deleting is another right than pushing, and at GitHub another
    service.

    Args:
        config: where the repository lies.
        environment: where credentials are looked up.

    Raises:
        UsageError: credentials that were asked for cannot be read, or the environment names an HTTP proxy
            that cannot be used.
    """
    match config:
        case LayoutLocation(path):
            return LayoutRemover(path)
        case RegistryLocation(reference):
            check_proxies([URL(reference.base_url)])
            credentials = Keyring(reference.host, reference.repository, environment)
            api_url = find_api_url(reference.host, environment)
            if api_url is not None:
                check_proxies([URL(api_url)])
                return GithubPackages(api_url, reference, credentials, patience=_PUSH_PATIENCE_SECONDS)
            return RegistryRemover(
                Registry(reference, credentials, push=True, delete=True, patience=_PUSH_PATIENCE_SECONDS)
            )


def open_repository(
    config: RepositoryConfig, environment: Mapping[str, str], *, push: bool = False
) -> Repository:
    """Open the repository that the settings name; whoever opens it closes it.

    Args:
        config: where it lies.
        environment: where credentials are looked up.
        push: whether the credentials must allow writing.

    Raises:
        UsageError: credentials that were asked for cannot be read, or the environment names an HTTP proxy
            that cannot be used.
    """
    match config:
        case LayoutLocation(path):
            return Layout(path)
        case RegistryLocation(reference):
            check_proxies([URL(reference.base_url)])
            credentials = Keyring(reference.host, reference.repository, environment)
            patience = _PUSH_PATIENCE_SECONDS if push else _PULL_PATIENCE_SECONDS
            return Registry(reference, credentials, push=push, patience=patience)
