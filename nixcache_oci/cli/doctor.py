"""The verb ``doctor``: what is set, allowed and running here, and what to do about what is not."""

import argparse
import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, TextIO, TypeVar

from rich.console import Console
from rich.text import Text

from nixcache_oci.cache.progress import Stage
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.command import complete_commands
from nixcache_oci.cli.compose import open_repository, run_async
from nixcache_oci.cli.console import say_json
from nixcache_oci.cli.log import escape_unprintable, set_up_logging
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.use import find_proxy_url
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.local_store.nix_program import Nix, Version
from nixcache_oci.clients.local_store.nix_settings import (
    current_user,
    is_trusted,
    read_settings,
    system_environment,
    uses_daemon,
)
from nixcache_oci.clients.local_store.program import find_reason, ignore_line
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import FormatError, StoreError, UsageError
from nixcache_oci.maintenance.checks import key_match, nix_use, remote
from nixcache_oci.maintenance.checks.finding import Finding, Level, good, has_error, skipped, warning, wrong
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.settings import variables
from nixcache_oci.settings.cache_config import CacheConfig, cache_configs
from nixcache_oci.settings.file_config import signing_keys, upstream_urls
from nixcache_oci.settings.repository_config import RepositoryConfig, index_dir
from nixcache_oci.settings.values import Values, Variable, add_flags, unknown_variables
from nixcache_oci.wording import counted

_SETTINGS = "settings"
_PROGRAM = "nix"
_LAYOUT = "layout"
_MARKS: Final = {Level.GOOD: "✓", Level.WARNING: "!", Level.ERROR: "✗", Level.SKIPPED: "-"}
_ASCII_MARKS: Final = {Level.GOOD: "+", Level.WARNING: "!", Level.ERROR: "x", Level.SKIPPED: "-"}
_STYLES: Final = {Level.GOOD: "green", Level.WARNING: "yellow", Level.ERROR: "bold red", Level.SKIPPED: "dim"}

