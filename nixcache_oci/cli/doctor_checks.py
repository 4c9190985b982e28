"""What ``doctor`` checks, in the order in which the checks depend on each other."""

import asyncio
import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from nixcache_oci.cache.progress import Stage
from nixcache_oci.cache.timestamp import now
from nixcache_oci.cli.compose import open_repository
from nixcache_oci.cli.use import find_proxy_url
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
from nixcache_oci.maintenance.checks.finding import Finding, good, has_error, skipped, warning, wrong
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.settings import variables
from nixcache_oci.settings.cache_config import CacheConfig, cache_configs
from nixcache_oci.settings.file_config import signing_keys, upstream_urls
from nixcache_oci.settings.repository_config import RepositoryConfig, index_dir
from nixcache_oci.settings.values import Values, Variable, unknown_variables

_SETTINGS = "settings"
_PROGRAM = "nix"
_LAYOUT = "layout"

# The proxy takes several repositories, and each is checked.
VARIABLES: Final = tuple(
    variables.REPOS if variable is variables.REPO else variable for variable in variables.ALL_VARIABLES
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Roles:
    """As what this machine is checked, and why, in words."""

    is_publisher: bool
    is_client: bool
    reason: str


def try_get(values: Values, variable: Variable[T], otherwise: T) -> T:
    """Return a setting, or something else where it is wrong: the check of the settings names it."""
    try:
        return values.get(variable)
    except UsageError:
        return otherwise


@dataclass(slots=True)
class Doctor:
    """Makes the checks in the order in which they depend on each other.

    Attributes:
        configured: keys of the caches that the settings name.
        recorded: keys that the caches record that were read.
    """

    values: Values
    roles: Roles
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
            add(await self._check_client([cache.location for cache in caches], version))
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
                key_match.SIGNING_KEY, try_get(self.values, variables.SIGNING_KEY_FILE, ())
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
        self, locations: Sequence[RepositoryConfig], version: Version | None
    ) -> list[Finding]:
        try:
            url = find_proxy_url(self.values)
        except UsageError as error:
            rest = [nix_use.PROXY, nix_use.SERVED, nix_use.CACHE_INFO, *nix_use.CHECKS]
            # What cannot be parsed was named with the settings; port 0 is right there, and no address here.
            is_free_port = try_get(self.values, variables.PORT, None) == 0
            named = [wrong(rest.pop(0), str(error))] if is_free_port else []
            return [*named, *skipped(rest, "the proxy's address is not known")]
        names = [f"oci:{one}" if isinstance(one, Path) else str(one) for one in locations]
        chosen_by = (variables.REPO, variables.REGISTRY, variables.CACHES_FILE)
        is_chosen = any(self.values.is_given(variable) for variable in chosen_by)
        store_dir = try_get(self.values, variables.STORE_DIR, variables.STORE_DIR.default)
        found = await nix_use.check_proxy(url, names, store_dir, is_chosen=is_chosen)
        if version is None:
            return [*found.findings, *skipped(nix_use.CHECKS, "there is no usable nix")]
        keys = found.public_keys or [str(key) for key in self.recorded]
        return [*found.findings, *await self._check_nix(url, keys)]

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
    for variable in VARIABLES:
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
    files = (try_get(values, variable, None) for variable in (variables.TOKEN_FILE, variables.UPSTREAM_FILE))
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
