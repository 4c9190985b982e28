"""Signatures of store objects: Nix's ed25519 keys, and the fingerprint that is signed.

Source: Nix manual, "Store object signatures"; Nix, ``libutil/signature`` and ``ValidPathInfo::fingerprint``.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Final, Self

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.closure import StoreObject
from nixcache_oci.nix.content_address import proves_its_path
from nixcache_oci.wording import counted

SIGNATURE_BYTES: Final = 64
PUBLIC_KEY_BYTES: Final = 32
SEED_BYTES: Final = 32

TRIES_PER_KEY: Final = 4
"""Signatures verified per key name: a few may be by a former key of that name, thousands are an attack."""

_KEY_NAME = re.compile(r"[^:\s\x00-\x1f\x7f\ufeff\u200b]+")
# Valid everywhere that Nix uses it: in nix.conf (# starts a comment), in a store URL (& and ? separate
# settings), and as a file name.
_NEW_KEY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@~-]*")
_MAX_NEW_KEY_NAME = 200  # characters; with a suffix it is a file name
# Around a copied key: white space, a byte order mark, quotes, and an assignment.
_AROUND: Final = "\ufeff\u200b \t\r\n\v\f\u00a0"
_ASSIGNMENT = re.compile(r"(?:export\s+)?[A-Z0-9_]*KEY[A-Z0-9_]*\s*=\s*")
_QUOTES: Final = "\"'`"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; ``str()`` gives ``<key name>:<base 64>`` as in a Sig field."""

    key_name: str  # of the key that made it
    raw: bytes  # the 64 bytes of ed25519

    def __post_init__(self) -> None:
        _check("signature", self.key_name, self.raw, SIGNATURE_BYTES)

    def __str__(self) -> str:
        return _join(self.key_name, self.raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``<key name>:<base 64>``; FormatError for no key name, bad base 64, or not 64 bytes."""
        return cls(*_split("signature", text))


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies signatures; ``str()`` gives ``<name>:<base 64>``."""

    name: str  # as in its signatures
    raw: bytes  # the 32 bytes of ed25519

    def __post_init__(self) -> None:
        _check("public key", self.name, self.raw, PUBLIC_KEY_BYTES)

    def __str__(self) -> str:
        return _join(self.name, self.raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``<name>:<base 64>``, white space around it allowed; FormatError for anything else."""
        return cls(*_split("public key", text.strip()))

    def verify(self, signed_fingerprint: str, signature: Signature) -> bool:
        """Check whether this key made this signature of this fingerprint."""
        if signature.key_name != self.name:
            return False
        try:
            VerifyKey(self.raw).verify(signed_fingerprint.encode(), signature.raw)
        except BadSignatureError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key that signs; only ``render`` shows its secret."""

    name: str  # as in its signatures
    seed: bytes = field(repr=False)  # the 32 secret bytes of ed25519

    def __post_init__(self) -> None:
        _check("secret key", self.name, self.seed, SEED_BYTES)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``<name>:<base 64 of seed and public key>``, as copied from files, secrets and forms.

        White space, a byte order mark, quotes and ``NIX_SIGNING_KEY=`` around it are stripped, and, as by
        Nix, line breaks within the base 64. Raises FormatError, which does not repeat the text, for anything
        else.
        """
        name, raw = _split("secret key", strip_key(text), is_secret=True)
        if len(raw) != SEED_BYTES + PUBLIC_KEY_BYTES:
            # The name is not shown: if the parts were left out or swapped, it is the secret.
            raise FormatError(
                f"secret key: expected <key name>:<base 64> of seed and public key, 64 bytes, got {len(raw)}"
            )
        key = cls(name, raw[:SEED_BYTES])
        if key.public_key.raw != raw[SEED_BYTES:]:
            raise FormatError(f"secret key {name}: its public half belongs to another key")
        return key

    @classmethod
    def generate(cls, name: str) -> Self:
        """Make a new key; FormatError for a name that Nix cannot use everywhere."""
        if not _NEW_KEY_NAME.fullmatch(name) or len(name) > _MAX_NEW_KEY_NAME:
            raise FormatError(
                f"key name {name[:80]!r}: expected letters, digits and . _ + @ ~ -, the first a letter or "
                f"digit, at most {_MAX_NEW_KEY_NAME}; write it like my-cache-1"
            )
        return cls(name, bytes(SigningKey.generate()))

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies this key's signatures."""
        return PublicKey(self.name, bytes(_signing_key(self.seed).verify_key))

    def sign(self, fingerprint_to_sign: str) -> Signature:
        """Sign a fingerprint."""
        return Signature(self.name, _signing_key(self.seed).sign(fingerprint_to_sign.encode()).signature)

    def render(self) -> str:
        """Write the key as in Nix's key files, without a newline."""
        return _join(self.name, self.seed + self.public_key.raw)


@lru_cache(maxsize=16)
def _signing_key(seed: bytes) -> SigningKey:
    """Make the library's key, which takes as long as a signature."""
    return SigningKey(seed)


def strip_key(text: str) -> str:
    """Strip what surrounds a key that was copied, or saved by an editor."""
    before = ""
    while text != before:
        before, text = text, text.strip(_AROUND)
        if len(text) > 1 and text[0] in _QUOTES and text[0] == text[-1]:
            text = text[1:-1]
        elif assignment := _ASSIGNMENT.match(text):
            text = text[assignment.end() :]
    return text


def parse_public_keys(texts: Iterable[str]) -> tuple[PublicKey, ...]:
    """Read a set of keys without duplicates; FormatError for anything else, or two keys of one name."""
    keys: dict[str, PublicKey] = {}
    for text in texts:
        key = PublicKey.parse(text)
        if keys.setdefault(key.name, key) != key:
            raise FormatError(f"public key: two different keys are named {key.name}; give one another name")
    return tuple(keys.values())


def fingerprint(narinfo: StoreObject) -> str:
    """Return the text that a signature of this narinfo covers."""
    path = narinfo.store_path
    references = ",".join(f"{path.store_dir}/{reference}" for reference in sorted(set(narinfo.references)))
    return f"1;{path};{narinfo.nar_hash};{narinfo.nar_size};{references}"


def read_signatures(texts: Iterable[str]) -> tuple[Signature, ...]:
    """Read Sig fields, each once; malformed ones are dropped, because newer Nix fails at some."""
    signatures: dict[Signature, None] = {}
    for text in texts:
        try:
            signatures[Signature.parse(text)] = None
        except FormatError:
            continue
    return tuple(signatures)


def is_signed_by(narinfo: StoreObject, keys: Iterable[PublicKey]) -> bool:
    """Check whether at least one of these keys signed the narinfo."""
    covered = fingerprint(narinfo)
    return any(has_signature(key, covered, narinfo.sigs) for key in keys)


def judge_signatures(narinfo: StoreObject, keys: Iterable[PublicKey]) -> dict[str, str]:
    """Say of each key that a signature names, whether it made it: ``good``, ``wrong`` or ``unknown key``."""
    covered = fingerprint(narinfo)
    verdicts = dict.fromkeys((sig.key_name for sig in narinfo.sigs), "unknown key")
    for key in keys:
        if key.name in verdicts and verdicts[key.name] != "good":
            verdicts[key.name] = "good" if has_signature(key, covered, narinfo.sigs) else "wrong"
    return verdicts


def is_unsigned(narinfo: StoreObject) -> bool:
    """Tell whether nothing vouches for it: no signature, whosoever's, and no content address."""
    return not narinfo.sigs and not proves_its_path(narinfo)


def has_signature(key: PublicKey, signed_fingerprint: str, signatures: Iterable[Signature]) -> bool:
    """Check whether this key made a signature; ``TRIES_PER_KEY`` that name it are verified."""
    named = islice((one for one in signatures if one.key_name == key.name), TRIES_PER_KEY)
    return any(key.verify(signed_fingerprint, signature) for signature in named)


def _check(noun: str, name: str, raw: bytes, size: int) -> None:
    if not _KEY_NAME.fullmatch(name):
        raise FormatError(f"{noun}: a key's name has no colon or white space, got {name[:80]!r}")
    if len(raw) != size:
        raise FormatError(f"{noun} of {name[:80]}: expected {counted(size, 'byte')}, got {len(raw)}")


def _join(name: str, raw: bytes) -> str:
    return f"{name}:{base64.b64encode(raw).decode()}"


def _split(noun: str, text: str, *, is_secret: bool = False) -> tuple[str, bytes]:
    name, _, encoded = text.partition(":")
    if is_secret:
        encoded = "".join(encoded.split())
    try:
        # Nix does not require padding, and some omit it.
        return name, base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        shown = "" if is_secret else f", got {text[:160]!r}"
        raise FormatError(f"{noun}: expected <key name>:<base 64>{shown}") from None
