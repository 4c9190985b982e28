"""URLs of upstream binary caches, and of the NARs in them. No I/O.

An upstream's NAR is served here as ``upstream/<key>/mac-…/<path>``. The path comes from a stranger's narinfo,
or from any client, so it may only lead to something below the upstream's base URL.

The proxy may hold the upstream's password, and any client, such as a web page, can ask it for any URL. So the
URL carries a message authentication code (MAC) that only proxies with the same secret can make: ``mac-<32 hex
digits>``. It covers the key and not the list of upstreams, so it stays valid when that list changes. Nix
remembers a narinfo and its URL for 30 days. URLs from before there was a MAC, or of a lost secret, are still
served if they can only be a NAR: at an upstream with a password, a name made of a hash, which nobody guesses;
at any other, a name with a NAR's suffix.

The header Via ends loops: each process has its own name, and adds it to its requests to upstreams. A process
that finds its own name in a request has received its own question (RFC 9110, section 7.6.3).
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

from yarl import URL

from nixcache_oci.clients.http.url import basic_authorization, parse_url, show_url
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.base32 import CHARACTER
from nixcache_oci.nix.narinfo import NarInfo

_DIGITS: Final = 32
_SEGMENT: Final = re.compile(rf"mac-([0-9a-f]{{{_DIGITS}}})")

_SUFFIX: Final = r"\.nar(?:\.[A-Za-z0-9]{1,8})?"
# Binary caches name NARs by NarHash, FileHash, hash part, or hash part and FileHash.
_NAMED_BY_HASH: Final = re.compile(
    rf"nar/(?:[0-9a-f]{{64}}|(?:{CHARACTER}{{32}}-)?{CHARACTER}{{52}}|{CHARACTER}{{32}}){_SUFFIX}"
)
_CALLED_NAR: Final = re.compile(rf".*[^/]{_SUFFIX}")
_HARMLESS_QUERY: Final = re.compile(rf"(?:hash={CHARACTER}{{32}})?")


def is_named_by_hash(path: str, query: str) -> bool:
    """Tell whether a path below an upstream names its content, by a hash that nobody guesses."""
    return bool(_NAMED_BY_HASH.fullmatch(path) and _HARMLESS_QUERY.fullmatch(query))


class UrlSigner:
    """Makes and checks the MACs of URLs, with at least 32 bytes that no client knows."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, key: str, path: str, query: str) -> str:
        """Return the path below ``upstream/<key>/`` for clients.

        ``path`` is below the upstream's base URL, without a leading slash; both it and the query are as on
        the wire.
        """
        return f"mac-{self._mac(key, path, query)}/{path}"

    def named_path(self, key: str, path: str, query: str, *, has_password: bool) -> str:
        """Return which path of the upstream a client asks for; FormatError if no narinfo named it.

        ``path`` is what follows ``upstream/<key>/``; both it and the query are as on the wire.
        """
        first, _, rest = path.partition("/")
        if match := _SEGMENT.fullmatch(first):
            if hmac.compare_digest(match[1], self._mac(key, rest, query)):
                return rest
            path = rest
        shape = _NAMED_BY_HASH if has_password else _CALLED_NAR
        if shape.fullmatch(path) and _HARMLESS_QUERY.fullmatch(query):
            return path
        raise FormatError(f"NAR URL: {path[:80]!r} is not one that a narinfo named")

    def _mac(self, key: str, path: str, query: str) -> str:
        # Decoded, because clients may spell a path differently (RFC 3986, section 6.2.2). Paths that decoding
        # would change, as with an encoded slash, are refused where URLs are made.
        said = b"\0".join((key.encode(), unquote_to_bytes(path), query.encode()))
        return hmac.digest(self._secret, said, hashlib.sha256).hex()[:_DIGITS]


VIA: Final = "Via"
MOST_HOPS: Final = 8
"""Proxies of this program that a request may have come through."""

Chain: TypeAlias = tuple[str, ...]
"""The names of such proxies, in order."""

_NAME = re.compile(r"(?:^|[\s,])(nixcache-oci-[0-9a-f]{16})(?=$|[\s,])")


def make_name() -> str:
    """Make a random name for this process."""
    return f"nixcache-oci-{secrets.token_hex(8)}"


def parse_via(values: Iterable[str]) -> Chain:
    """Read our proxies' names from all Via headers of a request."""
    return tuple(name for value in values for name in _NAME.findall(value))


def render_via(chain: Chain) -> str:
    """Render the header's value."""
    return ", ".join(f"1.1 {name}" for name in chain)


def is_loop(chain: Chain, own_name: str) -> bool:
    """Tell whether a request came through here before, or through too many proxies."""
    return own_name in chain or len(chain) >= MOST_HOPS


