import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import (
    TRIES_PER_KEY,
    PublicKey,
    SecretKey,
    Signature,
    fingerprint,
    is_signed_by,
    parse_public_keys,
)
from tests.nix.samples import FIXTURES, KEY, NARINFOS, SECOND_KEY, SECRET_KEY, narinfo_text

_OTHER_KEY = SecretKey(SECRET_KEY.name, bytes(32)).public_key

key_names = st.text(min_size=1, max_size=20).filter(
    lambda name: ":" not in name and name.isprintable() and " " not in name
)


@pytest.mark.parametrize("path", NARINFOS, ids=[path.stem for path in NARINFOS])
def test_we_sign_as_nix_signs(path: Path) -> None:
    """ed25519 has one signature for a key and a text: ours is Nix's, byte for byte."""
    narinfo = NarInfo.parse(path.read_text())
    assert SECRET_KEY.sign(fingerprint(narinfo)) == narinfo.sigs[0]
    assert is_signed_by(narinfo, [KEY])


def test_the_fingerprint_names_full_paths() -> None:
    """References are covered as sorted full paths, in whatever order they were written, self included."""
    narinfo = NarInfo.parse(narinfo_text("dependent"))
    backwards = dataclasses.replace(narinfo, references=narinfo.references[::-1])
    assert fingerprint(backwards) == fingerprint(narinfo)
    assert fingerprint(narinfo) == (
        "1;/nix/store/mnj1v5pc1kw7zg9mkljprjarphsn2k6n-dependent;"
        "sha256:17mbxhcv5c0cnyn18vp45d3rxlpxrcg832h4i4ck157gajy27s1b;264;"
        "/nix/store/m8hih8zfj545qhflcblkalczi1c3944j-text,"
        "/nix/store/qx0s1w6cyyx9cs11nb6yvyp68mhj2c9p-src,"
        "/nix/store/wh95ph7yyj7a9gqziw85bhapwkb96vln-plain"
    )


def test_a_signature_covers_what_a_client_relies_on() -> None:
    """Nothing but where the NAR lies, and how it is compressed, may change under a signature."""
    narinfo = NarInfo.parse(narinfo_text("dependent"))
    assert is_signed_by(dataclasses.replace(narinfo, url="nar/elsewhere", compression="none"), [KEY])
    assert not is_signed_by(dataclasses.replace(narinfo, nar_size=narinfo.nar_size + 1), [KEY])
    assert not is_signed_by(dataclasses.replace(narinfo, references=narinfo.references[1:]), [KEY])
    path = dataclasses.replace(narinfo.store_path, name="other")
    assert not is_signed_by(dataclasses.replace(narinfo, store_path=path), [KEY])


def test_few_signatures_of_a_key_are_verified() -> None:
    """A narinfo may name a key thousands of times: only the first four cost a verification."""
    narinfo = NarInfo.parse(narinfo_text("dependent"))
    right = SECRET_KEY.sign(fingerprint(narinfo))
    wrong = [Signature(KEY.name, bytes([number]) * 64) for number in range(200)]
    others = [Signature("other-1", one.raw) for one in wrong]
    few, many = wrong[: TRIES_PER_KEY - 1], wrong[:TRIES_PER_KEY]
    assert is_signed_by(dataclasses.replace(narinfo, sigs=(*others, *few, right)), [KEY])
    assert not is_signed_by(dataclasses.replace(narinfo, sigs=(*many, right)), [KEY])


def test_one_good_signature_by_a_known_key_is_enough() -> None:
    """Those of unknown keys are passed over; a name alone is none, with whichever key or bytes."""
    (text,) = [text for path in NARINFOS if "second.example-2" in (text := path.read_text())]
    narinfo = NarInfo.parse(text)
    assert is_signed_by(narinfo, [SECOND_KEY])
    assert is_signed_by(narinfo, [_OTHER_KEY, SECOND_KEY])
    assert not is_signed_by(narinfo, [_OTHER_KEY])
    assert not is_signed_by(narinfo, [])
    assert not is_signed_by(dataclasses.replace(narinfo, sigs=()), [KEY, SECOND_KEY])
    covered = fingerprint(narinfo)
    signature = SECRET_KEY.sign(covered)
    assert KEY.verify(covered, signature)
    assert not KEY.verify(covered, Signature("other-1", signature.raw))
    assert not _OTHER_KEY.verify(covered, signature)


