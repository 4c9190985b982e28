"""Checks that the repository can be reached, read and, by a publisher, written, and that upstreams answer."""

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from yarl import URL

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.listing import read_listing, say_absent
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.clients.credentials import Credentials, is_github
from nixcache_oci.clients.http.forward_proxy import find_proxy
from nixcache_oci.clients.keyring import Keyring
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.registry.probe import Greeting, find_token_error, greet, try_upload
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.upstream.address import Upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, NotFoundError, RegistryError, UpstreamError, UsageError
from nixcache_oci.maintenance.checks.finding import Finding, Level, good, has_error, skipped, warning, wrong
from nixcache_oci.maintenance.checks.manners import CHECKS, check_manners
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.wording import counted

NAME: Final = "name resolution"
REGISTRY: Final = "registry"
CLOCK: Final = "clock"
TOKEN: Final = "token"  # noqa: S105  the name of a check
PULL: Final = "pull"
VISIBILITY: Final = "visibility"
PUSH: Final = "push"
INDEX: Final = "index"
UPSTREAM: Final = "upstream"

_RESOLVE_SECONDS: Final = 5
_UPSTREAM_SECONDS: Final = 15  # in addition to the limits of every look-up
_NOBODYS_HASH_PART: Final = HashPart("0" * 32)
_PATIENCE_SECONDS: Final = 10
_ATTEMPTS: Final = 2
_DENIALS: Final = frozenset({401, 403})
# Times in tags and records decide what counts as newer, and gc allows for an hour at most.
_NOTABLE_SKEW_SECONDS: Final = 60
_WRONG_SKEW_SECONDS: Final = 300
# Source: GitHub's documentation, "GitHub's token formats".
_KINDS: Final = {
    "ghp_": "a classic personal token",
    "github_pat_": "a fine-grained personal token, which GitHub's registry does not accept",
    "ghs_": "a token of a workflow or app",
    "gho_": "a token of an OAuth app, such as gh auth",
    "ghu_": "a token of an app for a user",
}


@dataclass(frozen=True, slots=True)
class Access:
    """What is possible at a registry; ``is_readable`` tells whether the cache can be read."""

    findings: list[Finding]
    is_readable: bool


async def check_registry(
    reference: RegistryReference, environment: Mapping[str, str], *, is_publisher: bool, tries: bool
) -> Access:
    """Check everything between here and the repository; ``tries`` lets a publisher's checks write to it."""
    tries = tries and not is_github(reference.host)  # where all of it is known, and nothing could be deleted
    later = [CLOCK, PULL, VISIBILITY, *([PUSH] if is_publisher else []), *(CHECKS if tries else [])]
    try:
        credentials = await Keyring(reference.host, reference.repository, environment).find()
    except UsageError as error:
        findings = [wrong(TOKEN, str(error)), *skipped((NAME, REGISTRY, *later), "no usable token")]
        return Access(findings, is_readable=False)
    name = await _check_name(reference)
    kind = "none" if credentials is None else describe_token(credentials)
    untried = Finding(TOKEN, Level.SKIPPED, f"{kind}; not tried")
    if has_error([name]):
        missed = [*skipped((REGISTRY,), "its name does not resolve"), untried]
        return Access([name, *missed, *skipped(later, "the registry was not asked")], is_readable=False)
    try:
        greeting = await greet(reference)
    except RegistryError as error:
        # What stays so has its remedy in the error: a certificate, or http for https.
        remedy = "is the registry's name right, is it up, and is a firewall or an HTTP proxy in between?"
        remedy = remedy if error.is_temporary else ""
        reached = [name, wrong(REGISTRY, str(error), remedy), untried]
        return Access([*reached, *skipped(later, "the registry does not answer")], is_readable=False)
    findings = [name, good(REGISTRY, f"{reference.host} answers"), check_clock(greeting.clock_ahead)]
    findings.append(await _check_token(reference, credentials, greeting, is_publisher=is_publisher))
    pull = await _check_pull(reference, credentials)
    findings.append(pull)
    is_readable = pull.level in {Level.GOOD, Level.WARNING}
    findings.append(await _check_visibility(reference, credentials, is_readable=is_readable))
    if is_publisher:
        push = await _check_push(reference, credentials)
        findings.append(push)
        if tries and push.level is Level.GOOD:
            findings += await check_manners(reference, credentials)
        elif tries:
            findings += skipped(CHECKS, "nothing can be pushed")
    return Access(findings, is_readable=is_readable)


