"""The verb ``use``: the lines of nix.conf by which Nix on this machine uses the proxy, shown or written."""

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.cli.cache_view import VARIABLES, read_cache, warn
from nixcache_oci.cli.compose import run_async, start_logging
from nixcache_oci.cli.console import ask, complain, say
from nixcache_oci.cli.interrupt import if_interrupted
from nixcache_oci.cli.nix_conf_file import apply_to_file, find_nix_conf
from nixcache_oci.cli.verb import DONE
from nixcache_oci.clients.proxy_status import ProxyClient
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.nix.nix_conf import TRUSTED_PUBLIC_KEYS, Substituter
from nixcache_oci.nix.signature import parse_public_keys
from nixcache_oci.proxy.prefix import parse_prefix, prefix_of
from nixcache_oci.proxy.tls import certified_host
from nixcache_oci.settings import variables
from nixcache_oci.settings.cache_config import CacheConfig, cache_configs
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted

_MAX_KEYS: Final = 8  # more cannot be compared by eye
_MAX_KEY_CHARACTERS: Final = 200  # name and base 64
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104  they are recognized here, not listened on

DESCRIPTION = (
    "Print the nix.conf lines that make Nix on this machine use the proxy and trust the cache's key. "
    "With --apply they are added to the file, with a backup; its other lines are left alone. A key "
    "that is not configured is printed as a comment, and written only after a confirmation on a "
    "terminal: any user of this machine may listen where the proxy should."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("--apply", action="store_true", help="add what is missing to nix.conf")
    parser.add_argument(
        "--file",
        metavar="FILE",
        type=Path,
        help="instead of /etc/nix/nix.conf, or for users other than root ~/.config/nix/nix.conf",
    )
    parser.add_argument(
        "--public-key",
        dest=variables.PUBLIC_KEYS.name,
        metavar="NAME:BASE64",
        action="append",
        help="a key of the cache, as its owner published it; may be repeated, like "
        f"{variables.PUBLIC_KEYS.flag}",
    )
    parser.add_argument(
        "--cache",
        metavar="PREFIX",
        type=_parse_prefix,
        help="owner/name, or host/repository: use this cache alone, by its prefix, and not all that are "
        "configured",
    )
    others = (variables.LISTEN, variables.PORT, variables.TLS_CERT, variables.CACHES_FILE, variables.REPOS)
    add_flags(parser, (*others, *(one for one in VARIABLES if one is not variables.REPO)))


def _parse_prefix(text: str) -> str:
    try:
        found = prefix_of(parse_prefix(text))
    except FormatError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found is None:
        raise argparse.ArgumentTypeError("an IPv6 address cannot be part of a prefix")
    return found


@dataclass(frozen=True, slots=True)
class _NamedKeys:
    """Keys, printable ASCII, and the unchecked source that names them."""

    keys: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        return f"{self.source} names {' '.join(self.keys)}"


def run(values: Values) -> int:
    """Show the lines, or write them."""
    arguments, environment = values.flags, values.environment
    start_logging(values)
    caches = _chosen_caches(values)
    url = find_proxy_url(values)
    if arguments.cache is not None:
        url = f"{url}/{arguments.cache}"
    path = (arguments.file or find_nix_conf(environment, is_root=os.geteuid() == 0)).absolute()
    configured = _find_keys(values, caches)
    if configured:
        run_async(_warn_of_other_keys(url, configured))
        named = None
    else:
        is_embedded = arguments.cache is None and len(caches) == 1
        named = run_async(_find_named_keys(url, values if is_embedded else None))
    if not arguments.apply:
        lines = Substituter(url, configured).lines() if named is None else _unverified_lines(url, named)
        say(*lines)
        complain(f"For {path}; --apply adds what is missing there.")
        return DONE
    if named is not None:
        _ask_for_trust(named, path)
    wanted = Substituter(url, configured if named is None else named.keys)
    with if_interrupted(f"{path} is either unchanged or complete; run the same command again"):
        backup = apply_to_file(path, wanted)
    if backup is None:
        say(f"{path}: nothing to do, everything is there")
    else:
        say(f"{path}: now uses {url}" + (f"; backup: {backup}" if backup != path else ""))
    complain(_advice(path, environment))
    return DONE


def _chosen_caches(values: Values) -> tuple[CacheConfig, ...]:
    """Return the configured caches, or of them the one that the command line names."""
    caches, prefix = cache_configs(values), values.flags.cache
    return tuple(cache for cache in caches if prefix in (None, cache.prefix))


def _find_keys(values: Values, caches: Iterable[CacheConfig]) -> tuple[str, ...]:
    """Return the keys that are typed, else those that are configured for these caches."""
    typed = values.text(variables.PUBLIC_KEYS, with_environment=False)
    if typed is not None:
        return tuple(str(key) for key in values.get(variables.PUBLIC_KEYS))
    keys: dict[str, None] = {}
    without = []
    for cache in caches:
        keys |= dict.fromkeys(str(key) for key in cache.public_keys)
        if not cache.public_keys:
            without.append(str(cache.prefix))
    if keys and without:
        warn(f"no key is configured for {' '.join(without)}: Nix will refuse what only that signed")
    return tuple(keys)


def find_proxy_url(values: Values) -> str:
    """Return the address of this machine's proxy.

    Raises:
        UsageError: the settings do not fix its port, or name a certificate that cannot be read.
    """
    port, listen = values.get(variables.PORT), values.get(variables.LISTEN)
    if port == 0:
        raise UsageError(
            f"{variables.PORT.name} is 0, a port that only the running proxy knows: set "
            f"{variables.PORT.flag} to the one that it printed, or better a fixed one for both"
        )
    host = "127.0.0.1" if listen in _ANY_ADDRESS else listen
    certificate = values.get(variables.TLS_CERT)
    if certificate is not None:
        host = certified_host(certificate, host)
    scheme = "http" if certificate is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _warn_of_other_keys(url: str, configured: tuple[str, ...]) -> None:
    """Warn where the proxy hands out keys that are not configured; those are never written."""
    try:
        async with ProxyClient(url) as proxy:
            found = await proxy.public_keys()
    except Error:
        return  # it may be started later
    others = sorted(set(found) - set(configured))
    if found and others:
        warn(
            f"the proxy at {url} hands out {_clip(' '.join(others))}, which is not configured, and is not "
            "trusted: find out whose it is, and who listens there"
        )


async def _find_named_keys(url: str, values: Values | None) -> _NamedKeys:
    """Ask the proxy for the keys, else the cache of the settings; neither proves whose they are."""
    source = f"what listens at {url}"
    try:
        async with ProxyClient(url) as proxy:
            found = await proxy.public_keys()
    except Error as error:
        if values is None:
            raise
        warn(f"the proxy does not answer ({error}): asking the cache itself")
        found = ()
    if not found and values is not None:
        view = await read_cache(values)
        found = tuple(dict.fromkeys(str(key) for key in view.inventory.tables.recorded_keys))
        source = view.name
    remedy = f"set {variables.PUBLIC_KEYS.name} to the key that the cache's owner published"
    if not found:
        raise Error(f"{source} names no public key: {remedy}")
    if len(found) > _MAX_KEYS:
        raise Error(f"{source} names {counted(len(found), 'public key')}, too many to compare: {remedy}")
    try:
        keys = parse_public_keys(found)
    except FormatError as error:
        raise Error(f"{source}: {error}; {remedy}") from None
    texts = tuple(map(str, keys))
    for text in texts:  # a person has to see all of it, without look-alike letters
        if len(text) > _MAX_KEY_CHARACTERS or not (text.isascii() and text.isprintable()):
            raise Error(f"{source} names a key that cannot be compared, {_clip(text)}: {remedy}")
    return _NamedKeys(texts, source)


def _clip(text: str) -> str:
    """Show a stranger's text in printable ASCII, cut to a bounded length."""
    return ascii(text[:_MAX_KEY_CHARACTERS])[1:-1] + ("..." if len(text) > _MAX_KEY_CHARACTERS else "")


def _unverified_lines(url: str, named: _NamedKeys) -> tuple[str, ...]:
    """Write the lines with the keys in comments: redirected into nix.conf, they must not be trusted."""
    remark = (
        f"# Not verified: {named.source} names this key. Compare it with the one that the cache's owner "
        "published; only then remove the first # of the next line."
    )
    lines: list[str] = []
    for line in Substituter(url, named.keys).lines():
        lines += [remark, f"#{line}"] if TRUSTED_PUBLIC_KEYS in line else [line]
    return tuple(lines)


def _ask_for_trust(named: _NamedKeys, path: Path) -> None:
    """Show the keys, and ask whether Nix is to trust them; any answer but yes is an error."""
    remedy = (
        "nothing was written. Compare that with the key that the cache's owner published, and give the "
        f"right one with --public-key NAME:BASE64 or {variables.PUBLIC_KEYS.name}"
    )
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Error(f"no key is configured, and {named}, which proves nothing: {remedy}")
    complain(
        f"No key is configured; {named.source} names",
        "",
        *(f"    {key}" for key in named.keys),
        "",
        "Nix would run whatever it signed. Compare it with the one that the cache's owner published.",
    )
    if ask(f"Trust it in {path}? [y/N]").lower() not in {"y", "yes"}:
        raise Error(f"the key of {named.source} is not trusted: {remedy}")


def _advice(path: Path, environment: Mapping[str, str]) -> str:
    if path == find_nix_conf(environment, is_root=True):
        return "A Nix daemon reads this only when it starts: systemctl restart nix-daemon"
    return (
        "A Nix daemon obeys your own nix.conf only if you are in its trusted-users, or if the URL is in its "
        "trusted-substituters and the key in its trusted-public-keys: nixcache-oci doctor checks this"
    )
