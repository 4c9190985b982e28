"""Subjects, as others write them."""

import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nixcache_oci.proxy.writers.certificates import _is_local, render_subject
from tests.support.programs import require_program
from tests.support.tls import certify

SUBJECTS = [
    [(NameOID.COMMON_NAME, "builder-01")],
    [(NameOID.ORGANIZATION_NAME, "Example, Inc."), (NameOID.COMMON_NAME, "builder 01")],
    [
        (NameOID.COUNTRY_NAME, "CH"),
        (NameOID.DOMAIN_COMPONENT, "org"),
        (NameOID.COMMON_NAME, 'a+b"c\\d<e>f;g'),
    ],
    [(NameOID.LOCALITY_NAME, " Zürich "), (NameOID.COMMON_NAME, "#1"), (NameOID.USER_ID, "x")],
    [
        (NameOID.STATE_OR_PROVINCE_NAME, "s"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "u"),
        (NameOID.EMAIL_ADDRESS, "a@b"),
    ],
]


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("names", SUBJECTS)
def test_a_subject_is_written_as_openssl_writes_it(
    names: list[tuple[x509.ObjectIdentifier, str]], tmp_path: Path
) -> None:
    """nginx hands it over in that form, and one pattern has to fit both."""
    subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in names])
    file = tmp_path / "certificate.pem"
    file.write_bytes(certify(subject, ec.generate_private_key(ec.SECP256R1())))
    told = (
        subprocess.run(
            [require_program("openssl"), "x509", "-in", file, "-noout", "-subject", "-nameopt", "RFC2253"],
            capture_output=True,
            text=True,
            check=True,
        )
        .stdout.removeprefix("subject=")
        .removesuffix("\n")
    )
    decoded = ssl._ssl._test_decode_cert(str(file))  # type: ignore[attr-defined]  # as getpeercert gives it
    assert render_subject(decoded["subject"]) == told


@pytest.mark.parametrize(
    ("peer", "is_here"),
    [
        (("127.0.0.1", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        ("", True),
        (b"", True),
        (("192.0.2.1", 1), False),
        (("::ffff:192.0.2.1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        (None, False),
    ],
)
def test_the_header_counts_only_from_this_machine(peer: object, is_here: bool) -> None:
    """Over the network anybody could send it; a Unix socket's folder says who may."""
    assert _is_local(peer) is is_here
