"""A whole answer of the registry, and what its error documents say.

Source: OCI distribution specification, "Error Codes".
"""

import json
from dataclasses import dataclass
from http import HTTPStatus

from multidict import CIMultiDictProxy

from nixcache_oci.clients.http.errors import Failure, TroubleError
from nixcache_oci.clients.http.url import parse_url

ERROR_LIMIT = 64 * 1024  # bytes of an error document that are read
_LONGEST_MESSAGE = 200  # characters
_REDIRECTS = range(300, 400)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its body.

    Attributes:
        status: of HTTP.
        headers: names are compared without case.
        body: at least its beginning.
        is_elsewhere: whether a server gave it that the registry sent us to.
        is_public: whether it came from a public address, so that what it names has to be at one, too.
    """

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    is_elsewhere: bool = False
    is_public: bool = False

    def trouble(
        self,
        *,
        is_expected: bool = False,
        is_verified: bool = False,
        is_heavy: bool = False,
        is_about_token: bool = False,
    ) -> TroubleError:
        """Take this answer as a failure.

        Args:
            is_expected: whether what was asked for is known to exist.
            is_verified: whether what was sent has the digest that it was sent with.
            is_heavy: whether the request carried much.
            is_about_token: whether the token service gave it.
        """
        failure = Failure(
            self.status,
            {"retry-after": self.headers.get("Retry-After", "")},
            self.body,
            is_elsewhere=self.is_elsewhere,
            is_expected=is_expected,
            is_verified=is_verified,
            is_heavy=is_heavy,
        )
        code, message = parse_error(self.body)
        said = " ".join(filter(None, (str(self.status), code or _phrase(self.status))))
        if message and message.upper() != code:
            said += f" ({message})"
        if self.status in _REDIRECTS and (origin := _origin_of(self.headers.get("Location", ""))):
            said += f", to {origin}"
        if is_about_token:
            said = f"no token: {said}"
        elif self.is_elsewhere:
            said = f"the storage behind the registry answered {said}"
        return TroubleError(failure, said, code=code, is_about_token=is_about_token)


def parse_error(body: bytes) -> tuple[str, str]:
    """Read code and message of an error document; both are empty where it is none.

    GitHub tells of its secondary rate limit in a document that has a ``message`` only.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else {}
    # A code counts in a registry's own document only: some of them mean that the cache is empty.
    code, message = (
        (first.get("code"), first.get("message"))
        if isinstance(first, dict) and first
        else (None, document.get("message"))
    )
    return (
        code.upper() if isinstance(code, str) and code.isascii() and code.isidentifier() else "",
        _clean(message) if isinstance(message, str) else "",
    )


def _clean(text: str) -> str:
    """Make a stranger's text fit for one line."""
    line = " ".join(text.split())
    return "".join(character for character in line if character.isprintable())[:_LONGEST_MESSAGE]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _origin_of(location: str) -> str:
    """Show where an address leads, without path and query, which may be signed; empty where it is none."""
    try:
        return str(parse_url(location, encoded=True).origin())
    except ValueError:
        return ""
