"""Parsers from the text of one setting to its value; the text of an unset one without a default is empty.

Each raises FormatError, or UsageError for an upstream, that says what is expected.
"""

import ipaddress
import logging
import re
from pathlib import Path
from typing import Final

from nixcache_oci.cache.segment import MAX_LAYERS
from nixcache_oci.clients.local_store.environment import find_refused
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.signature import PublicKey, SecretKey, strip_key
from nixcache_oci.oci.reference import RegistryReference, is_repository
from nixcache_oci.proxy.config import MIN_PACK_MEMORY_BYTES, UpstreamNars
from nixcache_oci.proxy.prefix import RepositoryPattern
from nixcache_oci.proxy.writers.patterns import SUBJECT_SEPARATORS, Pattern
from nixcache_oci.settings.values import shown

MAX_PORT: Final = 65535
MIN_INDEX_TTL_SECONDS: Final = 1
MIN_LAYERS: Final = 2
PATH_SEPARATOR: Final = ":"
SUBJECT_SEPARATOR: Final = ";"
"""RFC 2253 escapes it within a subject."""

LAYOUT_SCHEME: Final = "oci:"

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

# int() and float() accept more than a person means: "1_000", other scripts' digits, "nan".
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")
_SIZE = re.compile(r"(?P<number>[0-9]{1,15})(?P<unit>[kKMGT]?)")
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_MIB: Final = 1024 * 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")
# RFC 1123 has no underscores in host names, but private networks use them.
_HOST_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_HOST_LABEL}(?:\.{_HOST_LABEL})*")
# GitHub's character set; other registries may want more or fewer parts than its two.
_REPO_PART = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_REPO = re.compile(rf"(?P<path>{_REPO_PART}(?:/{_REPO_PART})*)/?")
_GITHUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?github\.com/|git@github\.com:|ssh://git@github\.com/", re.IGNORECASE
)
_GIT_SUFFIX = re.compile(r"(?<=[^/])\.git\Z")
_GITHUB_PARTS: Final = 2
# The store's folder goes into nix-cache-info, so it must not be able to forge a line.
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_STORE_DIR = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9+._?=-]+)+")


def parse_yes_or_no(text: str) -> bool:
    """Take yes or no, or 1 or 0."""
    try:
        return {"yes": True, "1": True, "no": False, "0": False}[text]
    except KeyError:
        raise FormatError("expected yes or no") from None


def parse_pass_env(text: str) -> tuple[str, ...]:
    """Read names of environment variables, separated by spaces, without this program's own secrets."""
    names = tuple(dict.fromkeys(text.split()))
    if (refused := find_refused(names)) is not None:
        raise FormatError(f"{refused} is this program's own, and builds could read it; leave it out")
    if not all(map(_VARIABLE.fullmatch, names)):
        raise FormatError("expected names of environment variables, separated by spaces")
    return names


def parse_repo(text: str) -> str | None:
    """Read ``owner/name``, with any number of parts, or an address at github.com; returned in lower case."""
    if not text:
        return None
    if " " in text:
        raise FormatError("expected owner/name, such as octocat/my-cache; only the proxy takes several")
    address = _GITHUB_ADDRESS.match(text)
    match = _REPO.fullmatch(text, address.end() if address else 0)
    if match is None or (address and match["path"].count("/") != _GITHUB_PARTS - 1):
        raise FormatError("expected owner/name, such as octocat/my-cache")
    return _GIT_SUFFIX.sub("", match["path"].lower())


def parse_repos(text: str) -> tuple[str, ...]:
    """Read repositories as ``parse_repo`` does, separated by spaces, each once."""
    return tuple(dict.fromkeys(repo for word in text.split() if (repo := parse_repo(word)) is not None))


def parse_registry(text: str) -> str | Path:
    """Read a registry's ``[scheme://]host[:port]``, or the ``oci:/path`` of an OCI layout."""
    if text.startswith(LAYOUT_SCHEME):
        path = parse_path(text.removeprefix(LAYOUT_SCHEME))
        if path is None:
            raise FormatError(f"expected the path of a folder behind {LAYOUT_SCHEME}")
        return path
    if "@" in text:
        raise FormatError(f"expected host[:port]; {shown(text)} carries a user or password")
    RegistryReference.of(text, "owner/name", "image")
    return text


def parse_image(text: str) -> str:
    """Read the last part of a repository's name, in lower case; ``-`` stands for none."""
    if text == "-":
        return ""
    if not is_repository(text.lower()):
        raise FormatError(
            "expected letters and digits, separated by dots, underscores or dashes, or - for none"
        )
    return text.lower()


def parse_port(text: str) -> int:
    """Read a TCP port; 0 picks a free one."""
    return _parse_whole(text, f"a port number from 0 to {MAX_PORT}", most=MAX_PORT)


def parse_listen(text: str) -> str:
    """Read a host name or an IP address, with or without brackets."""
    address = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not _is_address(address) and not _is_host(text):
        raise FormatError("expected an IP address or a host name, without a port")
    return address


def parse_upstreams(text: str) -> tuple[str, ...]:
    """Read base URLs of binary caches, separated by spaces; two spellings of one cache count once."""
    urls: dict[str, str] = {}
    for url in text.split():
        urls.setdefault(str(parse_upstream(url)), url)
    return tuple(urls.values())


def parse_index_ttl(text: str) -> float:
    """Read the seconds between two refreshes of the index."""
    if not _SECONDS.fullmatch(text) or float(text) < MIN_INDEX_TTL_SECONDS:
        raise FormatError(f"expected a number of seconds, at least {MIN_INDEX_TTL_SECONDS}")
    return float(text)


