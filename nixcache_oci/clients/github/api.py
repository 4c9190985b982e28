"""GitHub's REST API: which one belongs to a registry, and requests to it, with retries.

The registry's own name decides which API it is, so that its token never goes to another server that the
environment names.

Sources: GitHub's documentation, "Rate limits for the REST API", "Best practices for using the REST API",
"Working with the Container registry" and "Network details for GHE.com".
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from yarl import URL

from nixcache_oci.clients.credentials import (
    TOKEN_FILE_VARIABLE,
    Credentials,
    CredentialSource,
    bracketed_host,
    find_enterprise,
    is_github,
)
from nixcache_oci.clients.http.client import HttpClient, HttpRequest
from nixcache_oci.clients.http.errors import Failure, HttpError
from nixcache_oci.clients.http.one_origin import OneOrigin, document_timeouts
from nixcache_oci.clients.http.reply import BufferedReply
from nixcache_oci.clients.http.retry import GiveUp, RetryPolicy, Tries
from nixcache_oci.clients.http.url import is_same_origin, parse_url
from nixcache_oci.errors import RegistryError, UsageError
from nixcache_oci.oci.reference import is_loopback

API_VARIABLE: Final = "GITHUB_API_URL"


def find_api_url(host: str, environment: Mapping[str, str]) -> str | None:
    """Return the REST API's URL, without a trailing slash; None if the registry is not GitHub's.

    ``GITHUB_API_URL`` counts only if it and the registry are both on this machine, as in tests: every
    workflow has it, including those that publish elsewhere. Raises UsageError if it would count, and is no
    URL.
    """
    if is_github(host):
        return f"https://api.{find_enterprise(host) or 'github.com'}"
    text = environment.get(API_VARIABLE, "").rstrip("/")
    if not text or not is_loopback(host):
        return None
    try:
        url = parse_url(text)
        url.origin()  # raises for a bad scheme or port
    except ValueError as error:
        raise UsageError(f"{API_VARIABLE}: {text[:80]!r} is not the address of an API: {error}") from error
    return text if is_loopback(bracketed_host(url)) and url.scheme in {"http", "https"} else None


_HEADERS: Final = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
_MOST_BYTES: Final = 8 * 1024 * 1024  # of an answer; a hundred versions with a few tags take 100 KB
_LIMITING: Final = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})


class GithubApi:
    """Sends requests with a GitHub token, which goes to ``base_url`` only; the first opens connections."""

    def __init__(
        self,
        base_url: str,
        credentials: CredentialSource | None,
        *,
        policy: RetryPolicy,
        stall_seconds: float,
    ) -> None:
        self._base = URL(base_url, encoded=True)
        self._credentials = credentials
        self._policy = policy
        self._http = HttpClient(document_timeouts(stall_seconds))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    def url(self, path: str) -> URL:
        """Return the URL of a path, which is already encoded and begins with a slash."""
        return URL(f"{self._base}{path}", encoded=True)

    async def ask(self, operation: str, method: str, url: URL, accepts: frozenset[int]) -> BufferedReply:
        """Send a request, with retries.

        ``operation`` is for people, and begins every error's text; statuses not in ``accepts`` are failures.

        Raises:
            RegistryError: no try succeeded, there is no token, or the URL is not this API's.
        """
        credentials = await self._credentials.find() if self._credentials is not None else None
        if credentials is None:
            raise RegistryError(
                f"{operation}: GitHub's API needs a token: set GITHUB_TOKEN or {TOKEN_FILE_VARIABLE}",
                status=HTTPStatus.UNAUTHORIZED,
            )
        if not is_same_origin(url, self._base):  # from a page's link to the next
            raise RegistryError(f"{operation}: GitHub's API redirects to another server, {url.origin()}")
        request = HttpRequest(method, url, _HEADERS, follows=False)
        tries = Tries(self._policy)
        while True:
            try:
                return await self._ask_once(request, credentials, accepts)
            except HttpError as cause:
                end = await tries.wait(cause)
                if end is not None:
                    # The reason is in its text.
                    raise _explain(operation, cause, end, credentials.source) from None

    async def _ask_once(
        self, request: HttpRequest, credentials: Credentials, accepts: frozenset[int]
    ) -> BufferedReply:
        rules = OneOrigin(f"Bearer {credentials.password}", allows_http=self._base.scheme == "http")
        reply = await self._http.send(request, rules)
        answer = await reply.take(_MOST_BYTES + 1)
        if answer.status not in accepts:
            cause = answer.error()
            cause.failure = _read_limit(cause.failure, answer.headers, datetime.now(UTC))
            raise cause
        if len(answer.body) > _MOST_BYTES:
            raise HttpError.final(f"it answered with over {_MOST_BYTES} bytes")
        return answer


def _read_limit(failure: Failure, headers: Mapping[str, str], now: datetime) -> Failure:
    """Turn the headers of the primary rate limit, which are GitHub's own, into status 429 and Retry-After."""
    if failure.status not in _LIMITING or headers.get("x-ratelimit-remaining") != "0":
        return failure
    wait = headers.get("Retry-After", "")
    reset = headers.get("x-ratelimit-reset", "")
    if not wait and reset.isascii() and reset.isdigit():
        wait = str(max(1, int(reset[:15]) - int(now.timestamp())))
    return replace(failure, status=HTTPStatus.TOO_MANY_REQUESTS, headers={"retry-after": wait})


def _explain(operation: str, cause: HttpError, end: GiveUp, source: str) -> RegistryError:
    status = cause.failure.status
    hints = [f"{operation}: GitHub's API: {cause.reason}"]
    if end.retry_after is not None:
        hints.append(f"it asks to wait {end.retry_after:.0f} s")
    elif status == HTTPStatus.UNAUTHORIZED:
        hints.append(f"asked with {source}, which is wrong or has expired: renew it")
    elif status == HTTPStatus.FORBIDDEN:
        hints.append(needed_rights(source))
    return RegistryError(
        "; ".join(hints), status=status, is_temporary=end.is_temporary, retry_after=end.retry_after
    )


def needed_rights(source: str) -> str:
    """Say which rights a token needs for listing and deleting versions, and where they are granted."""
    return (
        f"asked with {source}, which needs admin rights on the package: in a workflow permissions: packages:"
        " write, and the role Admin at Package settings, Manage Actions access; in a classic personal token"
        " read:packages and delete:packages"
    )
