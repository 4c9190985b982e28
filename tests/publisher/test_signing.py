from dataclasses import replace

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import Error
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, Signature, fingerprint
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.publisher.draft import MAX_SIGNATURES, make_draft, sign_all
from nixcache_oci.publisher.nar_upload import Uploaded
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publish_plan import PublishPlan, doubt_new_keys
from tests.support.objects import store_object

FIRST = SecretKey.generate("first-1")
SECOND = SecretKey.generate("second-1")
FOREIGN = Signature("somebody-1", bytes(64))


def narinfo(*sigs: Signature) -> NarInfo:
    return replace(store_object("a", references=()).narinfo, sigs=sigs)


def sign(unsigned: NarInfo, *keys: SecretKey) -> tuple[Signature, ...]:
    (signed,) = sign_all([unsigned], keys)
    assert replace(signed, sigs=()) == replace(unsigned, sigs=())
    return signed.sigs


def test_every_key_signs() -> None:
    """Clients may trust either of them, while one replaces the other."""
    unsigned = narinfo()
    first, second = sign(unsigned, FIRST, SECOND)
    assert FIRST.public_key.verify(fingerprint(unsigned), first)
    assert SECOND.public_key.verify(fingerprint(unsigned), second)


def test_signatures_of_others_stay() -> None:
    """Also one that nobody here can check: somebody else may trust it."""
    foreign, ours = sign(narinfo(FOREIGN), FIRST)
    assert foreign == FOREIGN
    assert ours.key_name == FIRST.name


def test_what_is_signed_stays_as_it_is() -> None:
    """The same paths give the same table; no line comes twice."""
    once = sign_all([narinfo(FOREIGN)], [FIRST, SECOND])
    assert sign_all(once, [SECOND, FIRST]) == once
    assert sign_all(once, []) == once
    assert sign_all(once, [FIRST, FIRST]) == once


@pytest.mark.parametrize("signer", [FIRST, SecretKey.generate(FIRST.name)], ids=["other build", "other key"])
def test_a_wrong_signature_of_our_name_is_replaced(signer: SecretKey) -> None:
    """Nix 2.8 takes the first of a name for the only one, and would refuse the path."""
    wrong = signer.sign("1;/nix/store/something-else")
    foreign, ours = sign(narinfo(wrong, FOREIGN), FIRST)
    assert foreign == FOREIGN
    assert FIRST.public_key.verify(fingerprint(narinfo()), ours)


def test_several_narinfos_keep_their_order() -> None:
    """References first stays references first, and each has a signature of its own."""
    unsigned = [store_object(seed).narinfo for seed in "abc"]
    signed = sign_all(iter(unsigned), [FIRST])
    assert [one.store_path for one in signed] == [one.store_path for one in unsigned]
    assert len({one.sigs for one in signed}) == len(unsigned)


def test_a_signature_that_does_not_verify_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken library is found here, and not by every client."""
    monkeypatch.setattr(SecretKey, "sign", lambda key, _fingerprint: Signature(key.name, bytes(64)))
    with pytest.raises(Error, match="made with key first-1 does not verify"):
        sign_all([narinfo()], [FIRST])


def test_what_is_published_has_no_more_signatures_than_readers_take() -> None:
    """Of a path that hundreds have signed, the own signature is not the one that is left out."""
    others = [Signature(f"other-{number}", bytes(64)) for number in range(300)]
    [signed] = sign_all([narinfo(*others)], [FIRST])
    assert len(signed.sigs) == MAX_SIGNATURES
    assert sign_all([replace(signed, sigs=(*signed.sigs[1:], *others, signed.sigs[0]))], [FIRST]) == [signed]
    assert NarInfo.parse(signed.render()) == signed


@pytest.mark.parametrize(
    ("keys", "recorded", "words"),
    [
        ([], [FIRST], None),
        ([FIRST], [], None),
        ([FIRST], [SECOND, FIRST], None),
        ([SECOND], [FIRST], "the signing key second-1 is not the one that the cache records (first-1)"),
        ([FIRST, SECOND], [FIRST], "the signing key second-1 is not the one"),
        ([SecretKey.generate("first-1")], [FIRST], "the signing key first-1 is not the one"),
        ([FIRST], [SecretKey.generate(str(one)) for one in range(5)], "(0, 1, 2 and 2 more)"),
    ],
)
def test_a_key_that_is_not_recorded(
    keys: list[SecretKey], recorded: list[SecretKey], words: str | None
) -> None:
    """Clients trust what a cache recorded first; each further key is in doubt."""
    doubt = doubt_new_keys([key.public_key for key in keys], [key.public_key for key in recorded])
    assert (doubt is None) == (words is None)
    assert doubt is None or words is None or words in doubt.what


@pytest.mark.parametrize("is_checked", [True, False])
def test_only_what_the_stager_checked_is_signed(*, is_checked: bool) -> None:
    """A signature vouches for a NarHash: nobody but the stager knows whether the NAR has it."""
    sent = narinfo(FOREIGN)
    info = PathInfo(sent.store_path, sent.nar_hash, sent.nar_size, sent.references)
    url = NarUrl.parse(sent.url)
    uploaded = Uploaded([sent], {url.blob: Descriptor(media_type.NAR, url.blob, 1)})
    options = PublishOptions(keys=(FIRST,))
    draft = make_draft(PublishPlan(push=(info,)), uploaded, {}, lambda _: (), options, lambda _: is_checked)
    names = [sig.key_name for sig in draft.narinfos[0].sigs]
    assert names == ([FOREIGN.key_name, FIRST.name] if is_checked else [FOREIGN.key_name])
