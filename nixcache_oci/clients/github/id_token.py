"""The JSON Web Token by which a job at GitHub says who it is.

Source: GitHub's documentation, "OpenID Connect reference", "Methods for requesting the OIDC token".
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from nixcache_oci.clients.http.client import HttpClient, HttpRequest
from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.one_origin import OneOrigin, document_timeouts
from nixcache_oci.clients.http.retry import RetryPolicy, Tries
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.clients.http.url import parse_url
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.oci.document import get_text, parse_document
from nixcache_oci.oci.reference import is_loopback

_URL: Final = "ACTIONS_ID_TOKEN_REQUEST_URL"
_TOKEN: Final = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105  the name of a variable
_SECONDS: Final = 10.0
_MOST_BYTES: Final = 64 * 1024


async def fetch_id_token(environment: Mapping[str, str], audience: str) -> str:
    """Ask GitHub for a token for an audience.

    Raises UsageError if this is no job that may have one, and Error if GitHub gives none.
    """
    address, token = environment.get(_URL, ""), environment.get(_TOKEN, "")
    if not address or not token:
        raise UsageError(
            f"--oidc: {_URL} is not set: expected a job at GitHub with the permission id-token: write"
        )
    try:
        separator = "&" if "?" in address else "?"
        url = parse_url(f"{address}{separator}audience={quote(audience, safe='')}", encoded=True)
        is_here = is_loopback(url.raw_authority)
        url.origin()
    except ValueError:
        raise UsageError(f"{_URL}: is no URL") from None
    rules = OneOrigin(f"bearer {token}", allows_http=is_here)
    request = HttpRequest("GET", url, {"Accept": "application/json"}, follows=False)
    http = HttpClient(document_timeouts(_SECONDS))
    try:
        tries = Tries(RetryPolicy())
        while True:
            try:
                return await _ask(http, request, rules)
            except HttpError as error:
                if await tries.wait(error) is not None:
                    raise Error(
                        f"GitHub gives no token for the audience {audience}: {error.reason}"
                    ) from None
    except FormatError as error:
        raise Error(f"GitHub gives no token for the audience {audience}: {error}") from None
    finally:
        await http.close()


async def _ask(http: HttpClient, request: HttpRequest, rules: OneOrigin) -> str:
    with translated():
        reply = await http.send(request, rules)
        answer = await reply.take(_MOST_BYTES + 1)
    if answer.status != HTTPStatus.OK:
        raise answer.error()
    return get_text(parse_document(answer.body, "the answer", _MOST_BYTES), "value")
