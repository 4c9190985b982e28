"""OpenID Connect: who a JSON Web Token says that it is, and whether that one may upload.

A token is signed by its issuer, is made for an audience, and says facts about its job (claims). A rule binds
some of them: anybody can have a token of a public issuer, for any audience.

Sources: RFC 7519 (JWT), RFC 8725 (its best practices); OpenID Connect Core 1.0, "ID Token"; GitHub's
documentation, "OpenID Connect reference".
"""

import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import jwt
from yarl import URL

from nixcache_oci.clients.http.url import parse_url
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.reference import is_loopback
from nixcache_oci.proxy.uploads.interface import UploadRefusedError
from nixcache_oci.proxy.writers.issuer_keys import ALGORITHMS, IssuerKeys, KeysUnavailableError
from nixcache_oci.proxy.writers.patterns import CLAIM_SEPARATORS, Pattern
from nixcache_oci.proxy.writers.writers import TokenOwner

LEEWAY_SECONDS: Final = 30.0
"""How far clocks may differ."""

MOST_TOKEN_BYTES: Final = 16 * 1024
MOST_RULES: Final = 100

_MOST_MEMBERS: Final = 100  # of a claim that is a list
_MOST_SHOWN_CHARACTERS: Final = 200
# The library leaves JSON that is nested deeply, and numbers without end, to its caller.
_MALFORMED: Final = (jwt.PyJWTError, RecursionError, OverflowError, ValueError, TypeError)
_FIELDS: Final = frozenset({"name", "issuer", "audience", "claims"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OidcRule:
    """Whose tokens let upload.

    Attributes:
        claims: patterns by claim; one of each has to match.
    """

    name: str
    issuer: str
    audiences: tuple[str, ...]
    claims: Mapping[str, tuple[Pattern, ...]]

    def find_missed(self, claims: Mapping[str, object]) -> str | None:
        """Return the first bound claim that does not match; None if all do."""
        for name, patterns in self.claims.items():
            texts = _texts(claims.get(name))
            if not any(pattern.matches(text) for pattern in patterns for text in texts):
                return name
        return None


class OidcWriters:
    """Checks tokens."""

    def __init__(self, rules: Sequence[OidcRule]) -> None:
        self._rules = rules
        self._keys = {rule.issuer: IssuerKeys(rule.issuer) for rule in rules}

    async def check(self, token: bytes) -> TokenOwner:
        """Return who showed the token; UploadRefusedError says what was missed if it does not let upload."""
        if len(token) > MOST_TOKEN_BYTES:
            raise _refused("it is too long")
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
        except _MALFORMED:
            raise _refused("it is malformed") from None
        header, issuer = unverified["header"], unverified["payload"].get("iss")
        if header.get("alg") not in ALGORITHMS:
            raise _refused(f"it is not signed by {' or '.join(ALGORITHMS)}")
        rules = [rule for rule in self._rules if rule.issuer == issuer]
        if not rules:
            raise _refused("its issuer is not one that counts here")
        try:
            key = await self._keys[rules[0].issuer].find(header.get("kid"))
        except KeysUnavailableError:
            raise _refused("it cannot be checked now, because its issuer's keys cannot be fetched") from None
        if key is None:
            raise _refused("it is signed by an unknown key")
        missed = []
        for rule in rules:
            try:
                claims = _verify(token, key, rule)
                expires_at = float(claims["exp"])
            except _MALFORMED as error:
                missed.append((rule.name, _describe(error)))
                continue
            subject = str(claims.get("sub", ""))[:_MOST_SHOWN_CHARACTERS]
            if (claim := rule.find_missed(claims)) is None:
                return TokenOwner(rule.name, subject, expires_at)
            missed.append((rule.name, f"its claim {claim} does not match"))
            _log.info("token refused", extra={"fields": {"rule": rule.name, "claim": claim, "sub": subject}})
        reasons = list(dict.fromkeys(reason for _, reason in missed))
        raise _refused(
            reasons[0] if len(reasons) == 1 else "; ".join(f"{name}: {why}" for name, why in missed)
        )


def parse_rules(text: str) -> tuple[OidcRule, ...]:
    """Read TOML of ``[[rule]]`` with name, issuer, audience and claims; FormatError says what is wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"not TOML: {error}") from None
    tables = document.pop("rule", None)
    if document or not isinstance(tables, list) or not 0 < len(tables) <= MOST_RULES:
        raise FormatError(f"expected 1 to {MOST_RULES} tables [[rule]], and nothing else")
    rules = []
    for number, table in enumerate(tables, 1):
        try:
            rules.append(_parse_rule(table))
        except FormatError as error:
            raise FormatError(f"rule {number}: {error}") from None
    if len({rule.name for rule in rules}) != len(rules):
        raise FormatError("expected a different name for each rule")
    return tuple(rules)


def _parse_rule(table: object) -> OidcRule:
    if not isinstance(table, dict) or table.keys() != _FIELDS:
        raise FormatError(f"expected {', '.join(sorted(_FIELDS))}, each once, and nothing else")
    name, issuer, claims = table["name"], table["issuer"], table["claims"]
    if not (isinstance(name, str) and name.isascii() and name.isprintable() and 0 < len(name) <= 80):  # noqa: PLR2004
        raise FormatError("name: expected 1 to 80 characters")
    if not (isinstance(issuer, str) and _is_issuer(issuer)):
        raise FormatError("issuer: expected an https URL, as the token has it in iss")
    audiences = _parse_texts(table["audience"], "audience")
    if not isinstance(claims, dict):
        raise FormatError("claims: expected a table of claims and what they have to be")
    bound = {
        claim: tuple(_parse_pattern(text, claim) for text in _parse_texts(given, f"claims: {claim}"))
        for claim, given in claims.items()
    }
    if all(any(pattern.is_any for pattern in patterns) for patterns in bound.values()):
        raise FormatError(
            "claims: none is bound, so whoever gets a token of this issuer could upload; at GitHub that is "
            "everybody: bind repository_id or repository_owner_id"
        )
    return OidcRule(name, issuer, audiences, bound)


def _parse_pattern(text: str, claim: str) -> Pattern:
    try:
        return Pattern.parse(text, CLAIM_SEPARATORS)
    except FormatError as error:
        raise FormatError(f"claims: {claim}: {error}") from None


def _parse_texts(value: object, what: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise FormatError(f"{what}: expected a string, or a list of them")
    return tuple(texts)


def _is_issuer(text: str) -> bool:
    try:
        url = parse_url(text)
    except ValueError:
        return False
    is_plain = url.raw_user is None and not url.raw_query_string and not url.raw_fragment
    return bool(url.host) and is_plain and _is_safe(url)


def _is_safe(url: URL) -> bool:
    return url.scheme == "https" or (url.scheme == "http" and is_loopback(url.raw_authority))


def _verify(token: bytes, key: jwt.PyJWK, rule: OidcRule) -> dict[str, Any]:
    return jwt.decode(
        token,
        key,
        algorithms=ALGORITHMS,
        audience=rule.audiences,
        issuer=rule.issuer,
        leeway=LEEWAY_SECONDS,
        options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
    )


def _describe(error: Exception) -> str:
    match error:
        case jwt.ExpiredSignatureError():
            return "it has expired"
        case jwt.ImmatureSignatureError():
            return "it is not valid yet"
        case jwt.InvalidAudienceError():
            return "it was made for another audience"
        case jwt.MissingRequiredClaimError():
            return f"it has no claim {error.claim}"
        case jwt.InvalidSignatureError() | jwt.InvalidKeyError() | jwt.InvalidAlgorithmError():
            return "its signature is not right"
    return "it is malformed"


def _texts(value: object) -> list[str]:
    """Return the texts of a claim: of a list, each member's."""
    match value:
        case str():
            return [value]
        case bool():
            return [str(value).lower()]
        case int():
            return [str(value)]
        case list():
            return [text for member in value[:_MOST_MEMBERS] if isinstance(member, str) for text in [member]]
    return []


def _refused(reason: str) -> UploadRefusedError:
    return UploadRefusedError(f"the JSON Web Token does not let upload: {reason}", HTTPStatus.FORBIDDEN)
