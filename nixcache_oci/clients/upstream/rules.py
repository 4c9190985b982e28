"""Rules for requests to upstreams: credentials per origin, and where redirects may lead.

This is also the one place that turns failures into UpstreamError.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from yarl import URL

from nixcache_oci.clients.http.client import HttpClient, HttpRequest
from nixcache_oci.clients.http.errors import HttpError, show
from nixcache_oci.clients.http.fresh import AGAIN_SECONDS
from nixcache_oci.clients.http.reply import Reply, Timeouts
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.clients.http.url import REDIRECT_STATUSES, parse_url, show_url
from nixcache_oci.clients.upstream.address import Upstream, origin
from nixcache_oci.errors import FormatError, UpstreamConnectionError, UpstreamError

NAME_SECONDS: Final = 15.0
"""For a name look-up: the system waits 5 s for a dead first nameserver, twice at worst."""


@dataclass(frozen=True, slots=True)
class UpstreamRules:
    """The rules of one upstream, whose credentials go only to its own origin."""

    upstream: Upstream

    async def enter(self, url: URL, *, is_elsewhere: bool, is_guarded: bool) -> str | None:  # noqa: ARG002
        """Return the Authorization for a URL; see ``Rules``."""
        return (self.upstream.authorization or None) if origin(url) == origin(self.upstream.base) else None

    def follow(self, _method: str, status: int, url: URL, location: str) -> URL | None:
        """Return where an answer redirects to; see ``Rules``."""
        return next_url(url, location) if status in REDIRECT_STATUSES else None


async def ask(
    http: HttpClient,
    upstream: Upstream,
    method: str,
    url: URL,
    limits: Timeouts,
    *,
    headers: Mapping[str, str],
    on_connect: Callable[[], None] = lambda: None,
    most_bytes: int | None = None,
) -> Reply:
    """Send a request without a body to an upstream, and follow redirects, to which the headers go as well.

    ``on_connect`` is called when a server was reached, the upstream's own first; ``most_bytes`` is that of
    ``HttpRequest``. Raises UpstreamError if no answer came, or a redirect was refused.
    """
    with upstream_errors(upstream):
        request = HttpRequest(method, url, headers, most_bytes=most_bytes)
        return await http.send(request, UpstreamRules(upstream), limits=limits, on_connect=on_connect)


def uniform_timeouts(seconds: float) -> Timeouts:
    """Make timeouts that are the same for an answer's head, its first bytes and each stall."""
    return Timeouts(seconds, seconds, seconds, AGAIN_SECONDS)


@contextmanager
def upstream_errors(upstream: Upstream) -> Iterator[None]:
    """Turn all failures of an upstream into UpstreamError, with a text that is fit for one line."""
    try:
        with translated():
            yield
    except HttpError as error:
        raise upstream_error(upstream, error) from error
    except FormatError as error:
        raise UpstreamError(f"upstream {upstream}: {show(str(error))}") from error
    except UpstreamError as error:
        text = show(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error


def upstream_error(upstream: Upstream, error: HttpError) -> UpstreamError:
    """Make the error that callers see."""
    kind = UpstreamConnectionError if error.is_connection else UpstreamError
    return kind(f"upstream {upstream}: {error.reason}")


def next_url(current: URL, location: str) -> URL:
    """Resolve one redirect; credentials in it are dropped.

    Raises UpstreamError if it is no http or https URL, or leads from https to http.
    """
    try:
        # a signature must arrive byte for byte; only what cannot be in a request line is encoded
        is_encoded = location.isascii() and location.isprintable() and " " not in location
        target = current.join(parse_url(location, encoded=is_encoded)).with_fragment(None)
        host = target.host
    except ValueError as error:
        raise UpstreamError(
            f"upstream {current.origin()}: redirect to {show_url(location)}: not a URL"
        ) from error
    if not location or not host or target.scheme not in {"http", "https"}:
        raise UpstreamError(
            f"upstream {current.origin()}: redirect to {show_url(location)}, which is not a web address"
        )
    if current.scheme == "https" and target.scheme == "http":
        raise UpstreamError(f"upstream {current.origin()}: redirect from https to http://{host} refused")
    return target.with_user(None)