def check_clock(ahead: float | None) -> Finding:
    """Check how many seconds the registry's clock is ahead of ours."""
    if ahead is None:
        return warning(CLOCK, "the registry does not send its time")
    difference = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} the registry's"
    remedy = "set this machine's clock (timedatectl set-ntp true): gc and readers rely on publish times"
    if abs(ahead) >= _WRONG_SKEW_SECONDS:
        return wrong(CLOCK, difference, remedy)
    if abs(ahead) >= _NOTABLE_SKEW_SECONDS:
        return warning(CLOCK, difference, remedy)
    return good(CLOCK, "agrees with the registry's")


async def read_index(
    repository: Repository, folder: Path, time: datetime, *, is_publisher: bool
) -> tuple[Finding, Inventory | None]:
    """Read the cache as a proxy does; for a publisher, a cache that does not exist yet is no fault."""
    try:
        kept = await asyncio.to_thread(IndexFolder, folder, repository.name)
        tables = await read_tables(repository, kept, await read_listing(repository))
    except Error as error:
        return wrong(INDEX, str(error)), None
    inventory, listing = Inventory(tables), tables.listing
    if tables.damaged:
        tag, reason = next(iter(tables.damaged.items()))
        count = f"{len(tables.damaged)} of {counted(len(listing.tables) + len(tables.damaged), 'table')}"
        text = f"{count} cannot be read; {tag}: {reason}"
        return wrong(INDEX, text, "see what is missing: nixcache-oci verify"), inventory
    if tables.left_out is not None:
        return wrong(INDEX, tables.left_out, "merge segments: nixcache-oci gc"), inventory
    if listing.is_absent:
        return no_cache(INDEX, repository.name, is_publisher=is_publisher), inventory
    if kept.problem is not None:
        return warning(INDEX, kept.problem), inventory
    # As `list` counts: each once, however many segments list it.
    paths = len((await asyncio.to_thread(inventory.contents)).paths)
    age = ""
    if listing.segments:
        newest = max(segment.created for segment in listing.segments)
        age = f", the newest published {_age((time - newest).total_seconds())}"
    text = f"{counted(len(listing.tables), 'segment')}, {counted(paths, 'path')}{age}"
    return good(INDEX, text), inventory


def no_cache(check: str, name: str, *, is_publisher: bool) -> Finding:
    """Make a finding of a name where no cache is: a publisher makes one, and a client waits in vain."""
    return (warning if is_publisher else wrong)(
        check,
        say_absent(name),
        "check NIXCACHE_REPO, NIXCACHE_REGISTRY and NIXCACHE_IMAGE, or publish to it: nixcache-oci publish",
    )


def describe_token(credentials: Credentials) -> str:
    """Describe a token by its prefix and source; nothing else of it is shown."""
    kind = next(
        (kind for start, kind in _KINDS.items() if credentials.password.startswith(start)), "credentials"
    )
    return f"{kind}, from {credentials.source}"


def _age(seconds: float) -> str:
    if seconds < 0:
        return "in the future"
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"


async def _check_name(reference: RegistryReference) -> Finding:
    url = URL(reference.base_url)
    try:
        if (proxy := find_proxy(url)) is not None:
            return good(NAME, f"left to the HTTP proxy {proxy.url.origin()}")
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port)
    except UsageError as error:
        return wrong(NAME, str(error))
    except (OSError, TimeoutError) as error:
        reason = f"no answer within {_RESOLVE_SECONDS} s"
        if not isinstance(error, TimeoutError):
            reason = error.strerror or str(error)  # without the number, which a name that is not found has
        return wrong(NAME, f"{url.host}: {reason}", "is there a network, and is the registry's name right?")
    return good(NAME, f"{url.host} is {found[0][4][0]}")