def parse_upload_quiet(text: str) -> float:
    """Read the seconds without an upload before a batch is published."""
    if not _SECONDS.fullmatch(text):
        raise FormatError("expected a number of seconds")
    return float(text)


def parse_subjects(text: str) -> tuple[Pattern, ...]:
    """Read patterns of certificates' subjects, separated by semicolons."""
    subjects = (subject.strip() for subject in text.split(SUBJECT_SEPARATOR))
    return tuple(Pattern.parse(subject, SUBJECT_SEPARATORS) for subject in subjects if subject)


def parse_header_name(text: str) -> str | None:
    """Read the name of a header."""
    if text and not _HEADER_NAME.fullmatch(text):
        raise FormatError("expected the name of a header, such as X-Client-Subject")
    return text or None


def parse_upload_space(text: str) -> int:
    """Read a number of bytes, with or without a unit."""
    size = parse_max_blob_bytes(text)
    if size is None:
        raise FormatError("expected a number of bytes")
    return size


def parse_priority(text: str) -> int:
    """Read a substituter's priority; Nix treats a cache with anything but a number as broken."""
    return _parse_whole(text, "a whole number, 0 or more")


def parse_store_dir(text: str) -> str:
    """Read the folder of a Nix store."""
    if not _STORE_DIR.fullmatch(text):
        raise FormatError("expected an absolute path without a trailing slash, such as /nix/store")
    return text


def parse_upstream_nars(text: str) -> UpstreamNars:
    """Read whether upstream NARs pass through the proxy."""
    match text:
        case "stream" | "direct":
            return text
    raise FormatError("expected stream or direct")


def parse_hosts(text: str) -> frozenset[str]:
    """Read names that a Host header may carry, separated by spaces or commas; the result is in lower case."""
    names = re.split(r"[\s,]+", text)
    for name in filter(None, names):
        if not _is_host(name):
            raise FormatError(
                f"expected host names without port, separated by spaces; {shown(name)} is not one"
            )
    return frozenset(name.lower() for name in names if name)


def parse_patterns(text: str) -> tuple[RepositoryPattern, ...]:
    """Read patterns of ``host/repository``, where ``*`` stands for anything, separated by spaces."""
    return tuple(map(RepositoryPattern.parse, text.split()))


def parse_public_keys(text: str) -> tuple[PublicKey, ...]:
    """Read ``name:base64`` keys, separated by spaces; two keys of one name would be ambiguous."""
    keys: dict[str, PublicKey] = {}
    for word in strip_key(text).split():
        name = word.partition(":")[0] if ":" in word else ""
        try:
            key = PublicKey.parse(strip_key(word))
        except FormatError as error:
            # Without the parser's own text: this may be a secret key, put here by mistake.
            raise FormatError(
                "expected public keys as name:base64 of 32 bytes, separated by spaces; "
                f"{shown(name) if name else 'a word without a colon'} is not one"
            ) from error
        if name in keys:
            raise FormatError(f"expected a different name for each key; {shown(name)} appears twice")
        keys[name] = key
    return tuple(keys.values())


def parse_log_level(text: str) -> int:
    """Read the name of a level into a number of the logging module."""
    if text.lower() not in LOG_LEVELS:
        raise FormatError(f"expected one of {', '.join(LOG_LEVELS)}")
    return logging.getLevelNamesMapping()[text.upper()]


def parse_path(text: str) -> Path | None:
    """Read the path of a file or folder; a relative path starts at the current folder."""
    return Path(text).absolute() if text else None


def parse_paths(text: str) -> tuple[Path, ...]:
    """Read paths of files, separated by colons as in PATH."""
    return tuple(Path(path).absolute() for path in text.split(PATH_SEPARATOR) if path)


def parse_secret_key(text: str) -> SecretKey | None:
    """Read a secret key; no error repeats it."""
    return SecretKey.parse(text) if strip_key(text) else None


def parse_max_layers(text: str) -> int | None:
    """Read how many layers a manifest may have: the table and at least one blob; empty means the usual."""
    if not text:
        return None
    expected = f"a number from {MIN_LAYERS} to {MAX_LAYERS}"
    return _parse_whole(text, expected, least=MIN_LAYERS, most=MAX_LAYERS)


def parse_max_blob_bytes(text: str) -> int | None:
    """Read a number of bytes, with or without a unit; an empty text means the registry's usual limit."""
    if not text:
        return None
    match = _SIZE.fullmatch(text)
    if match is None or int(match["number"]) == 0:
        raise FormatError("expected a number of bytes, such as 10000000000, 10G or 500M")
    return int(match["number"]) * _UNITS[match["unit"].upper()]


def parse_pack_memory(text: str) -> int:
    """Read how many MiB packs may take in memory, into bytes."""
    least = MIN_PACK_MEMORY_BYTES // _MIB
    return _parse_whole(text, f"a number of MiB, at least {least}", least=least) * _MIB


def _parse_whole(text: str, expected: str, *, least: int = 0, most: int | None = None) -> int:
    if not _WHOLE_NUMBER.fullmatch(text) or int(text) < least or (most is not None and int(text) > most):
        raise FormatError(f"expected {expected}")
    return int(text)


def _is_host(text: str) -> bool:
    # Digits and dots alone are a failed attempt at an IPv4 address.
    return _HOST.fullmatch(text) is not None and not re.fullmatch(r"[0-9.]+", text)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
