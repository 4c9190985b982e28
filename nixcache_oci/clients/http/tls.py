"""Which certificates are trusted, alike for the registry, GitHub, upstreams, and imported caches.

``NIX_SSL_CERT_FILE`` counts before ``SSL_CERT_FILE``, as for Nix: who gave Nix the certificate of a company's
own proxy means that one here as well. Without either, OpenSSL's usual place.

Source: Nix manual, "Environment variables", NIX_SSL_CERT_FILE.
"""

import functools
import logging
import os
import ssl
from collections.abc import Mapping
from typing import Final

CERT_FILE_VARIABLE: Final = "NIX_SSL_CERT_FILE"

_log = logging.getLogger(__name__)


def tls_context(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext | bool:
    """Give what aiohttp takes as ``ssl``: a context, or True for its own, which obeys ``SSL_CERT_FILE``.

    A file that cannot be used costs one warning, and using the usual certificates: in a pure nix-shell
    the variable names a file that is not there.
    """
    path = environment.get(CERT_FILE_VARIABLE, "").strip()
    return (_read(path) if path else None) or True


@functools.cache
def _read(path: str) -> ssl.SSLContext | None:
    try:
        context = ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one: the file holds no certificate
        reason = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        _log.warning("%s: %s: %s; using the usual certificates", CERT_FILE_VARIABLE, path, reason)
        return None
    context.set_alpn_protocols(("http/1.1",))
    return context