async def _check_token(
    reference: RegistryReference, credentials: Credentials | None, greeting: Greeting, *, is_publisher: bool
) -> Finding:
    if credentials is None:
        if is_publisher:
            return warning(TOKEN, "none: access is anonymous", "set GITHUB_TOKEN or NIXCACHE_TOKEN_FILE")
        return good(TOKEN, "none, which a public package does not need")
    kind = describe_token(credentials)
    reason = await find_token_error(reference, credentials, greeting)
    if reason is None:
        return good(TOKEN, kind)
    remedy = "it is wrong or has expired: renew it"
    if is_github(reference.host):
        remedy += ", as a classic personal token with read:packages (to publish: write:packages)"
    return wrong(TOKEN, f"{kind}: {reason}", remedy)


async def _check_pull(reference: RegistryReference, credentials: Credentials | None) -> Finding:
    try:
        await _resolve(reference, credentials)
    except NotFoundError:
        return warning(PULL, f"{reference} has no {INDEX_TAG}: nothing was published there yet")
    except RegistryError as error:
        return wrong(PULL, str(error))
    return good(PULL, f"{reference} can be read")


async def _check_visibility(
    reference: RegistryReference, credentials: Credentials | None, *, is_readable: bool
) -> Finding:
    if not is_readable:
        return skipped((VISIBILITY,), "the repository cannot be read")[0]
    if credentials is None:
        return good(VISIBILITY, "public: it was read anonymously")
    try:
        await _resolve(reference, None)
    except NotFoundError:
        return good(VISIBILITY, "anybody may read, but nothing is published yet")
    except RegistryError as error:
        if error.status in _DENIALS:
            return good(VISIBILITY, "private: every client needs a token with read access")
        return warning(VISIBILITY, f"unknown: {error}")
    return good(VISIBILITY, "public: no client needs a token")


async def _check_push(reference: RegistryReference, credentials: Credentials | None) -> Finding:
    try:
        is_cancelled = await try_upload(reference, credentials)
    except RegistryError as error:
        return wrong(PUSH, str(error))
    ending = "cancelled" if is_cancelled else "left to expire, with nothing in it"
    return good(PUSH, f"allowed: an upload was opened, and {ending}")


async def _resolve(reference: RegistryReference, credentials: Credentials | None) -> None:
    registry = Registry(
        reference,
        credentials,
        patience=_PATIENCE_SECONDS,
        stall_seconds=_PATIENCE_SECONDS,
        attempts=_ATTEMPTS,
    )
    try:
        await registry.resolve(INDEX_TAG)
    finally:
        await registry.close()


async def check_upstreams(upstreams: Sequence[Upstream]) -> list[Finding]:
    """Ask each for a path that does not exist, as the proxy would: a miss is an answer."""
    if not upstreams:
        return [good(UPSTREAM, "none is set")]
    return list(await asyncio.gather(*map(_check_upstream, upstreams)))


async def _check_upstream(upstream: Upstream) -> Finding:
    asked = Upstreams([upstream])
    try:
        async with asyncio.timeout(_UPSTREAM_SECONDS):
            await asked.find(_NOBODYS_HASH_PART)
    except UpstreamError as error:
        reason = str(error).removeprefix(f"upstream {upstream}: ")
    except TimeoutError:
        reason = f"no answer within {_UPSTREAM_SECONDS} s"
    else:
        return good(UPSTREAM, f"{upstream} answers")
    finally:
        await asked.close()
    remedy = (
        f"see what it says: curl {shlex.quote(str(upstream.at('nix-cache-info')))}; while it is down, Nix "
        "builds what only it has. If it is gone for good, remove it from NIXCACHE_UPSTREAM or its file"
    )
    return warning(UPSTREAM, f"{upstream} does not answer: {reason}", remedy)
