"""The verb ``verify``: whether what a cache lists is there and right."""

import argparse
import json
import sys
from collections.abc import MutableMapping
from dataclasses import asdict

from nixcache_oci.cli.cache_view import VARIABLES, read_cache_from, recorded_keys
from nixcache_oci.cli.compose import open_repository, run_async, set_up_quiet_logging
from nixcache_oci.cli.log import escape_unprintable
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.maintenance.verify import Problem, verify
from nixcache_oci.settings import table
from nixcache_oci.settings.repository import repository_config
from nixcache_oci.settings.variable import Values, add_flags


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "verify",
        description=(
            "Check that every path of a cache has its bytes and a good signature, and that what it refers to "
            "is listed or upstream. What is wrong is listed by name; exit status 1 then."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--content", action="store_true", help="download, unpack and hash every byte")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, (*VARIABLES, table.UPSTREAM))


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Check."""
    set_up_quiet_logging(Values(environment, arguments))
    problems = run_async(_verify(Values(environment, arguments), with_content=arguments.content))
    if arguments.json:
        print(json.dumps({"problems": [asdict(problem) for problem in problems]}, indent=2))
    else:
        for problem in problems:
            print(escape_unprintable(f"{problem.path}: {problem.what}"))
        print(f"{len(problems)} problems", file=sys.stderr)
    return FAILED if problems else DONE


async def _verify(values: Values, *, with_content: bool) -> list[Problem]:
    location = repository_config(values)
    repository = open_repository(location, values.merged_environment(table.REPOSITORY_VARIABLES))
    upstreams = Upstreams([parse_upstream(url) for url in values.get(table.UPSTREAM)])
    try:
        view = await read_cache_from(repository, values)
        keys = values.get(table.PUBLIC_KEYS) or recorded_keys(view.inventory)
        return await verify(
            repository, view.inventory, upstreams, keys, with_content=with_content, tell=_tell
        )
    finally:
        await upstreams.close()
        await repository.close()


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
