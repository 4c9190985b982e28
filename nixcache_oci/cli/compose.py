"""From settings to the parts that do the work, for every verb."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from yarl import URL

from nixcache_oci.cli.interrupt import Interrupted, handling_signals, if_interrupted
from nixcache_oci.cli.log import set_up_logging
from nixcache_oci.clients.github.api import find_api_url
from nixcache_oci.clients.github.packages import GithubPackages
from nixcache_oci.clients.http.forward_proxy import check_proxies
from nixcache_oci.clients.keyring import Keyring
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.layout_sweep import LayoutRemover
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.clients.repository import Remover, Repository
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.proxy.open_files import allow_many_files
from nixcache_oci.settings.repository_config import RepositoryConfig
from nixcache_oci.settings.values import Values, unknown_variables
from nixcache_oci.settings.variables import ALL_VARIABLES, LOG_LEVEL, REPOSITORY_VARIABLES

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

_log = logging.getLogger(__name__)

T = TypeVar("T")


def run_async(main: Coroutine[object, object, T], holds: str = "") -> T:
    """Run a coroutine to its end, on the fastest event loop and with as many open files as there may be.

    Connections, and the files that blobs are staged and tables are fetched into, may be many at once.

    Args:
        main: may handle signals in its own way.
        holds: what holds after an interruption, and how to go on.

    Raises:
        Interrupted: a signal ended it; no started program and no staged file is left.
    """
    allow_many_files()
    numbers: list[int] = []
    with if_interrupted(holds), asyncio.Runner(loop_factory=_loop_factory) as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)

        def end(number: int) -> None:
            numbers.append(number)
            if not task.done():
                loop.call_soon_threadsafe(task.cancel)

        with handling_signals(end):
            try:
                return runner.run(_wait_for(task))
            except BaseException:
                if numbers:  # whatever else fails then, fails of that
                    raise Interrupted(numbers[0]) from None
                raise


async def _wait_for(task: asyncio.Task[T]) -> T:
    return await task


def start_logging(
    values: Values, usual_level: int = logging.WARNING, *, serves_strangers: bool = False
) -> None:
    """Log from the given or usual level on, first of all each variable that looks like a misspelt setting."""
    level = values.get(LOG_LEVEL) if values.is_given(LOG_LEVEL) else usual_level
    set_up_logging(level, values.environment, sys.stderr, serves_strangers=serves_strangers)
    for warning in unknown_variables(values.environment, ALL_VARIABLES):
        _log.warning(warning)


def open_remover(config: RepositoryConfig, environment: Mapping[str, str]) -> Remover:
    """Open what removes manifests from a repository, with credentials out of the environment.

    It has its own connections and tokens: deleting is a right of its own, and at GitHub another service.

    Raises:
        UsageError: credentials cannot be read, or an HTTP proxy that the environment names cannot be used.
    """
    if isinstance(config, Path):
        return LayoutRemover(config)
    credentials = _find_credentials(config, environment)
    api_url = find_api_url(config.host, environment)
    if api_url is not None:
        check_proxies([URL(api_url)])
        return GithubPackages(api_url, config, credentials, patience=_PUSH_PATIENCE_SECONDS)
    registry = Registry(config, credentials, push=True, delete=True, patience=_PUSH_PATIENCE_SECONDS)
    return RegistryRemover(registry)


def open_repository(
    config: RepositoryConfig, environment: Mapping[str, str], *, push: bool = False
) -> Repository:
    """Open a repository, with credentials out of the environment, which must allow writing to push.

    Raises:
        UsageError: credentials cannot be read, or an HTTP proxy that the environment names cannot be used.
    """
    if isinstance(config, Path):
        return Layout(config)
    credentials = _find_credentials(config, environment)
    return Registry(
        config,
        credentials,
        push=push,
        can_list_untagged=find_api_url(config.host, environment) is not None,
        patience=_PUSH_PATIENCE_SECONDS if push else _PULL_PATIENCE_SECONDS,
    )


def open_anonymously(reference: RegistryReference, *, must_be_public: bool) -> Repository:
    """Open a repository that a stranger may have named: no credentials, and maybe only at a public address.

    Raises:
        UsageError: an HTTP proxy that the environment names cannot be used.
    """
    check_proxies([URL(reference.base_url)])
    return Registry(reference, None, patience=_PULL_PATIENCE_SECONDS, is_guarded=must_be_public)


def _find_credentials(reference: RegistryReference, environment: Mapping[str, str]) -> Keyring:
    check_proxies([URL(reference.base_url)])
    return Keyring(reference.host, reference.repository, environment)


@asynccontextmanager
async def opened(
    config: RepositoryConfig, values: Values, *, push: bool = False
) -> AsyncIterator[Repository]:
    """Open a repository for as long as the block runs; see ``open_repository``."""
    repository = open_repository(config, values.merged_environment(REPOSITORY_VARIABLES), push=push)
    try:
        yield repository
    finally:
        await repository.close()
