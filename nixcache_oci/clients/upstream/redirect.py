"""Where an upstream's redirect leads. No I/O."""

from typing import Final

from yarl import URL

from nixcache_oci.clients.http.url import parse_url, show_url
from nixcache_oci.errors import UpstreamError

MOST_REDIRECTS: Final = 5
REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})


def next_url(current: URL, location: str) -> URL:
    """Follow one redirect; credentials in it are dropped.

    Raises:
        UpstreamError: it leads nowhere, to another scheme, or from https to http.
    """
    try:
        # a signature in it must arrive as it is; only what cannot stand in a request line is encoded anew
        is_encoded = location.isascii() and location.isprintable() and " " not in location
        target = current.join(parse_url(location, encoded=is_encoded)).with_fragment(None)
        host = target.host
    except ValueError as error:
        raise UpstreamError(
            f"upstream {current.origin()}: redirect to {show_url(location)}: not a URL"
        ) from error
    if not location or not host or target.scheme not in {"http", "https"}:
        raise UpstreamError(
            f"upstream {current.origin()}: redirect to {show_url(location)}, which is no web address"
        )
    if current.scheme == "https" and target.scheme == "http":
        raise UpstreamError(f"upstream {current.origin()}: redirect from https to http://{host} refused")
    return target.with_user(None)
