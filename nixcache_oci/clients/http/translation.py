"""Turns what libraries raise for a request into HttpError, in this one place.

Their own texts may hold signed URLs, and are dropped.
"""

import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final

import aiohttp

from nixcache_oci.clients.http.content_coding import CodingError
from nixcache_oci.clients.http.errors import Failure, HttpError
from nixcache_oci.clients.http.public_address import PrivateAddressError
from nixcache_oci.clients.http.session import HeadError
from nixcache_oci.errors import UsageError


class SlowBodyError(TimeoutError):
    """Bytes arrived too slowly for too long."""


class LargeBodyError(Exception):
    """A body has more bytes than it may."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"the answer has over {most_bytes} bytes")


class CurlCode(IntEnum):
    """Errors of libcurl that mean something here; see libcurl-errors(3)."""

    UNSUPPORTED_PROTOCOL = 1  # HTTP/0.9
    COULDNT_RESOLVE_HOST = 6
    COULDNT_CONNECT = 7
    WEIRD_SERVER_REPLY = 8
    OPERATION_TIMEDOUT = 28  # no other limit of libcurl's is set than that for connections
    SSL_CONNECT_ERROR = 35
    GOT_NOTHING = 52
    PEER_FAILED_VERIFICATION = 60
    BAD_CONTENT_ENCODING = 61  # a Transfer-Encoding that nobody asked for
    TOO_LARGE = 100  # too many fields in a head, or one too long


class TransferError(Exception):
    """libcurl gave up, or would have.

    Args:
        code: libcurl's.
        host: of the server.
        port: the same.
        text: libcurl's message.
        os_error: what the system or its resolver said, if anything.
        has_begun: whether the answer's head had arrived.
    """

    def __init__(
        self,
        code: int,
        host: str,
        port: int,
        text: str = "",
        *,
        os_error: OSError | None = None,
        has_begun: bool = False,
    ) -> None:
        super().__init__(code, text)
        self.code = code
        self.host = host
        self.port = port
        self.text = text
        self.os_error = os_error
        self.has_begun = has_begun


# What the HTTP library, URL parser, resolver, TLS and codecs raise for a nonsensical answer.
FOREIGN_ERRORS: Final = (
    aiohttp.ClientError,
    TransferError,
    LargeBodyError,
    aiohttp.http_exceptions.HttpProcessingError,
    OSError,  # TLS and timeouts included
    EOFError,
    ValueError,  # UnicodeError included: host names, realms and headers that no codec takes
    LookupError,
    ArithmeticError,
    AssertionError,  # aiohttp's, for URLs that it did not expect
    RecursionError,
    TypeError,
)

CLOSED_EARLY: Final = "the connection was closed before an answer came"
BROKE_EARLY: Final = "the connection broke before the end of the answer"
NO_CONNECTION_IN_TIME: Final = "no connection in time"
NOT_HTTP: Final = "the server does not speak HTTP"

# OpenSSL's names for an answer that is not TLS; they differ by version.
_NOT_TLS: Final = frozenset(
    {
        *("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"),
        *("PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"),
    }
)

# What libcurl says around OpenSSL's reason.
_WHY_REFUSED: Final = re.compile(
    r"^SSL(?: certificate problem| certificate OpenSSL verify result|): | \([0-9]+\)$"
)

# The first matching class gives the reason; the errors' own texts hold URLs, which may be signed.
_REASONS: tuple[tuple[type[Exception], Callable[[Any], str]], ...] = (
    (
        aiohttp.ClientConnectorCertificateError,
        lambda error: _tell_refused(error.host, _tell_certificate(error.certificate_error)),
    ),
    (
        aiohttp.ClientConnectorSSLError,
        lambda error: _tell_no_tls(
            error.host, error.port, _reason_of(error) or type(error.os_error).__name__
        ),
    ),
    (
        aiohttp.ClientConnectorError,
        lambda error: f"no connection to {error.host}:{error.port}: {_tell_connecting(error.os_error)}",
    ),
    (aiohttp.ConnectionTimeoutError, lambda _: NO_CONNECTION_IN_TIME),
    (TransferError, lambda error: _tell_transfer(error)),  # noqa: PLW0108  defined below
    (LargeBodyError, str),
    (SlowBodyError, lambda error: f"the answer comes too slowly: {error}"),
    (TimeoutError, lambda _: "no answer in time: the connection stalled"),
    (aiohttp.ServerDisconnectedError, lambda _: CLOSED_EARLY),
    (aiohttp.ClientPayloadError, lambda _: BROKE_EARLY),
    (aiohttp.ClientHttpProxyError, lambda error: f"the HTTP proxy answered {error.status}"),
    (HeadError, str),
    (CodingError, str),
    (aiohttp.ClientResponseError, lambda _: NOT_HTTP),
    (
        OSError,
        lambda error: (
            f"the connection broke: {os.strerror(error.errno) if error.errno else type(error).__name__}"
        ),
    ),
)


# A connection could not be made, or broke before or during the answer.
_CONNECTION: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TransferError, OSError)
_NOT_HTTP_CODES: Final = frozenset(
    {
        *(CurlCode.UNSUPPORTED_PROTOCOL, CurlCode.WEIRD_SERVER_REPLY),
        *(CurlCode.BAD_CONTENT_ENCODING, CurlCode.TOO_LARGE),
    }
)

_FINAL: tuple[type[Exception], ...] = (
    aiohttp.ClientConnectorCertificateError,
    *(
        kind
        for kind in FOREIGN_ERRORS
        if not issubclass(kind, (aiohttp.ClientError, TransferError, LargeBodyError, OSError, EOFError))
    ),
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn what a library raises into HttpError, without its text."""
    try:
        yield
    except UsageError as error:  # the HTTP proxy that the environment names
        raise HttpError.final(str(error)) from None
    except FOREIGN_ERRORS as error:
        raise translate(error) from None


