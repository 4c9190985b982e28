"""The verb ``publish``: builds what a flake, or a Nix file, has to offer, and publishes what was built."""

import argparse
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nixcache_oci.cache.record import PublishRecord, is_root_name
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import open_repository, set_up_quiet_logging
from nixcache_oci.cli.console import complain
from nixcache_oci.cli.publish_summary import OutputRow
from nixcache_oci.cli.publishing import (
    PublishSettings,
    add_publish_flags,
    check_strict,
    opened,
    print_dry_run,
    publish_settings,
    publishing,
    report,
    report_json,
    run_publisher,
    show_plan,
)
from nixcache_oci.cli.verb import DONE, FAILED, SubParsers
from nixcache_oci.clients.local_store.build import build
from nixcache_oci.clients.local_store.evaluate import evaluate_file, evaluate_flake
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.output import Evaluation
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.clients.local_store.systems import Systems, read_systems
from nixcache_oci.errors import Error, FormatError, RegistryError, UsageError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.server import serving
from nixcache_oci.settings import variables
from nixcache_oci.settings.proxy_config import proxy_config
from nixcache_oci.settings.values import Values
from nixcache_oci.wording import counted

MOST_REASONS: Final = 100
"""Lines that say what is not built; as many again say what is left out."""

_LOCAL: Final = "local"


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be built.

    Attributes:
        flake: reference of a flake, or a folder; None where a file is meant.
        file: a Nix file, or None.
        attrs: to which it is narrowed; empty for all.
        systems: what it is built for; empty for what this machine builds.
        with_checks: whether checks count, too.
        accept_flake_config: whether the settings that the flake brings with it are obeyed.
        scope: what later publishes of the same scope supersede; None for the usual.
        is_build_only: whether a cache that cannot be read is no failure.
    """

    flake: str | None
    file: Path | None
    attrs: tuple[str, ...]
    systems: tuple[str, ...]
    with_checks: bool
    accept_flake_config: bool
    scope: str | None
    is_build_only: bool


@dataclass(frozen=True, slots=True)
class Built:
    """What there is to publish, and what there is not.

    Attributes:
        paths: store paths of each output, by its attribute.
        failed: why each of the others is not there.
        is_partial: whether there may be outputs that are in neither.
    """

    paths: dict[str, tuple[StorePath, ...]]
    failed: dict[str, str]
    is_partial: bool

    @property
    def rows(self) -> list[OutputRow]:
        """What the summary tells of each output."""
        good = [OutputRow(attr, tuple(map(str, paths))) for attr, paths in self.paths.items()]
        return [*good, *(OutputRow(attr, (), reason) for attr, reason in self.failed.items())]

    def record(self, scope: str, run: str) -> PublishRecord:
        """Say which roots there are.

        Raises:
            UsageError: a name that a record cannot hold.
        """
        roots = tuple((attr, path) for attr, paths in self.paths.items() for path in paths)
        # A name that no record can hold never had a root that would have to be kept.
        failed = tuple(attr for attr in self.failed if is_root_name(attr))
        try:
            return PublishRecord(scope, run, now(), roots, failed, self.is_partial)
        except FormatError as error:
            raise UsageError(f"--scope: {error}") from None


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "publish",
        description=(
            "Build the outputs of a flake with the cache as a further substituter, and publish what was "
            "built: packages, devShells, nixosConfigurations, homeConfigurations and darwinConfigurations. "
            "What cannot be built, and what is for systems that are not built here, is named, and does not "
            "keep the rest from being published."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "flake", nargs="?", metavar="FLAKE", help="flake to publish [NIXCACHE_CONFIG_DIR, default: config]"
    )
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="publish a Nix file instead, such as default.nix"
    )
    parser.add_argument(
        "-A",
        "--attr",
        action="append",
        default=[],
        metavar="ATTR",
        help="only this output, such as packages.hello or hello, or any path of attributes that nix build "
        "takes, such as hydraJobs.release; * stands for anything; repeatable",
    )
    parser.add_argument("--checks", action="store_true", help="publish checks as well")
    parser.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="SYSTEM",
        help="build for this system; repeatable [default: those that Nix builds for, here or remotely]",
    )
    parser.add_argument(
        "--accept-flake-config",
        action="store_true",
        help="obey the settings that the flake brings with it, such as substituters",
    )
    parser.add_argument(
        "--build-only",
        action="store_true",
        help="as --dry-run, and a cache that cannot be read is no failure: for code that may not push",
    )
    add_publish_flags(parser, variables.PUBLIC_KEYS)


def run(arguments: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Build and publish."""
    set_up_quiet_logging(Values(environment, arguments))
    values = Values(environment, arguments)
    if arguments.file is not None and arguments.flake is not None:
        raise UsageError(f"publish: either the flake {arguments.flake} or --file, not both")
    if arguments.file is not None and len(arguments.system) > 1:
        raise UsageError("publish: with --file, --system is given once: a file is evaluated for one system")
    request = Request(
        flake=None if arguments.file is not None else arguments.flake or _default_flake(values),
        file=arguments.file,
        attrs=tuple(arguments.attr),
        systems=tuple(arguments.system),
        with_checks=arguments.checks,
        accept_flake_config=arguments.accept_flake_config,
        scope=arguments.scope,
        is_build_only=arguments.build_only,
    )
    if request.is_build_only:
        arguments.dry_run = True
    proxy = replace(proxy_config(values), listen="127.0.0.1", port=0, upstreams=())
    settings = publish_settings(arguments, environment)
    return run_publisher(_publish(settings, proxy, request), settings.actions)


