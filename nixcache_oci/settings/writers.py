"""Who may upload, out of the settings and the files that they name."""

import logging
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from nixcache_oci.clients.rooted_path import read_small
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.proxy.writers.certificates import CertificateWriters
from nixcache_oci.proxy.writers.tokens import parse_tokens
from nixcache_oci.proxy.writers.writers import RuleWriters, TokenVerifier
from nixcache_oci.settings import variables
from nixcache_oci.settings.values import Values, Variable

MOST_FILE_BYTES: Final = 64 * 1024

T = TypeVar("T")

_log = logging.getLogger(__name__)


def writers(values: Values) -> RuleWriters:
    """Read every rule; UsageError for one that cannot be used, which repeats no secret."""
    tokens = _read(values, variables.UPLOAD_TOKENS_FILE, parse_tokens, is_secret=True)
    return RuleWriters(tokens or {}, _certificates(values), _oidc(values))


def _certificates(values: Values) -> CertificateWriters | None:
    subjects, header = values.get(variables.UPLOAD_SUBJECTS), values.get(variables.UPLOAD_CERT_HEADER)
    authority = values.get(variables.TLS_CLIENT_CA)
    sources = f"{variables.TLS_CLIENT_CA.name} or {variables.UPLOAD_CERT_HEADER.name}"
    if not subjects:
        if header is None and authority is None:
            return None
        raise UsageError(
            f"{variables.UPLOAD_SUBJECTS.name} is not set: say whose certificates let upload, "
            f"or unset {sources}"
        )
    if header is None and authority is None:
        raise UsageError(
            f"{variables.UPLOAD_SUBJECTS.name}: nothing checks client certificates: set {sources}"
        )
    return CertificateWriters(subjects, header)


def _oidc(values: Values) -> TokenVerifier | None:
    if values.get(variables.OIDC_FILE) is None:
        return None
    # A tenth of a start, and 10 MB of memory.
    from nixcache_oci.proxy.writers.oidc import OidcWriters, parse_rules  # noqa: PLC0415 -- see above

    rules = _read(values, variables.OIDC_FILE, parse_rules, is_secret=False)
    return OidcWriters(rules or ())


def _read(
    values: Values, variable: Variable[Path | None], parse: Callable[[str], T], *, is_secret: bool
) -> T | None:
    path = values.get(variable)
    if path is None:
        return None
    try:
        content = read_small(path, MOST_FILE_BYTES)
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{variable.name}: {path}: {error.strerror}") from None
    if is_secret and mode & stat.S_IROTH:
        _log.warning("%s: every user of this machine can read %s: chmod 600", variable.name, path)
    if len(content) > MOST_FILE_BYTES:
        raise UsageError(f"{variable.name}: {path}: longer than {MOST_FILE_BYTES} bytes")
    try:
        return parse(content.decode(errors="replace"))
    except FormatError as error:
        raise UsageError(f"{variable.name}: {path}: {error}") from None
