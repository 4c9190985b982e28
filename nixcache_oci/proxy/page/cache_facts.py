"""What a page says of a cache: how it is, which key it has, and the lines that use it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nix_conf import Substituter
from nixcache_oci.nix.nix_string import quote
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.wording import counted, show_unprintable

_MAX_KEY_CHARACTERS: Final = 200
_NOT_VERIFIED: Final = "# Not verified: compare this key with the one that the owner published."


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """A cache as pages show it.

    Attributes:
        name: of its repository.
        home: path of its own page, with a slash at the end.
        entries: number of narinfos.
        segments: that list them.
        checked: when the registry last confirmed the index, in seconds of ``time.time()``, or None.
        problems: in sentences; the first one is the worst.
        is_ready: whether it has an index.
        keys: configured, or else the one that it recorded.
        are_keys_configured: whether these were configured on this machine.
    """

    name: str
    home: str
    entries: int
    segments: int
    checked: float | None
    problems: tuple[str, ...]
    is_ready: bool
    keys: tuple[str, ...]
    are_keys_configured: bool

    @classmethod
    def of(cls, cache: OpenedCache, home: str) -> "CacheFacts":
        """Collect them."""
        index = cache.index
        recorded = index.state.public_key
        keys = tuple(str(key) for key in cache.public_keys)
        if not keys and recorded is not None and len(recorded) <= _MAX_KEY_CHARACTERS:
            recorded_keys: tuple[str, ...] = (recorded,)
        else:
            recorded_keys = ()
        return cls(
            name=cache.repository.name,
            home=home,
            entries=index.entries,
            segments=index.segments,
            checked=index.state.checked_at,
            problems=tuple(_problems(cache)),
            is_ready=index.catalog is not None,
            keys=keys or recorded_keys,
            are_keys_configured=bool(keys),
        )


def _problems(cache: OpenedCache) -> Iterator[str]:
    index = cache.index
    state = index.state
    if index.catalog is None:
        yield f"There is no index yet: {state.error or 'the registry has not answered'}."
    elif state.error is not None:
        yield f"The registry could not be read; what was known before is served. {state.error}"
    if state.damaged:
        yield f"{counted(len(state.damaged), 'table')} cannot be read; the others are served."
    if state.left_out is not None:
        yield f"The cache exceeds a limit: {state.left_out}."
    if index.watch.seen.regressed_since is not None:
        yield "The registry shows an older state of the cache than before."
    if state.other_keys:
        yield "The cache records another public key than the one it was first seen with."


def conf_lines(url: str, caches: Sequence[CacheFacts]) -> tuple[str, ...]:
    """Write the lines of nix.conf for an address; a key that is not configured is a comment."""
    configured = [key for cache in caches if cache.are_keys_configured for key in cache.keys]
    recorded = [key for cache in caches if not cache.are_keys_configured for key in cache.keys]
    *lines, fallback = Substituter(url, tuple(dict.fromkeys(configured))).lines()
    for key in _copyable(url, recorded):
        lines += [_NOT_VERIFIED, f"# extra-trusted-public-keys = {key}"]
    return (*lines, fallback)


def flake_lines(url: str, cache: CacheFacts) -> tuple[str, ...]:
    """Write what a flake says to name a cache; a key that is not configured is a comment."""
    keys = " ".join(map(quote, _copyable(url, cache.keys)))
    trusted = f"extra-trusted-public-keys = [ {keys} ];"
    if not keys:
        lines = []
    elif cache.are_keys_configured:
        lines = [trusted]
    else:
        lines = [_NOT_VERIFIED, f"# {trusted}"]
    indented = (f"  {line}" for line in (f"extra-substituters = [ {quote(url)} ];", *lines))
    return ("nixConfig = {", *indented, "};")


def _copyable(url: str, keys: Iterable[str]) -> Iterator[str]:
    """Leave out keys that Nix would misread, or that do not look like what is copied."""
    for key in dict.fromkeys(keys):
        with suppress(FormatError):
            if show_unprintable(key) == key:
                yield from Substituter(url, (key,)).keys
