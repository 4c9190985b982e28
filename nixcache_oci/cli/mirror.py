"""The verb ``mirror``: a whole cache in another repository."""

import argparse
from collections.abc import Mapping
from contextlib import AsyncExitStack

from nixcache_oci.cli.compose import open_repository, run_async, start_logging
from nixcache_oci.cli.console import say, say_json
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.list import failed_json
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.maintenance.cache_mirror import Mirror, Mirrored
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.settings import variables
from nixcache_oci.settings.repository_config import RepositoryConfig, parse_location
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted, format_size

_IF_INTERRUPTED = "what was copied is kept; run the same command again to copy the rest and list everything"
_OF_ONE_REGISTRY = frozenset({variables.TOKEN_FILE.name, variables.TOKEN.name})

DESCRIPTION = (
    "Copy a whole cache from one repository to another, digests and segments' tags unchanged. What "
    "is there is not sent again, so an interrupted run can be resumed. NIXCACHE_TOKEN_FILE is "
    "for the registry that NIXCACHE_REGISTRY names, and offered to no other; docker login serves any."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="oci:/path, or ghcr.io/owner/name/nix-cache")
    parser.add_argument("destination", metavar="DEST", help="the same, for the copy")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, (*variables.REPOSITORY_VARIABLES, variables.LOG_LEVEL))


def run(values: Values) -> int:
    """Copy."""
    start_logging(values)
    arguments = values.flags
    source, destination = parse_location(arguments.source), parse_location(arguments.destination)
    done = run_async(_mirror(source, destination, values), _IF_INTERRUPTED)
    if arguments.json:
        say_json(
            {
                "source": arguments.source,
                "destination": arguments.destination,
                "segments": done.segments,
                "sent": done.sent,
                "sentBytes": done.sent_bytes,
                "present": done.present,
                "failed": failed_json(done.reasons),
            }
        )
    else:
        sent = f"{counted(done.sent, 'blob')} sent ({format_size(done.sent_bytes)})"
        left_out = f"; {counted(done.failed, 'path')} left out" if done.failed else ""
        say(f"{counted(done.segments, 'segment')}; {sent}, {done.present} already there{left_out}")
    return FAILED if done.failed else DONE


async def _mirror(source: RepositoryConfig, destination: RepositoryConfig, values: Values) -> Mirrored:
    async with AsyncExitStack() as stack:
        reader = open_repository(source, _environment_for(source, values))
        stack.push_async_callback(reader.close)
        writer = open_repository(destination, _environment_for(destination, values), push=True)
        stack.push_async_callback(writer.close)
        actions = GithubActions.from_environment(values.environment)
        progress = stack.enter_context(showing(actions, is_quiet=values.flags.quiet))
        progress.note(f"copying {reader.name} to {writer.name}")
        return await Mirror(reader, writer, progress).run()


def _environment_for(location: RepositoryConfig, values: Values) -> Mapping[str, str]:
    """Leave out credentials that are meant for another registry."""
    environment = values.merged_environment(variables.REPOSITORY_VARIABLES)
    registry = values.get(variables.REGISTRY)
    if isinstance(location, RegistryReference) and isinstance(registry, str):
        named = RegistryReference.of(registry, location.repository, "")
        if named.host == location.host:
            return environment
    return {name: value for name, value in environment.items() if name not in _OF_ONE_REGISTRY}