@given(key_names, st.binary(min_size=64, max_size=64))
def test_signatures_are_written_as_read(name: str, raw: bytes) -> None:
    """Both directions agree."""
    assert Signature.parse(str(Signature(name, raw))) == Signature(name, raw)


@given(key_names, st.binary(min_size=32, max_size=32), st.text())
def test_keys_are_written_as_read(name: str, seed: bytes, covered: str) -> None:
    """A key survives its file, and what it signs, its public key verifies."""
    key = SecretKey(name, seed)
    assert SecretKey.parse(key.render()) == key
    assert PublicKey.parse(str(key.public_key)) == key.public_key
    assert key.public_key.verify(covered, key.sign(covered))


def test_key_files_are_those_of_nix() -> None:
    """A key pair of nix-store --generate-binary-cache-key is read and written byte for byte."""
    assert SECRET_KEY.public_key == KEY
    assert SECRET_KEY.render() == (FIXTURES / "fixtures-1.sec").read_text()
    assert str(KEY) == (FIXTURES / "fixtures-1.pub").read_text()
    assert PublicKey.parse(f"{KEY}\n") == KEY
    assert SecretKey.parse(f"{SECRET_KEY.render()}\n") == SECRET_KEY
    assert SecretKey.generate("a-1") != SecretKey.generate("a-1")


@pytest.mark.parametrize(
    "around",
    [
        *("\ufeff{}", "{}\r\n", " \t{}\n\n", "\u00a0{}\u200b", '"{}"', "'{}'", "`{}`"),
        *("NIX_SIGNING_KEY={}", 'NIX_SIGNING_KEY="{}"\r\n', "\ufeffexport NIX_SIGNING_KEY='{}'"),
        *("NIX_SIGNING_KEY = {}", "NIXCACHE_SIGNING_KEY={}", '"NIX_SIGNING_KEY={}"'),
    ],
)
def test_a_secret_key_is_read_as_it_was_copied(around: str) -> None:
    """What an editor or a form adds must not become a part of the name, which no client would trust."""
    assert SecretKey.parse(around.format(SECRET_KEY.render())) == SECRET_KEY


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_secret_key_may_be_broken_into_lines(end: str) -> None:
    """As ``base64`` breaks them, and as Nix reads them."""
    text = SECRET_KEY.render()
    assert SecretKey.parse(f"{text[:60]}{end}{text[60:]}{end}") == SECRET_KEY
    with pytest.raises(FormatError):
        SecretKey.parse(f"{text}{end}{text}")


@pytest.mark.parametrize("name", ["\ufeffcache-1", "a\u200b", "a b", "a\x00", ""])
def test_no_key_has_a_name_with_what_nobody_sees(name: str) -> None:
    """Signatures under it would be of no use to anybody."""
    with pytest.raises(FormatError):
        PublicKey(name, bytes(32))


def test_a_secret_is_not_shown() -> None:
    """Neither repr, str nor an error gives the secret away."""
    _, encoded = SECRET_KEY.render().split(":")
    for text in (repr(SECRET_KEY), str(SECRET_KEY), f"{SECRET_KEY}"):
        assert encoded[:20] not in text
        assert repr(SECRET_KEY.seed) not in text
    with pytest.raises(FormatError) as caught:
        SecretKey.parse(f"{SECRET_KEY.render()}*")
    assert encoded[:20] not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "name", ":AAAA", "name:", "name:AAAA", "na me:" + "A" * 86 + "==", "name:" + "*" * 88),
        "n:" + "A" * 87 + "=",
    ],
)
def test_bad_signatures_are_refused(text: str) -> None:
    """A malformed signature ends newer Nix, a short one under a trusted name ends all."""
    with pytest.raises(FormatError, match="signature"):
        Signature.parse(text)


def test_the_halves_of_a_secret_key_belong_together() -> None:
    """A key file whose public half is another's would sign what nobody can verify."""
    name, encoded = SECRET_KEY.render().split(":")
    with pytest.raises(FormatError, match="public half"):
        SecretKey.parse(f"{name}:{'A' * 8}{encoded[8:]}")
    with pytest.raises(FormatError, match="64 bytes"):
        SecretKey.parse(str(KEY))


def test_names_in_a_key_set_are_unique() -> None:
    """Of two keys of one name Nix would know only one; the same key twice is no harm."""
    assert parse_public_keys([str(KEY), str(SECOND_KEY), str(KEY)]) == (KEY, SECOND_KEY)
    with pytest.raises(FormatError, match="two different keys are named fixtures-1"):
        parse_public_keys([str(KEY), str(_OTHER_KEY)])
