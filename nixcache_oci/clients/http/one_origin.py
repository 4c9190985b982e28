"""Rules for clients with one token for one server: registries and GitHub's API.

Authorization goes only to the origin that it is for, signed URLs are passed on byte for byte, and https never
becomes http.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.fresh import SILENT_SECONDS
from nixcache_oci.clients.http.reply import Timeouts
from nixcache_oci.clients.http.url import KEEPING_METHOD_STATUSES, REDIRECT_STATUSES, parse_url

_BLOB_STALLS: Final = 10  # a blob's head may take as long as Nix waits: 300 s
_DOCUMENT_TRIES: Final = 3  # within the time that the head of anything else may take


@dataclass(frozen=True, slots=True)
class OneOrigin:
    """The rules of one request."""

    # Value of the Authorization header, for the request's own origin.
    authorization: str | None = field(repr=False)
    allows_http: bool  # whether plain http is allowed at all
    # Called with the origin that the request goes to next, and whether it must be public.
    arrive: Callable[[URL, bool], Awaitable[None]] | None = None

    async def enter(self, url: URL, *, is_elsewhere: bool, is_guarded: bool) -> str | None:
        """Return the Authorization for a URL, as ``Rules`` says; HttpError where only https is allowed."""
        if url.scheme != "https" and not (self.allows_http and url.scheme == "http"):
            raise HttpError.final(f"refused to go to {url.origin()}: only https is used with this registry")
        if self.arrive is not None:
            await self.arrive(url.origin(), is_guarded)
        return None if is_elsewhere else self.authorization

    def follow(self, method: str, status: int, url: URL, location: str) -> URL | None:
        """Return where an answer redirects to, as ``Rules`` says; HttpError from https to http."""
        if not is_redirect(method, status):
            return None
        target = join(url, location)
        if target.scheme == "http" and url.scheme == "https":
            raise HttpError.final(
                f"refused the redirect from {url.origin()} to {target.origin()}: it is not https"
            )
        return target


def is_redirect(method: str, status: int) -> bool:
    """Tell whether an answer redirects the same request; redirects that would turn it into a GET do not."""
    return status in (REDIRECT_STATUSES if method in {"GET", "HEAD"} else KEEPING_METHOD_STATUSES)


def join(url: URL, location: str) -> URL:
    """Resolve a Location against a URL, byte for byte: ``%2B`` must not become ``+``.

    Raises HttpError if it is not an http or https URL, or holds credentials.
    """
    try:
        target = url.join(parse_url(location, encoded=True))
        if location and target.scheme in {"http", "https"} and target.host and target.raw_user is None:
            target.origin()  # raises for a bad port
            return target
    except ValueError:
        pass
    raise HttpError.final("the address that the answer refers to is not a plain http or https URL")


def document_timeouts(stall_seconds: float) -> Timeouts:
    """Make the timeouts for small documents: they are retried within the time that a head may take."""
    again = max(SILENT_SECONDS, stall_seconds / _DOCUMENT_TRIES)
    return Timeouts(stall_seconds, stall_seconds, stall_seconds, again)


def blob_timeouts(stall_seconds: float) -> Timeouts:
    """Make the timeouts for a blob's bytes, which storage may have to fetch first."""
    head = stall_seconds * _BLOB_STALLS
    return Timeouts(head, head, stall_seconds, max(SILENT_SECONDS, stall_seconds))