def _default_flake(values: Values) -> str:
    """Take the flake that is configured; a default that is not there is no name for Nix's flake registry."""
    flake = values.get(variables.CONFIG_DIR)
    if not values.is_given(variables.CONFIG_DIR) and not Path(flake).is_dir():
        raise UsageError(
            f"publish: there is no folder {flake} here: name the flake, as in `nixcache-oci publish .`, or "
            f"set {variables.CONFIG_DIR.name}"
        )
    return flake


async def _publish(settings: PublishSettings, proxy: ProxyConfig, request: Request) -> int:
    began = time.monotonic()
    # Settings that a flake brings with it may name programs: not for code that may not push, whatever is set.
    refused = [("accept-flake-config", "false")] if request.is_build_only else []
    nix = settings.nix(refused)
    systems = await read_systems(nix, request.systems)
    async with opened(settings) as repository:
        async with _substituting(settings, proxy) as options:
            built = await _build(settings, [*refused, *options], request, systems)
        check_strict(settings, [f"{attr}: {reason}" for attr, reason in built.failed.items()])
        record = built.record(request.scope or _usual_scope(settings, systems), settings.run)
        with settings.progress as progress:
            async with publishing(settings, repository, nix, progress) as publisher:
                try:
                    plan = await publisher.plan([path for _, path in record.roots])
                except RegistryError as error:
                    if not request.is_build_only:
                        raise
                    progress.warn(f"the cache cannot be read, so what would be pushed is not known: {error}")
                    report_json(settings, repository, None, outputs=built.rows)
                    return FAILED if built.failed else DONE
                progress.note(show_plan(plan, repository))
                if settings.is_dry_run:
                    if not request.is_build_only:  # which is never given a key
                        publisher.committer.warn_of_doubts(plan)
                    print_dry_run(settings, plan)
                    report_json(settings, repository, plan, outputs=built.rows)
                    return FAILED if built.failed else DONE
                published = await publisher.publish(plan, [record])
                seconds = time.monotonic() - began
                await publisher.merge(published)
        report(settings, repository, plan, published, seconds, built.rows)
    return FAILED if built.failed or published.failed else DONE


