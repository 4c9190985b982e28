"""The one door at which what libraries raise over a stranger's answer becomes ours."""

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp

from nixcache_oci.clients.http.foreign import FOREIGN_ERRORS
from nixcache_oci.clients.http.head import HeadError
from nixcache_oci.clients.http.minimum_rate import SlowBodyError
from nixcache_oci.clients.http.public_address import PrivateAddressError
from nixcache_oci.clients.registry.retry import Failure
from nixcache_oci.clients.registry.trouble import TroubleError

# The first class that fits tells what happened; their own texts hold URLs, which may be signed.
_REASONS: tuple[tuple[type[Exception], Callable[[Any], str]], ...] = (
    (
        aiohttp.ClientConnectorCertificateError,
        lambda error: (
            f"the certificate of {error.host} is refused: {_tell_certificate(error.certificate_error)}"
        ),
    ),
    (
        aiohttp.ClientConnectorError,
        lambda error: f"no connection to {error.host}:{error.port}: {_tell_connecting(error.os_error)}",
    ),
    (aiohttp.ConnectionTimeoutError, lambda _: "no connection in time"),
    (SlowBodyError, lambda error: f"the answer comes too slowly: {error}"),
    (TimeoutError, lambda _: "the connection stood still for too long"),
    (aiohttp.ServerDisconnectedError, lambda _: "the connection was closed before an answer came"),
    (aiohttp.ClientPayloadError, lambda _: "the connection broke before the end of the answer"),
    (aiohttp.ClientHttpProxyError, lambda error: f"the HTTP proxy answered {error.status}"),
    (HeadError, str),
    (aiohttp.ClientResponseError, lambda _: "what answered does not speak HTTP"),
    (OSError, lambda error: f"the connection broke: {_tell_number(error)}"),
)


_FINAL: tuple[type[Exception], ...] = (
    aiohttp.ClientConnectorCertificateError,
    *(kind for kind in FOREIGN_ERRORS if not issubclass(kind, (aiohttp.ClientError, OSError, EOFError))),
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn what a library raises into TroubleError, and leave its text behind.

    Raises:
        TroubleError: instead.
    """
    try:
        yield
    except FOREIGN_ERRORS as error:
        # A certificate that is refused stays so, and so does what no codec or parser takes.
        is_final = isinstance(error, _FINAL) or _is_private(error)
        reason = next((tell(error) for kind, tell in _REASONS if isinstance(error, kind)), None)
        text = reason or f"what answered makes no sense: {type(error).__name__}"
        raise TroubleError(Failure(None), text, is_final=is_final) from None


def _is_private(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PrivateAddressError)


def _tell_number(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _tell_connecting(error: OSError) -> str:
    """Prefer the system's words to asyncio's; what a name does not resolve for has numbers of its own."""
    if error.errno and not isinstance(error, (socket.gaierror, PrivateAddressError)):
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _tell_certificate(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
