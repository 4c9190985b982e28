"""HTTPS of the proxy's own, with client certificates where those let upload."""

import ssl
from pathlib import Path
from typing import Final

from nixcache_oci.errors import UsageError
from nixcache_oci.proxy.config import TlsFiles

HANDSHAKE_SECONDS: Final = 10.0
"""Timeout of a TLS handshake; before it is done, a client is not counted as a connection."""

_CERTIFICATE: Final = "NIXCACHE_TLS_CERT, NIXCACHE_TLS_KEY"
_AUTHORITIES: Final = "NIXCACHE_TLS_CLIENT_CA"


def open_tls(files: TlsFiles) -> ssl.SSLContext:
    """Read the files; UsageError, which names the setting, for one that cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    for path in filter(None, (files.certificate, files.key, files.client_authorities)):
        _check_readable(path, _AUTHORITIES if path == files.client_authorities else _CERTIFICATE)
    try:
        # The library would ask a terminal for the key's password.
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"{_CERTIFICATE}: {files.certificate} and {files.key}: {_reason(error)}: expected a certificate "
            "and its key, without a password, in PEM"
        ) from None
    if files.client_authorities is not None:
        try:
            context.load_verify_locations(files.client_authorities)
        except (ssl.SSLError, OSError) as error:
            raise UsageError(
                f"{_AUTHORITIES}: {files.client_authorities}: {_reason(error)}: expected certificates in PEM"
            ) from None
        # Reading stays open; a certificate that is shown has to be right.
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def certified_host(path: Path, host: str) -> str:
    """Return a host name or IP address that a certificate is for: this one if it can be.

    Raises UsageError if the file has no certificate.
    """
    # Slow to import, and most proxies speak HTTP.
    from cryptography import x509  # noqa: PLC0415 -- see above

    _check_readable(path, _CERTIFICATE)
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return host
    except (OSError, ValueError):
        raise UsageError(f"{_CERTIFICATE}: {path}: expected a certificate in PEM") from None
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    certified = [*addresses, *names.get_values_for_type(x509.DNSName)]
    return next((name for name in certified if "*" not in name), host) if host not in certified else host


def _check_readable(path: Path, setting: str) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"{setting}: {path}: {error.strerror}") from None


def _reason(error: OSError) -> str:
    return (getattr(error, "reason", None) or error.strerror or "cannot be read").lower().replace("_", " ")