@asynccontextmanager
async def _substituting(
    settings: PublishSettings, config: ProxyConfig
) -> AsyncIterator[list[tuple[str, str]]]:
    """Serve the cache to Nix; gives the options that tell Nix of it, and nothing else does.

    Only keys that were configured are trusted: without any, Nix would refuse what the cache offers.
    """
    own = [key.public_key for key in settings.options.keys]
    keys = {key.name: key for key in (*own, *config.public_keys)}
    if not keys:
        wants = ", and unsigned paths are not published (--allow-unsigned)"
        complain(
            "no key is configured, so the cache is not used for building"
            f"{'' if settings.options.allow_unsigned or settings.is_dry_run else wants}; "
            "see nixcache-oci keygen"
        )
        yield []
        return
    repository = open_repository(settings.location, settings.environment)
    try:
        async with serving(replace(config, public_keys=tuple(keys.values())), repository) as addresses:
            yield [
                ("extra-substituters", addresses[0]),
                ("extra-trusted-public-keys", " ".join(map(str, keys.values()))),
            ]
    finally:
        await repository.close()


async def _build(
    settings: PublishSettings, options: Sequence[tuple[str, str]], request: Request, systems: Systems
) -> Built:
    """Build; each output that fails is named as soon as that is known."""
    nix = settings.nix(options)
    store = await LocalStore.open(nix)
    evaluation = await _evaluate(nix, request, systems)
    _report(settings, {one.attr: one.reason for one in evaluation.left_out}, is_failure=False)
    if not evaluation.outputs and not evaluation.failures:
        raise Error(
            f"{request.file or request.flake}: there is nothing to publish for {', '.join(systems.asked)}; "
            "expected packages, devShells or configurations; --attr names anything else, such as hydraJobs.*"
        )
    unusable = find_unusable(evaluation)
    _report(settings, unusable)
    outputs = [output for output in evaluation.outputs if output.attr not in unusable]
    result = await build(store, outputs, accept_flake_config=request.accept_flake_config)
    _report(settings, result.failed)
    is_unknown = any(one.is_set for one in (*evaluation.failures, *evaluation.left_out))
    is_partial = is_unknown or bool(request.attrs)
    return Built(dict(result.built), {**unusable, **result.failed}, is_partial)


async def _evaluate(nix: Nix, request: Request, systems: Systems) -> Evaluation:
    if request.file is not None:
        return await evaluate_file(nix, request.file, systems, attrs=request.attrs)
    return await evaluate_flake(
        nix,
        request.flake or "",
        systems,
        attrs=request.attrs,
        with_checks=request.with_checks,
        accept_flake_config=request.accept_flake_config,
    )


def find_unusable(evaluation: Evaluation) -> dict[str, str]:
    """Tell, by attribute, why something is not even built."""
    unnameable = (output.attr for output in evaluation.outputs if not is_root_name(output.attr))
    failed = dict.fromkeys(unnameable, "not built: no record can hold this name")
    return failed | {one.attr: f"cannot be evaluated: {one.reason}" for one in evaluation.failures}


def _report(settings: PublishSettings, found: Mapping[str, str], *, is_failure: bool = True) -> None:
    """Say of each output why it is not built, in one line."""
    lines = [f"{attr}: {reason}" for attr, reason in found.items()]
    if len(lines) > MOST_REASONS:
        lines[MOST_REASONS:] = [f"and {counted(len(lines) - MOST_REASONS, 'more output')}"]
    for line in lines:
        if settings.actions is None:
            complain(f"nixcache-oci: error: {line}" if is_failure else f"left out: {line}")
        elif is_failure:
            settings.actions.error(line)
        else:
            settings.actions.notice(f"left out: {line}")


def _usual_scope(settings: PublishSettings, systems: Systems) -> str:
    ref_name = settings.actions.ref_name if settings.actions is not None else None
    return "-".join((ref_name or _LOCAL, *systems.asked))
