"""The verb ``publish``: builds what a flake, or a Nix file, has to offer, and publishes what was built."""

import argparse
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nixcache_oci.cache.record import PublishRecord, is_root_name
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import opened, start_logging
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
from nixcache_oci.clients.local_store.nix_settings import Systems, read_systems
from nixcache_oci.clients.local_store.output import Evaluation
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import Error, FormatError, RegistryError, UsageError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.proxy.cache_set import ConfiguredCache
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
        "flake",
        nargs="?",
        metavar="FLAKE",
        help="flake to publish [NIXCACHE_CONFIG_DIR, default: config]; FLAKE#ATTR: with --attr ATTR",
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
        help="like --dry-run, but an unreadable cache is no failure: for code that may not push",
    )
    add_publish_flags(parser, variables.PUBLIC_KEYS)


def run(values: Values) -> int:
    """Build and publish."""
    start_logging(values)
    flags = values.flags
    if flags.file is not None and flags.flake is not None:
        raise UsageError(f"publish: either the flake {flags.flake} or --file, not both")
    if flags.file is not None and len(flags.system) > 1:
        raise UsageError("publish: with --file, --system is given once: a file is evaluated for one system")
    if flags.file is None:
        flags.flake = flags.flake or _default_flake(values)
    flags.dry_run = flags.dry_run or flags.build_only
    proxy = replace(proxy_config(values), listen="127.0.0.1", port=0, upstreams=())
    settings = publish_settings(values)
    return run_publisher(_publish(settings, proxy), settings.actions)


def _default_flake(values: Values) -> str:
    """Take the configured flake; a missing default folder must not be looked up in Nix's flake registry."""
    flake = values.get(variables.CONFIG_DIR)
    if not values.is_given(variables.CONFIG_DIR) and not Path(flake).is_dir():
        raise UsageError(
            f"publish: there is no folder {flake} here: name the flake, as in `nixcache-oci publish .`, or "
            f"set {variables.CONFIG_DIR.name}"
        )
    return flake


async def _publish(settings: PublishSettings, proxy: ProxyConfig) -> int:
    flags, actions = settings.flags, settings.actions
    # Settings that a flake brings with it may name programs: not for code that may not push, whatever is set.
    refused = [("accept-flake-config", "false")] if flags.build_only else []
    nix = settings.nix(refused)
    systems = await read_systems(nix, flags.system)
    ref_name = actions.ref_name if actions is not None else None
    scope = flags.scope or "-".join((ref_name or _LOCAL, *systems.asked))
    async with settings.opened() as repository:
        async with _substituting(settings, proxy) as options:
            built = await _build(settings, [*refused, *options], systems)
        check_strict(settings, [f"{attr}: {reason}" for attr, reason in built.failed.items()])
        record = built.record(scope, settings.run)
        report = PublishReport(settings, repository.name, None, outputs=built.rows)
        with settings.progress as progress:
            async with publishing(settings, repository, nix, progress) as publisher:
                try:
                    plan = await publisher.plan([path for _, path in record.roots])
                except RegistryError as error:
                    if not flags.build_only:
                        raise
                    progress.warn(f"the cache cannot be read, so what would be pushed is not known: {error}")
                    return report.finish()
                report.plan = plan
                progress.note(describe_plan(plan, repository.name))
                if flags.dry_run:
                    if not flags.build_only:  # which is never given a key
                        publisher.committer.warn_of_doubts(plan)
                    return report.finish()
                report.published = published = await publisher.publish(plan, [record])
                await publisher.merge(published)
        return report.finish()


@asynccontextmanager
async def _substituting(
    settings: PublishSettings, config: ProxyConfig
) -> AsyncIterator[list[tuple[str, str]]]:
    """Serve the cache to Nix, and give the options for it; only configured keys are trusted."""
    own = [key.public_key for key in settings.options.keys]
    configured = settings.values.get(variables.PUBLIC_KEYS)
    keys = {key.name: key for key in (*own, *configured)}
    if not keys:
        wants = ", and unsigned paths are not published (--allow-unsigned)"
        complain(
            "no key is configured, so the cache is not used for building"
            f"{'' if settings.options.allow_unsigned or settings.flags.dry_run else wants}; "
            "see nixcache-oci keygen"
        )
        yield []
        return
    async with (
        opened(settings.location, settings.values) as repository,
        serving(config, [ConfiguredCache(repository, public_keys=tuple(keys.values()))]) as addresses,
    ):
        yield [
            ("extra-substituters", addresses[0]),
            ("extra-trusted-public-keys", " ".join(map(str, keys.values()))),
        ]


async def _build(settings: PublishSettings, options: Sequence[tuple[str, str]], systems: Systems) -> Built:
    """Build, and name each output that fails at once."""
    flags = settings.flags
    nix = settings.nix(options)
    store = await LocalStore.open(nix)
    if flags.file is not None:
        evaluation = await evaluate_file(nix, flags.file, systems, attrs=flags.attr)
    else:
        evaluation = await evaluate_flake(
            nix,
            flags.flake,
            systems,
            attrs=flags.attr,
            with_checks=flags.checks,
            accept_flake_config=flags.accept_flake_config,
        )
    _report(settings, {one.attr: one.reason for one in evaluation.left_out}, is_failure=False)
    if not evaluation.outputs and not evaluation.failures:
        raise Error(
            f"{flags.file or flags.flake}: there is nothing to publish for {', '.join(systems.asked)}; "
            "expected packages, devShells or configurations; --attr names anything else, such as hydraJobs.*"
        )
    unusable = _find_unusable(evaluation)
    _report(settings, unusable)
    outputs = [output for output in evaluation.outputs if output.attr not in unusable]
    result = await build(store, outputs, accept_flake_config=flags.accept_flake_config)
    _report(settings, result.failed)
    is_unknown = any(one.is_set for one in (*evaluation.failures, *evaluation.left_out))
    return Built(dict(result.built), {**unusable, **result.failed}, is_unknown or bool(flags.attr))


def _find_unusable(evaluation: Evaluation) -> dict[str, str]:
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
            settings.actions.annotate("error", line)
        else:
            settings.actions.annotate("notice", f"left out: {line}")
