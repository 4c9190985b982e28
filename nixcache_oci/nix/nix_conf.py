"""``nix.conf``: parsed as Nix parses it, and completed without changing existing lines.

A later line overrides an earlier one, and a plain setting overrides earlier ``extra-`` ones. Additions go to
the end, where nothing overrides them. Source: Nix manual, "nix.conf"; Nix 2.8 read and tried: only a newline
ends a line, ``#`` starts a comment anywhere, spaces surround the equals sign.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

from nixcache_oci.errors import FormatError

SUBSTITUTERS: Final = "substituters"
TRUSTED_PUBLIC_KEYS: Final = "trusted-public-keys"
FALLBACK: Final = "fallback"
REQUIRE_SIGS: Final = "require-sigs"

_EXTRA: Final = "extra-"
_OLD_NAMES: Final = {
    "binary-caches": SUBSTITUTERS,
    "binary-cache-public-keys": TRUSTED_PUBLIC_KEYS,
    "build-fallback": FALLBACK,
}
_INCLUDES: Final = ("include", "!include")
_INCLUDE_WORDS: Final = 2
_UNSIGNED: Final = (
    "Nix would accept unsigned paths from the proxy's port, where any user of this machine can listen while "
    "the proxy is down: remove it first"
)
_YES: Final = frozenset({"true", "yes", "1"})  # as Nix parses booleans
_COMMENT: Final = "# Added by nixcache-oci: the cache proxy of this machine."
# What Nix splits words at; other white space belongs to a word.
_SPACE = re.compile(r"[ \t\r]+")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One assignment."""

    line: int  # its number, from 1
    name: str  # the current one, without ``extra-``
    is_extra: bool  # whether it adds to earlier lines
    values: tuple[str, ...]  # the words after the equals sign


@dataclass(frozen=True, slots=True)
class Substituter:
    """The cache proxy, as a machine's nix.conf has to name it; FormatError if Nix would misread it."""

    url: str  # of the proxy
    keys: tuple[str, ...]  # public keys, ``name:base64``

    def __post_init__(self) -> None:
        for value in (self.url, *self.keys):
            if not value or "#" in value or len(value.split()) != 1:
                raise FormatError(
                    f"nix.conf: {value[:160]!r} cannot be used there: a space or # would end it"
                )

    def lines(self) -> tuple[str, ...]:
        """Return the lines for a file that has none of them yet."""
        return _render([self.url], self.keys, is_fallback_missing=True)


def parse_conf(text: str) -> tuple[Setting, ...]:
    """Parse the settings of one file; included files are ignored.

    Raises FormatError, which names it, for a line that Nix refuses.
    """
    settings = []
    for number, line in enumerate(text.split("\n"), 1):
        words = [word for word in _SPACE.split(line.partition("#")[0]) if word]
        if not words or (words[0] in _INCLUDES and len(words) == _INCLUDE_WORDS):
            continue
        if len(words) < _INCLUDE_WORDS or words[1] != "=":
            raise FormatError(
                f"line {number}: Nix reads 'name = value' and 'include path' only; fix it first"
            )
        is_extra = words[0].startswith(_EXTRA)
        name = words[0].removeprefix(_EXTRA)
        settings.append(Setting(number, _OLD_NAMES.get(name, name), is_extra, tuple(words[2:])))
    return tuple(settings)


def complete_conf(text: str, wanted: Substituter) -> str:
    """Append what is missing; the same text if nothing is.

    Raises FormatError for a line that Nix refuses; that trusts another key of the same name, because Nix uses
    only the first; or that accepts unsigned paths from the proxy, whose port any local user may take while it
    is down.
    """
    settings = parse_conf(text)
    if unsigned := _find_unsigned(settings, wanted.url):
        raise FormatError(f"line {unsigned.line}: {_UNSIGNED}")
    trusted = find_values(settings, TRUSTED_PUBLIC_KEYS)
    if conflict := find_conflict(trusted, wanted.keys):
        line = next(one.line for one in settings if conflict in one.values)
        raise FormatError(
            f"line {line}: another key is trusted under the name {conflict.partition(':')[0]}, and Nix takes "
            "only the first of a name: find out which one is right, and remove the other"
        )
    urls = [] if has_substituter(find_values(settings, SUBSTITUTERS), wanted.url) else [wanted.url]
    keys = [key for key in wanted.keys if key not in trusted]
    lines = _render(urls, keys, is_fallback_missing=_last(settings, FALLBACK) != ("true",))
    if not lines:
        return text
    end = "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"
    before = text if not text or text.endswith("\n") else f"{text}{end}"
    gap = end if before else ""
    return f"{before}{gap}" + "".join(f"{line}{end}" for line in (_COMMENT, *lines))


def _find_unsigned(settings: Sequence[Setting], url: str) -> Setting | None:
    """Find the line by which Nix accepts unsigned paths from this URL."""
    last = next((one for one in reversed(settings) if one.name == REQUIRE_SIGS), None)
    if last is not None and last.values not in {(word,) for word in _YES}:
        return last
    listed = find_values(settings, SUBSTITUTERS)
    return next(
        (
            one
            for one in settings
            for word in one.values
            if one.name == SUBSTITUTERS
            and word in listed
            and trusts_blindly(word)
            and has_substituter([word], url)
        ),
        None,
    )


def find_values(settings: Sequence[Setting], name: str) -> tuple[str, ...]:
    """Collect a list's values: of the last plain line, and of ``extra-`` lines after it."""
    found: list[str] = []
    for setting in settings:
        if setting.name == name:
            found = [*(found if setting.is_extra else ()), *setting.values]
    return tuple(dict.fromkeys(found))


def has_substituter(urls: Iterable[str], wanted: str) -> bool:
    """Check whether a URL is listed: loopback names are equal, and query parameters ignored."""
    return find_substituter(urls, wanted) is not None


def find_substituter(urls: Iterable[str], wanted: str) -> str | None:
    """Find a listed URL, as written; see ``has_substituter``."""
    return next((url for url in urls if _identity(url) == _identity(wanted)), None)


def trusts_blindly(url: str) -> bool:
    """Check whether a substituter's URL has ``trusted=true``: no signature is needed."""
    return not _YES.isdisjoint(parse_qs(url.partition("?")[2]).get("trusted", []))


def find_conflict(trusted: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Find a trusted key that differs from a wanted one of the same name."""
    by_name = {key.partition(":")[0]: key for key in wanted}
    return next((key for key in trusted if by_name.get(key.partition(":")[0], key) != key), None)


def _last(settings: Sequence[Setting], name: str) -> tuple[str, ...]:
    return next((one.values for one in reversed(settings) if one.name == name), ())


def _render(urls: Sequence[str], keys: Sequence[str], *, is_fallback_missing: bool) -> tuple[str, ...]:
    lines = [
        f"{_EXTRA}{name} = {' '.join(values)}"
        for name, values in ((SUBSTITUTERS, urls), (TRUSTED_PUBLIC_KEYS, keys))
        if values
    ]
    return (*lines, *([f"{FALLBACK} = true"] if is_fallback_missing else []))


def _identity(url: str) -> tuple[str, ...]:
    """Return what all spellings of one substituter share."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return (url,)
    return (parts.scheme, "loopback" if host in _LOOPBACK else host, str(port), parts.path.rstrip("/"))