def translate(error: Exception) -> HttpError:
    """Make an HttpError of what a library raised."""
    # A refused certificate stays refused, and so does what no codec or parser takes.
    is_private = isinstance(getattr(error, "os_error", None), PrivateAddressError)
    is_refused = isinstance(error, TransferError) and error.code == CurlCode.PEER_FAILED_VERIFICATION
    is_final = isinstance(error, _FINAL) or is_private or is_refused or _reason_of(error) in _NOT_TLS
    reason = next((tell(error) for kind, tell in _REASONS if isinstance(error, kind)), None)
    text = reason or f"the answer makes no sense: {type(error).__name__}"
    is_connection = isinstance(error, _CONNECTION) and not isinstance(error, SlowBodyError)
    if isinstance(error, TransferError) and error.code in _NOT_HTTP_CODES:
        is_connection = False
    return HttpError(Failure(None), text, is_final=is_final, is_connection=is_connection)


def _tell_connecting(error: OSError) -> str:
    """Prefer the system's text to asyncio's; name resolution has its own error numbers."""
    if error.errno and not isinstance(error, (socket.gaierror, PrivateAddressError)):
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _tell_transfer(error: TransferError) -> str:
    system = _tell_connecting(error.os_error) if error.os_error is not None else None
    match error.code:
        case CurlCode.PEER_FAILED_VERIFICATION:
            text = _tell_refused(error.host, _WHY_REFUSED.sub("", error.text))
        case CurlCode.SSL_CONNECT_ERROR:
            text = _tell_no_tls(error.host, error.port, _reason_of(error) or system or "the server hung up")
        case CurlCode.COULDNT_RESOLVE_HOST | CurlCode.COULDNT_CONNECT:
            text = f"no connection to {error.host}:{error.port}: {system or 'it did not answer'}"
        case CurlCode.OPERATION_TIMEDOUT:
            text = NO_CONNECTION_IN_TIME
        case code if code in _NOT_HTTP_CODES:
            text = NOT_HTTP
        case _ if error.has_begun:
            text = BROKE_EARLY
        case _:
            text = f"the connection broke: {system}" if system else CLOSED_EARLY
    return text


def _reason_of(error: Exception) -> str | None:
    """Return OpenSSL's reason why there is no TLS, as it names it; None if there is another."""
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return getattr(error.os_error, "reason", None)
    if isinstance(error, TransferError) and error.code == CurlCode.SSL_CONNECT_ERROR and "::" in error.text:
        return error.text.rpartition("::")[2].strip().upper().replace(" ", "_")
    return None


def _tell_no_tls(host: str, port: int, reason: str) -> str:
    """Describe the error without its number, which is OpenSSL's and no errno."""
    if reason in _NOT_TLS:
        why = (
            f"the server there does not speak TLS; one that speaks plain HTTP is written http://{host}:{port}"
        )
    else:
        why = reason.replace("_", " ").lower()
    return f"no connection to {host}:{port} over TLS: {why}"


def _tell_refused(host: str, why: str) -> str:
    return (
        f"the certificate of {host} is refused: {why}; "
        "a CA of your own goes into the file that NIX_SSL_CERT_FILE names"
    )


def _tell_certificate(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
