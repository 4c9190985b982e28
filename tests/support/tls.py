"""A certificate authority of a test's own, and servers that show its certificates."""

import ipaddress
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Authority:
    """What nobody trusts unless told.

    Attributes:
        file: its certificate, as ``SSL_CERT_FILE`` takes it.
        server: for servers on this machine.
        chain: that server's secret key and certificate.
    """

    file: Path
    server: ssl.SSLContext
    chain: Path
    name: x509.Name = field(repr=False)
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def certify_client(self, file: Path, common_name: str, *, days: int = 1) -> Path:
        """Write the secret key and certificate of a client, which ends after so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        file.write_bytes(_private(key) + certify(subject, key, self.name, self.key, days=days))
        return file


def make_authority(folder: Path) -> Authority:
    """Make one, with a certificate for ``localhost`` and ``127.0.0.1``."""
    key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's authority")])
    authority = _builder(name, name, key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), True
    )
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    of_server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = _builder(of_server, name, server_key).add_extension(names, critical=False)
    file, chain = folder / "authority.pem", folder / "server.pem"
    file.write_bytes(_pem(authority.sign(key, hashes.SHA256())))
    chain.write_bytes(_private(server_key) + _pem(certificate.sign(key, hashes.SHA256())))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return Authority(file, context, chain, name, key)


def certify(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    *,
    days: int = 1,
) -> bytes:
    """Make a certificate in PEM, signed by itself unless told."""
    builder = _builder(subject, issuer or subject, key, days=days)
    return _pem(builder.sign(signer or key, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int = 1
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
