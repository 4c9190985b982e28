"""The verb ``publish``: builds what a flake, or a Nix file, has to offer, and publishes what was built."""

import argparse
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nixcache_oci.cache.record import PublishRecord, is_root_name
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import opened, set_up_quiet_logging
from nixcache_oci.cli.console import complain
from nixcache_oci.cli.publish_report import OutputRow, PublishReport, describe_plan
from nixcache_oci.cli.publishing import (
    PublishSettings,
    add_publish_flags,
    check_strict,
    publish_settings,
    publishing,
    run_publisher,
)
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
        is_build_only: whether a cache that cannot be read is no failure.
    """

    flake: str | None
    file: Path | None
    attrs: tuple[str, ...]
    systems: tuple[str, ...]
    with_checks: bool
    accept_flake_config: bool
    is_build_only: bool


@dataclass(frozen=True, slots=True)
class Built:
    """What there is to publish, and what failed and why, by attribute; if partial, more may exist."""

    paths: dict[str, tuple[StorePath, ...]]
    failed: dict[str, str]
    is_partial: bool

    @property
    def rows(self) -> list[OutputRow]:
        """What the report says of each output."""
        good = [OutputRow(attr, tuple(map(str, paths))) for attr, paths in self.paths.items()]
        return [*good, *(OutputRow(attr, (), reason) for attr, reason in self.failed.items())]

    def record(self, scope: str, run: str) -> PublishRecord:
        """Make the record of the roots.

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


DESCRIPTION = (
    "Build the outputs of a flake with the cache as a further substituter, and publish what was "
    "built: packages, devShells, nixosConfigurations, homeConfigurations and darwinConfigurations. "
    "What cannot be built, and what is for systems that are not built here, is named, and does not "
    "keep the rest from being published."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
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


def run(values: Values) -> int:
    """Build and publish."""
    set_up_quiet_logging(values)
    arguments = values.flags
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
        is_build_only=arguments.build_only,
    )
    if request.is_build_only:
        arguments.dry_run = True
    proxy = replace(proxy_config(values), listen="127.0.0.1", port=0, upstreams=())
    settings = publish_settings(values)
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
    # Settings that a flake brings with it may name programs: not for code that may not push, whatever is set.
    refused = [("accept-flake-config", "false")] if request.is_build_only else []
    nix = settings.nix(refused)
    systems = await read_systems(nix, request.systems)
    async with settings.opened() as repository:
        async with _substituting(settings, proxy) as options:
            built = await _build(settings, [*refused, *options], request, systems)
        check_strict(settings, [f"{attr}: {reason}" for attr, reason in built.failed.items()])
        record = built.record(settings.flags.scope or _usual_scope(settings, systems), settings.run)
        report = PublishReport(settings, repository.name, None, outputs=built.rows)
        with settings.progress as progress:
            async with publishing(settings, repository, nix, progress) as publisher:
                try:
                    plan = await publisher.plan([path for _, path in record.roots])
                except RegistryError as error:
                    if not request.is_build_only:
                        raise
                    progress.warn(f"the cache cannot be read, so what would be pushed is not known: {error}")
                    return report.finish()
                report.plan = plan
                progress.note(describe_plan(plan, repository.name))
                if settings.flags.dry_run:
                    if not request.is_build_only:  # which is never given a key
                        publisher.warn_of_doubts(plan)
                    return report.finish()
                report.published = await publisher.publish(plan, [record])
        return report.finish()


@asynccontextmanager
async def _substituting(
    settings: PublishSettings, config: ProxyConfig
) -> AsyncIterator[list[tuple[str, str]]]:
    """Serve the cache to Nix, and give the options for it; only configured keys are trusted."""
    own = [key.public_key for key in settings.options.keys]
    keys = {key.name: key for key in (*own, *config.public_keys)}
    if not keys:
        wants = ", and unsigned paths are not published (--allow-unsigned)"
        complain(
            "no key is configured, so the cache is not used for building"
            f"{'' if settings.options.allow_unsigned or settings.flags.dry_run else wants}; "
            "see nixcache-oci keygen"
        )
        yield []
        return
    config = replace(config, public_keys=tuple(keys.values()))
    async with (
        opened(settings.location, settings.values) as repository,
        serving(config, repository) as addresses,
    ):
        yield [
            ("extra-substituters", addresses[0]),
            ("extra-trusted-public-keys", " ".join(map(str, keys.values()))),
        ]


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
    """Find, by attribute, what cannot be built, and why."""
    unnameable = (output.attr for output in evaluation.outputs if not is_root_name(output.attr))
    failed = dict.fromkeys(unnameable, "not built: no record can hold this name")
    return failed | {one.attr: f"cannot be evaluated: {one.reason}" for one in evaluation.failures}


def _report(settings: PublishSettings, found: Mapping[str, str], *, is_failure: bool = True) -> None:
    """Report, in a line for each output, why it is not built."""
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