_KEY_DIGITS = 16
_MOST_SHOWN_CHARACTERS = 200
_MOST_DECODINGS = 4  # nobody encodes more often in good faith
# RFC 3986, "pchar" and "query"
_PCHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_PATH = re.compile(rf"{_PCHAR}+(?:/{_PCHAR}+)*")
_QUERY = re.compile(rf"(?:{_PCHAR}|[/?])*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_WEB_URL = re.compile(r"https?://", re.IGNORECASE)
_HOST = re.compile(r"[0-9A-Za-z._~:%-]+")
_REFUSED_IN_BASE = re.compile(r"[\x00-\x20\x7f\\?#]")


class NarMode(StrEnum):
    """Whether clients get an upstream's NARs through the proxy, or from the upstream itself."""

    STREAM = "stream"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Upstream:
    """One HTTP binary cache; made by ``parse_upstream``."""

    base: URL  # URL without credentials; its path ends in a slash
    # Value of the Authorization header, or empty; never shown.
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        return str(self.base)

    @property
    def key(self) -> str:
        """Name of this upstream in our own URLs: hex digits of the base URL's sha256.

        Credentials are excluded: clients see it, and could guess a weak password from it.
        """
        return hashlib.sha256(str(self.base).encode()).hexdigest()[:_KEY_DIGITS]

    def at(self, path: str, query: str = "") -> URL:
        """Return the URL of something below the base; both arguments are already encoded."""
        return URL(f"{self.base}{path}?{query}" if query else f"{self.base}{path}", encoded=True)


def parse_upstream(text: str) -> Upstream:
    """Read ``http[s]://[user:password@]host[:port][/path]``; UsageError, without secrets, for all else."""
    shown = repr(f"…@{text.rpartition('@')[2]}" if "@" in text else text)[:_MOST_SHOWN_CHARACTERS]
    if _REFUSED_IN_BASE.search(text):
        raise UsageError(f"upstream {shown}: a query, fragment, space or backslash does not belong there")
    try:
        url = parse_url(text)
        if url.scheme in {"http", "https"} and url.host:
            base = URL(f"{url.origin()}{url.raw_path.rstrip('/')}/", encoded=True)
            base.origin()  # raises for a bad host
            if _HOST.fullmatch(base.raw_host or ""):
                has_user = url.user is not None or url.password is not None
                return Upstream(
                    base, basic_authorization(url.user or "", url.password or "") if has_user else ""
                )
    except ValueError:
        # without its cause, which may quote the credentials
        raise UsageError(f"upstream {shown}: not a URL; write it like https://cache.example.org") from None
    raise UsageError(f"upstream {shown}: not http:// or https:// and a host name")


def origin(url: URL) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port; yarl's own origins differ if only one spells out the default port."""
    return url.scheme, url.raw_host, url.port


def nar_url(upstream: Upstream, path: str, query: str = "") -> URL:
    """Return the URL of a NAR, whose path and query are as on the wire (percent-encoded), below the base URL.

    Raises FormatError if some server may read the path as one that leaves the base: decoded once or more, it
    has an empty, ``.`` or ``..`` segment, another slash, a backslash or a control character.
    """
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise FormatError(f"NAR URL: {path[:200]!r} is not a plain relative path")
    decoded = path.encode()
    for _ in range(_MOST_DECODINGS):
        before, decoded = decoded, unquote_to_bytes(decoded)
        if decoded == before:
            break
    else:
        raise FormatError(f"NAR URL: {path[:200]!r} is encoded too many times")
    if decoded.count(b"/") != path.count("/") or re.search(rb"[\x00-\x1f\x7f\\]", decoded):
        raise FormatError(f"NAR URL: {path[:200]!r} hides a slash, backslash or control character")
    # Java servers cut a segment at its semicolon.
    if any(segment.partition(b";")[0] in {b"", b".", b".."} for segment in decoded.split(b"/")):
        raise FormatError(f"NAR URL: {path[:200]!r} has a segment that is empty, . or ..")
    return upstream.at(path, query)


def rewrite(narinfo: NarInfo, upstream: Upstream, mode: NarMode, signer: UrlSigner) -> NarInfo:
    """Rewrite the URL of an upstream's narinfo, which signatures do not cover, for our clients.

    A URL below the upstream's base becomes ``upstream/<key>/mac-…/<path>``, relative to us, in mode stream,
    and absolute in mode direct. An upstream with credentials is always streamed, because clients have none.
    An absolute URL elsewhere is kept. Raises FormatError for another scheme, or a path that leaves the base.
    """
    relative = below_base(narinfo.url, upstream)
    if relative is None:
        return narinfo
    path, _, query = relative.partition("?")
    absolute = nar_url(upstream, path, query)
    if mode is NarMode.DIRECT and not upstream.authorization:
        return replace(narinfo, url=str(absolute))
    signed = signer.sign(upstream.key, path, query)
    return replace(narinfo, url=f"upstream/{upstream.key}/{signed}{'?' if query else ''}{query}")


def below_base(text: str, upstream: Upstream) -> str | None:
    """Return what of a URL is below the base, None if it is elsewhere; FormatError for a bad URL."""
    if not _SCHEME.match(text):
        return text
    if not _WEB_URL.match(text):
        raise FormatError(f"NAR URL: {show_url(text)} is neither relative nor http or https")
    try:
        url = parse_url(text, encoded=True)
        is_own = origin(url) == origin(upstream.base)
    except ValueError as error:
        raise FormatError(f"NAR URL: {show_url(text)}: not a URL") from error
    if not url.raw_host:
        raise FormatError(f"NAR URL: {show_url(text)} names no host")
    if not is_own or not url.raw_path.startswith(upstream.base.raw_path):
        return None
    path = url.raw_path.removeprefix(upstream.base.raw_path)
    return f"{path}?{url.raw_query_string}" if url.raw_query_string else path
