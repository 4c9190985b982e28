"""The rules of who has one token for one server, as at a registry or GitHub's API.

Authorization goes to the origin that it was meant for and nowhere else, a signed URL is passed on byte for
byte, and https never becomes http.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.fresh import SILENT_SECONDS
from nixcache_oci.clients.http.reply import Limits
from nixcache_oci.clients.http.url import KEEPING_METHOD_STATUSES, REDIRECT_STATUSES, parse_url

_BLOB_STALLS: Final = 10  # a blob's head may take as long as Nix waits: 300 s
_DOCUMENT_TRIES: Final = 3  # in the time that the head of anything else may take


@dataclass(frozen=True, slots=True)
class OneOrigin:
    """The rules of one request.

    Attributes:
        authorization: value of the Authorization header, for the origin that the request was made for.
        allows_http: whether plain http may be spoken at all.
        arrive: is told where the request goes next, and whether that has to be at a public address.
    """

    authorization: str | None = field(repr=False)
    allows_http: bool
    arrive: Callable[[URL, bool], Awaitable[None]] | None = None

    async def enter(self, url: URL, *, is_elsewhere: bool, is_guarded: bool) -> str | None:
        """Give the Authorization for a URL; see ``Rules``."""
        if url.scheme != "https" and not (self.allows_http and url.scheme == "http"):
            raise HttpError.final(f"refused to go to {url.origin()}: only https is used with this registry")
        if self.arrive is not None:
            await self.arrive(url.origin(), is_guarded)
        return None if is_elsewhere else self.authorization

    def follow(self, method: str, status: int, url: URL, location: str) -> URL | None:
        """Tell where an answer leads; see ``Rules``."""
        if not is_redirect(method, status):
            return None
        target = join(url, location)
        if target.scheme == "http" and url.scheme == "https":
            raise HttpError.final(
                f"refused the redirect from {url.origin()} to {target.origin()}: it is not https"
            )
        return target


def is_redirect(method: str, status: int) -> bool:
    """Tell whether an answer sends the same request elsewhere; those that would turn it into a GET do not."""
    return status in (REDIRECT_STATUSES if method in {"GET", "HEAD"} else KEEPING_METHOD_STATUSES)


def join(url: URL, location: str) -> URL:
    """Read a Location, relative to what was asked; byte for byte (``%2B`` must not become ``+``).

    Raises:
        HttpError: it is not a URL of http or https, or holds credentials.
    """
    try:
        target = url.join(parse_url(location, encoded=True))
        if location and target.scheme in {"http", "https"} and target.host and target.raw_user is None:
            target.origin()  # finds what is wrong with the port only now
            return target
    except ValueError:
        pass
    raise HttpError.final("the address that the answer refers to is not a plain http or https URL")


def limit_document(stall_seconds: float) -> Limits:
    """Make the limits for what is small: it is tried anew within the time that its head may take."""
    again = max(SILENT_SECONDS, stall_seconds / _DOCUMENT_TRIES)
    return Limits(stall_seconds, stall_seconds, stall_seconds, again)


def limit_blob(stall_seconds: float) -> Limits:
    """Make the limits for a blob's bytes, which storage may have to fetch first."""
    head = stall_seconds * _BLOB_STALLS
    return Limits(head, head, stall_seconds, max(SILENT_SECONDS, stall_seconds))
