"""Where an answer's Location leads.

Sources: RFC 9110, sections 10.2.2 and 15.4; RFC 3986 section 5.
"""

from yarl import URL

from nixcache_oci.clients.http.errors import Failure, TroubleError
from nixcache_oci.clients.http.url import parse_url

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPING_METHOD = frozenset({307, 308})


def is_redirect(method: str, status: int) -> bool:
    """Tell whether an answer sends the same request elsewhere; those that would turn it into a GET do not."""
    return status in (_REDIRECTS if method in {"GET", "HEAD"} else _KEEPING_METHOD)


def join(url: URL, location: str) -> URL:
    """Read a Location, relative to what was asked; byte for byte (``%2B`` must not become ``+``).

    Raises:
        TroubleError: it is not a URL of http or https, or holds credentials.
    """
    try:
        target = url.join(parse_url(location, encoded=True))
        if location and target.scheme in {"http", "https"} and target.host and target.raw_user is None:
            target.origin()  # finds what is wrong with the port only now
            return target
    except ValueError:
        pass
    reason = "the address that the answer refers to is not a plain http or https URL"
    raise TroubleError(Failure(None), reason, is_final=True)