# The proxy takes several repositories, and each is checked.
_VARIABLES: Final = tuple(
    variables.REPOS if variable is variables.REPO else variable for variable in variables.ALL_VARIABLES
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Roles:
    """As what this machine is checked, and why, in words."""

    is_publisher: bool
    is_client: bool
    reason: str


DESCRIPTION = (
    "Check settings, network, token, rights, index, keys, Nix and proxy, and say what to do. Exit "
    "status 1 if something is wrong. With a signing key set, the machine is checked as a publisher, "
    "otherwise as a client."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument(
        "--publisher",
        action="store_true",
        help="check what publishing needs; elsewhere than at GitHub also by writing, and deleting that",
    )
    parser.add_argument("--client", action="store_true", help="check Nix and the proxy of this machine")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, _VARIABLES)


def run(values: Values) -> int:
    """Check, and tell."""
    level = logging.ERROR  # warnings would repeat findings
    if values.is_given(variables.LOG_LEVEL):
        level = _try_get(values, variables.LOG_LEVEL, level)
    set_up_logging(level, values.environment, sys.stderr)
    roles = _find_roles(values)
    configured = _try_get(values, variables.PUBLIC_KEYS, ())
    with showing(None, is_quiet=values.flags.quiet) as progress, progress.stage("checking", "check") as stage:
        found = run_async(_Doctor(values, roles, configured).examine(stage))
    findings = [replace(one, remedy=complete_commands(one.remedy, values)) for one in found]
    if values.flags.json:
        say_json(
            {
                "publisher": roles.is_publisher,
                "client": roles.is_client,
                "healthy": not has_error(findings),
                "checks": [asdict(finding) for finding in findings],
            }
        )
    else:
        print_findings(roles.reason, findings, sys.stdout)
    return FAILED if has_error(findings) else DONE


def print_findings(head: str, findings: Sequence[Finding], stream: TextIO) -> None:
    """Write a line for each finding, another for its remedy, and one that counts them.

    On a terminal the mark has a colour, unless NO_COLOR or TERM=dumb says otherwise.
    """
    marks = _MARKS if _can_show("".join(_MARKS.values()), stream) else _ASCII_MARKS
    console = Console(file=stream, force_jupyter=False, highlight=False, soft_wrap=True)

    def show(text: str, mark: str = "", style: str = "") -> None:
        line = text if _can_show(text, stream) else ascii(text)[1:-1]
        console.print(Text.assemble((mark, style), line))

    show(head)
    for finding in findings:
        text = f" {finding.check}: {escape_unprintable(finding.text)}"
        show(text, marks[finding.level], _STYLES[finding.level])
        if finding.remedy:
            show(f"    {escape_unprintable(finding.remedy)}")
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    show(f"{counted(count[Level.ERROR], 'error')}, {counted(count[Level.WARNING], 'warning')}")


def _can_show(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _find_roles(values: Values) -> _Roles:
    arguments = values.flags
    if arguments.publisher or arguments.client:
        words = [word for word in ("publisher", "client") if getattr(arguments, word)]
        return _Roles(arguments.publisher, arguments.client, f"Checked as {' and '.join(words)}.")
    is_publisher = values.is_given(variables.SIGNING_KEY_FILE) or values.is_given(variables.SIGNING_KEY)
    reason = "client, as no signing key is set; --publisher checks what publishing needs."
    if is_publisher:
        reason = "publisher, as a signing key is set; --client checks Nix and the proxy here."
    return _Roles(is_publisher, not is_publisher, f"Checked as {reason}")


def _try_get(values: Values, variable: Variable[T], otherwise: T) -> T:
    try:
        return values.get(variable)
    except UsageError:
        return otherwise  # the check of the settings names it


@dataclass(slots=True)
class _Doctor:
    """Makes the checks in the order in which they depend on each other.

    Attributes:
        configured: keys of the caches that the settings name.
        recorded: keys that the caches record that were read.
    """

    values: Values
    roles: _Roles
    configured: tuple[PublicKey, ...]
    recorded: tuple[PublicKey, ...] = ()

    async def examine(self, stage: Stage) -> list[Finding]:
        """Make all checks that apply, and count them in the stage."""
        findings = _check_settings(self.values)
        caches: tuple[CacheConfig, ...] = ()
        try:
            caches = cache_configs(self.values)
            self.configured = tuple(dict.fromkeys(key for cache in caches for key in cache.public_keys))
        except UsageError as error:
            if not has_error(findings):
                findings = [wrong(_SETTINGS, str(error))]
        stage.advance(len(findings))

        def add(found: Sequence[Finding]) -> None:
            findings.extend(found)
            stage.advance(len(found))

        for cache in caches or (None,):
            add(await self._check_cache(cache, has_others=len(caches) > 1))
        program, version = await self._check_program()
        add([program])
        if self.roles.is_client:
            add(await self._check_client(caches[0].location if caches else None, version))
            add(await self._check_upstreams())
        return findings

    async def _check_cache(self, cache: CacheConfig | None, *, has_others: bool) -> list[Finding]:
        """Check a cache and its keys; beside others, each finding names it."""
        findings, recorded = await self._check_repository(cache)
        findings += self._check_keys(self.configured if cache is None else cache.public_keys, recorded)
        self.recorded += recorded or ()
        if cache is None or not has_others:
            return findings
        token_file = cache.environment.get(variables.TOKEN_FILE.name)
        findings += _check_secrecy(_SETTINGS, [Path(token_file)] if token_file else [])
        return [replace(finding, check=f"{finding.check} of {cache.prefix}") for finding in findings]

    async def _check_repository(
        self, cache: CacheConfig | None
    ) -> tuple[list[Finding], tuple[PublicKey, ...] | None]:
        """Check a repository; gives the keys that it records, too, or None if it could not be read."""
        rights = [remote.PUSH] if self.roles.is_publisher else []
        reads = (remote.PULL, remote.VISIBILITY, *rights, remote.INDEX)
        if cache is None:
            checks = (remote.NAME, remote.REGISTRY, remote.CLOCK, remote.TOKEN, *reads)
            return skipped(checks, "the settings name no repository"), None
        location, environment = cache.location, cache.environment
        if isinstance(location, Path):
            findings = [_check_layout(location, is_publisher=self.roles.is_publisher)]
            is_readable = not findings[0].remedy
        else:
            access = await remote.check_registry(
                location,
                environment,
                is_publisher=self.roles.is_publisher,
                tries=self.values.flags.publisher,
            )
            findings, is_readable = access.findings, access.is_readable
        if not is_readable:
            return [*findings, *skipped((remote.INDEX,), "the repository cannot be read")], None
        async with AsyncExitStack() as stack:
            repository = open_repository(location, environment)
            stack.push_async_callback(repository.close)
            try:
                folder = index_dir(self.values)
            except UsageError:
                return [*findings, *skipped((remote.INDEX,), "NIXCACHE_INDEX_DIR cannot be used")], None
            finding, inventory = await remote.read_index(
                repository, folder, now(), is_publisher=self.roles.is_publisher
            )
        return [*findings, finding], None if inventory is None else inventory.tables.recorded_keys

    def _check_keys(
        self, configured: tuple[PublicKey, ...], recorded: tuple[PublicKey, ...] | None
    ) -> list[Finding]:
        findings = []
        if self.roles.is_publisher:
            try:
                found = signing_keys(self.values)
                findings += key_match.check_signing_keys(found, recorded, configured)
            except UsageError as error:
                findings.append(wrong(key_match.SIGNING_KEY, str(error)))
            findings += _check_secrecy(
                key_match.SIGNING_KEY, _try_get(self.values, variables.SIGNING_KEY_FILE, ())
            )
        if self.roles.is_client or configured:
            findings.append(key_match.check_public_keys(configured, recorded))
        return findings

    async def _check_program(self) -> tuple[Finding, Version | None]:
        said: list[str] = []
        try:
            version = await Nix(self.values.environment, on_line=said.append).version()
        except StoreError as error:
            text = find_reason(said) if said else str(error)
            return wrong(_PROGRAM, text, "fix what it complains about"), None
        if version is None:
            remedy = "install Nix (https://nixos.org/download), or add the folder of its programs to PATH"
            return wrong(_PROGRAM, "no program nix of version 2.4 or newer in PATH", remedy), None
        return good(_PROGRAM, f"version {'.'.join(map(str, version))}"), version

    async def _check_client(
        self, location: RepositoryConfig | None, version: Version | None
    ) -> list[Finding]:
        try:
            url = find_proxy_url(self.values)
        except UsageError as error:
            rest = [nix_use.PROXY, nix_use.SERVED, nix_use.CACHE_INFO, *nix_use.CHECKS]
            # What cannot be parsed was named with the settings; port 0 is right there, and no address here.
            is_free_port = _try_get(self.values, variables.PORT, None) == 0
            named = [wrong(rest.pop(0), str(error))] if is_free_port else []
            return [*named, *skipped(rest, "the proxy's address is not known")]
        name = f"oci:{location}" if isinstance(location, Path) else str(location)
        chosen_by = (variables.REPO, variables.REGISTRY, variables.CACHES_FILE)
        is_chosen = any(self.values.is_given(variable) for variable in chosen_by)
        store_dir = _try_get(self.values, variables.STORE_DIR, variables.STORE_DIR.default)
        found = await nix_use.check_proxy(url, name if location else None, store_dir, is_chosen=is_chosen)
        if version is None:
            return [*found.findings, *skipped(nix_use.CHECKS, "there is no usable nix")]
        names = found.public_keys or [str(key) for key in self.recorded]
        return [*found.findings, *await self._check_nix(url, names)]

    async def _check_upstreams(self) -> list[Finding]:
        try:
            urls = upstream_urls(self.values)
        except UsageError:
            return skipped((remote.UPSTREAM,), "the settings name no usable one")
        try:
            upstreams = open_upstreams(urls, self.values.environment)
        except UsageError as error:
            return [wrong(remote.UPSTREAM, str(error))]
        return await remote.check_upstreams(upstreams)

    async def _check_nix(self, url: str, names: Sequence[str]) -> list[Finding]:
        known = [str(key) for key in self.configured] or names
        environment = self.values.environment
        try:
            own, system = [
                await read_settings(Nix(one, on_line=ignore_line))
                for one in (environment, system_environment(environment))
            ]
        except (StoreError, FormatError) as error:
            first, *rest = nix_use.CHECKS
            return [wrong(first, str(error), "mend nix.conf"), *skipped(rest, "nix.conf cannot be read")]
        user, groups = current_user()
        client = nix_use.NixClient(
            own,
            system,
            user,
            is_daemon=await asyncio.to_thread(uses_daemon, own.store, environment),
            is_trusted=os.geteuid() == 0 or is_trusted(user, groups, system.trusted_users),
            environment=environment,
        )
        return nix_use.check_nix_use(client, url, known, is_configured=bool(self.configured))


def _check_settings(values: Values) -> list[Finding]:
    """Parse every setting, and name each that is wrong."""
    findings = []
    for variable in _VARIABLES:
        try:
            values.get(variable)
        except UsageError as error:
            findings.append(wrong(_SETTINGS, str(error)))
    if not findings:
        try:
            upstream_urls(values)
        except UsageError as error:
            findings.append(wrong(_SETTINGS, str(error)))
    findings += [
        warning(_SETTINGS, line) for line in unknown_variables(values.environment, variables.ALL_VARIABLES)
    ]
    files = (_try_get(values, variable, None) for variable in (variables.TOKEN_FILE, variables.UPSTREAM_FILE))
    findings += _check_secrecy(_SETTINGS, files)
    if not findings:
        given = sum(values.is_given(variable) for variable in variables.ALL_VARIABLES)
        findings.append(good(_SETTINGS, f"{given} set, all usable" if given else "using defaults"))
    return findings


def _check_layout(path: Path, *, is_publisher: bool) -> Finding:
    if path.is_dir():
        return good(_LAYOUT, f"oci:{path}")
    if path.exists():
        return wrong(_LAYOUT, f"{path} is not a folder", "remove it, or name another in NIXCACHE_REGISTRY")
    return remote.no_cache(_LAYOUT, f"oci:{path}", is_publisher=is_publisher)


def _check_secrecy(check: str, paths: Iterable[Path | None]) -> list[Finding]:
    """Name files with secrets that others on this machine may read."""
    return [
        warning(check, f"{path}: others may read it", f"run: chmod 600 {shlex.quote(str(path))}")
        for path in paths
        if path is not None and path.is_file() and path.stat().st_mode & 0o077
    ]
