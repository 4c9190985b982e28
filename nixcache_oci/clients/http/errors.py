"""What goes wrong with one request: libraries raise whatever they like, and answers may hold anything.

Here is the one door at which what libraries raise over a stranger's answer becomes ours; their own texts
may hold signed URLs, and are left behind.

Source of error documents: OCI distribution specification, "Error Codes".
"""

import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

import aiohttp

from nixcache_oci.clients.http.content_coding import CodingError
from nixcache_oci.clients.http.public_address import PrivateAddressError
from nixcache_oci.clients.http.session import HeadError
from nixcache_oci.errors import UsageError

# What an HTTP library, the URL parser, the resolver, TLS and codecs raise over an answer that makes no sense.
FOREIGN_ERRORS: Final = (
    aiohttp.ClientError,
    aiohttp.http_exceptions.HttpProcessingError,
    OSError,  # with TLS and time-outs
    EOFError,
    ValueError,  # with UnicodeError: host names, realms and headers that no codec takes
    LookupError,
    ArithmeticError,
    AssertionError,  # aiohttp's, about URLs that it did not foresee
    RecursionError,
    TypeError,
)

_MOST_CHARACTERS: Final = 600
_LONGEST_MESSAGE: Final = 200  # characters


def show(text: str) -> str:
    """Make a text fit for one line of a log or terminal: control characters shown, and not too long."""
    if len(text) <= _MOST_CHARACTERS and text.isprintable():
        return text
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:_MOST_CHARACTERS]
    )
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"


@dataclass(frozen=True, slots=True)
class Failure:
    """What came instead of success.

    Attributes:
        status: of HTTP, or None where no answer came.
        headers: of the answer; names in lower case.
        body: of the answer, at least its beginning.
        is_elsewhere: whether a server answered that the registry redirected to. What it refuses is mostly an
            expired signature, and the registry hands out a new one.
        is_expected: whether the thing is known to exist, so that 404 only means "not yet".
        is_verified: whether what was sent has the digest that it was sent with.
        is_heavy: whether the request carried too much to be sent again until a rate limit has passed.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_elsewhere: bool = False
    is_expected: bool = False
    is_verified: bool = False
    is_heavy: bool = False


class SlowBodyError(TimeoutError):
    """Too few bytes came for too long."""


class HttpError(Exception):
    """One request had no answer of use. Each client makes an error of its own of it.

    Args:
        failure: what the decision about another try is made from.
        reason: what happened, without secrets and signed URLs; is made fit for one line.
        code: the OCI error code, or an empty string.
        is_final: whether another try cannot help, whatever ``failure`` says.
        is_about_token: whether a token service refused, not the server itself.
        is_connection: whether no connection could be made, or it broke, or nothing came over it in time.
    """

    def __init__(
        self,
        failure: Failure,
        reason: str,
        *,
        code: str = "",
        is_final: bool = False,
        is_about_token: bool = False,
        is_connection: bool = False,
    ) -> None:
        self.reason = show(reason)
        super().__init__(self.reason)
        self.failure = failure
        self.code = code
        self.is_final = is_final
        self.is_about_token = is_about_token
        self.is_connection = is_connection

    @classmethod
    def final(cls, reason: str) -> Self:
        """Make one for what no other try can mend."""
        return cls(Failure(None), reason, is_final=True)


CLOSED_EARLY: Final = "the connection was closed before an answer came"
NOT_HTTP: Final = "the server does not speak HTTP"

# What OpenSSL calls an answer that is no TLS; its versions differ.
_NOT_TLS: Final = frozenset(
    {
        *("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"),
        *("PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"),
    }
)

# The first class that fits tells what happened; their own texts hold URLs, which may be signed.
_REASONS: tuple[tuple[type[Exception], Callable[[Any], str]], ...] = (
    (
        aiohttp.ClientConnectorCertificateError,
        lambda error: (
            f"the certificate of {error.host} is refused: {_tell_certificate(error.certificate_error)}; "
            "a CA of your own goes into the file that NIX_SSL_CERT_FILE names"
        ),
    ),
    (
        aiohttp.ClientConnectorSSLError,
        lambda error: f"no connection to {error.host}:{error.port} over TLS: {_tell_tls(error)}",
    ),
    (
        aiohttp.ClientConnectorError,
        lambda error: f"no connection to {error.host}:{error.port}: {_tell_connecting(error.os_error)}",
    ),
    (aiohttp.ConnectionTimeoutError, lambda _: "no connection in time"),
    (SlowBodyError, lambda error: f"the answer comes too slowly: {error}"),
    (TimeoutError, lambda _: "no answer in time: the connection stalled"),
    (aiohttp.ServerDisconnectedError, lambda _: CLOSED_EARLY),
    (aiohttp.ClientPayloadError, lambda _: "the connection broke before the end of the answer"),
    (aiohttp.ClientHttpProxyError, lambda error: f"the HTTP proxy answered {error.status}"),
    (HeadError, str),
    (CodingError, str),
    (aiohttp.ClientResponseError, lambda _: NOT_HTTP),
    (OSError, lambda error: f"the connection broke: {_tell_number(error)}"),
)


# A connection that could not be made, or that broke before or within the answer.
_CONNECTION: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)

_FINAL: tuple[type[Exception], ...] = (
    aiohttp.ClientConnectorCertificateError,
    *(kind for kind in FOREIGN_ERRORS if not issubclass(kind, (aiohttp.ClientError, OSError, EOFError))),
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn what a library raises into HttpError, and leave its text behind.

    Raises:
        HttpError: instead.
    """
    try:
        yield
    except UsageError as error:  # the HTTP proxy that the environment names
        raise HttpError.final(str(error)) from None
    except FOREIGN_ERRORS as error:
        raise translate(error) from None


def translate(error: Exception) -> HttpError:
    """Make an HttpError of what a library raised."""
    # A certificate that is refused stays so, and so does what no codec or parser takes.
    is_final = isinstance(error, _FINAL) or _is_private(error) or _is_not_tls(error)
    reason = next((tell(error) for kind, tell in _REASONS if isinstance(error, kind)), None)
    text = reason or f"the answer makes no sense: {type(error).__name__}"
    is_connection = isinstance(error, _CONNECTION) and not isinstance(error, SlowBodyError)
    return HttpError(Failure(None), text, is_final=is_final, is_connection=is_connection)


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


def _is_private(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PrivateAddressError)


def _tell_number(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _tell_connecting(error: OSError) -> str:
    """Prefer the system's words to asyncio's; what a name does not resolve for has numbers of its own."""
    if error.errno and not isinstance(error, (socket.gaierror, PrivateAddressError)):
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _is_not_tls(error: BaseException) -> bool:
    if not isinstance(error, aiohttp.ClientConnectorSSLError):
        return False
    return isinstance(error.os_error, ssl.SSLError) and error.os_error.reason in _NOT_TLS


def _tell_tls(error: aiohttp.ClientConnectorSSLError) -> str:
    """Say it without the number, which is OpenSSL's own and no errno."""
    if _is_not_tls(error):
        return (
            "the server there does not speak TLS; one that speaks plain HTTP is written "
            f"http://{error.host}:{error.port}"
        )
    reason = getattr(error.os_error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else type(error.os_error).__name__


def _tell_certificate(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
