"""Which paths below an upstream clients may ask for: those that a narinfo of that upstream named. No I/O.

The proxy may hold a password of the upstream, and any client, a web page among them, can ask it for any URL.
So the URL that a narinfo is rewritten to carries a message authentication code (MAC) that only proxies with
the same secret can make: ``upstream/<key>/mac-<32 hex digits>/<path>``. The MAC covers the key and not the
list of upstreams, so that it holds however that list is changed.

Nix remembers a narinfo and its URL for 30 days. URLs from before there was a MAC, or of a secret that is
lost, are still served where they cannot be anything but a NAR: an upstream that has a password is only asked
for names that are made of a hash, which nobody guesses; any other one for whatever is called a NAR.
"""

import hashlib
import hmac
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.base32 import LETTER

_DIGITS: Final = 32
_SEGMENT: Final = re.compile(rf"mac-([0-9a-f]{{{_DIGITS}}})")

_SUFFIX: Final = r"\.nar(?:\.[A-Za-z0-9]{1,8})?"
# NarHash, FileHash or hash part, and the last two after one another: what binary caches name NARs by.
_NAMED_BY_HASH: Final = re.compile(
    rf"nar/(?:[0-9a-f]{{64}}|(?:{LETTER}{{32}}-)?{LETTER}{{52}}|{LETTER}{{32}}){_SUFFIX}"
)
_CALLED_NAR: Final = re.compile(rf".*[^/]{_SUFFIX}")
_HARMLESS_QUERY: Final = re.compile(rf"(?:hash={LETTER}{{32}})?")


def is_named_by_hash(path: str, query: str) -> bool:
    """Tell whether a path below an upstream is one that nobody guesses, and that names its content."""
    return bool(_NAMED_BY_HASH.fullmatch(path) and _HARMLESS_QUERY.fullmatch(query))


class UrlSigner:
    """Makes and checks the MACs of URLs.

    Args:
        secret: at least 32 bytes that no client knows.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, key: str, path: str, query: str) -> str:
        """Give the path that clients ask ``upstream/<key>/`` for.

        Args:
            key: the upstream's key.
            path: below the upstream's base URL, as on the wire, without a leading slash.
            query: as on the wire, without the question mark.
        """
        return f"mac-{self._mac(key, path, query)}/{path}"

    def named_path(self, key: str, path: str, query: str, *, has_password: bool) -> str:
        """Tell which path of the upstream a client asks for.

        Args:
            key: the upstream's key.
            path: what the client sent behind ``upstream/<key>/``, as on the wire.
            query: as on the wire, without the question mark.
            has_password: whether the upstream is asked with credentials.

        Raises:
            FormatError: no narinfo named it.
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
        # Decoded, because clients may spell a path in another way (RFC 3986, section 6.2.2). What would be
        # another path then, as with an encoded slash, is refused where URLs are made.
        said = b"\0".join((key.encode(), unquote_to_bytes(path), query.encode()))
        return hmac.digest(self._secret, said, hashlib.sha256).hex()[:_DIGITS]
