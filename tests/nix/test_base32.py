import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.nix import base32


@given(st.binary(max_size=100))
def test_what_is_encoded_decodes(data: bytes) -> None:
    """Both directions agree for bytes of any length."""
    text = base32.encode(data)
    assert base32.decode(text) == data
    assert len(text) == base32.encoded_length(len(data))


@given(st.text(alphabet=base32.ALPHABET, max_size=60))
def test_each_value_has_one_spelling(text: str) -> None:
    """What is read is written back in the same letters: no two hash parts name one object."""
    try:
        data = base32.decode(text)
    except FormatError:
        return
    assert base32.encode(data) == text


@pytest.mark.parametrize(
    ("hexadecimal", "text"),
    [
        ("", ""),
        ("1f", "0z"),
        ("ff", "7z"),
        ("0100000000000000000000000000000000000000", "00000000000000000000000000000001"),
        (
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
        ),
    ],
)
def test_the_letters_are_those_of_nix(hexadecimal: str, text: str) -> None:
    """The last five bits of the first byte are the last letter."""
    assert base32.encode(bytes.fromhex(hexadecimal)) == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        *(("0e", "letters"), ("0Z", "letters"), ("0z\n", "letters"), ("\u0660z", "letters")),
        *(("z", "nothing has "), ("000", "nothing has "), ("zz", "not zero"), ("8z", "not zero")),
    ],
)
def test_bad_text_is_refused(text: str, rule: str) -> None:
    """Letters outside the alphabet, impossible lengths and lost bits are errors."""
    with pytest.raises(FormatError, match=rule):
        base32.decode(text)
