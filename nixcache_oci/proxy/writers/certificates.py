"""Client certificates: the subject of the one that a connection showed, and whether it may upload.

Subjects are written as RFC 2253 says, as nginx's ``$ssl_client_s_dn`` and ``openssl x509 -subject -nameopt
RFC2253`` do: ``CN=builder-01,O=Example``. Another server that checks certificates hands the subject over in a
header, which counts only from this machine: loopback, or a Unix socket.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from nixcache_oci.oci.reference import is_loopback
from nixcache_oci.proxy.writers.patterns import Pattern

_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "givenName": "GN",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "surname": "SN",
    "userId": "UID",
}
_ESCAPED: Final = frozenset(',+"\\<>;')


@dataclass(frozen=True, slots=True)
class CertificateWriters:
    """Whose certificates let upload."""

    subjects: Sequence[Pattern]
    header: (
        str | None
    )  # in which a web server on this machine hands the subject over; None for no such server

    def subject_of(self, request: web.Request) -> str | None:
        """Return the subject of the certificate that came with a request, which was checked; None without."""
        transport = request.transport
        if transport is None:
            return None
        if certificate := transport.get_extra_info("peercert"):
            return render_subject(certificate.get("subject", ()))
        if self.header is None or not _is_local(transport.get_extra_info("peername")):
            return None
        given = request.headers.getall(self.header, [])
        return given[0].strip() or None if len(given) == 1 else None

    def allows(self, subject: str) -> bool:
        """Check whether a subject may upload."""
        return any(pattern.matches(subject) for pattern in self.subjects)


def render_subject(names: Iterable[Iterable[tuple[str, str]]]) -> str:
    """Write what ``SSLSocket.getpeercert`` calls the subject."""
    parts = ["+".join(f"{_SHORT.get(name, name)}={_escape(text)}" for name, text in part) for part in names]
    return ",".join(reversed(parts))


def _escape(text: str) -> str:
    escaped = [_escape_character(character) for character in text]
    if escaped and text[0] in " #":
        escaped[0] = f"\\{text[0]}"
    if len(text) > 1 and text[-1] == " ":
        escaped[-1] = "\\ "
    return "".join(escaped)


def _escape_character(character: str) -> str:
    if character in _ESCAPED:
        return f"\\{character}"
    if " " <= character <= "~":
        return character
    return "".join(f"\\{byte:02X}" for byte in character.encode())


def _is_local(peer: object) -> bool:
    """Check that a connection is from this machine, as transports name the peer."""
    match peer:
        case (str(host), int(), *_):
            host = host.removeprefix("::ffff:")  # IPv4, over a socket for both
            return is_loopback(f"[{host}]" if ":" in host else host)
        case str() | bytes():
            return True  # a Unix socket, whose folder says who may connect
    return False
