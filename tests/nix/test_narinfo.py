import base64
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import COMPRESSIONS, MAX_LINES, MAX_URL_CHARACTERS, NarInfo
from nixcache_oci.nix.signature import Signature
from tests.nix.samples import NARINFOS, narinfo_text, store_paths

_TEXT = narinfo_text("dependent")
_NARINFO = NarInfo.parse(_TEXT)
_HASH_PART = _NARINFO.store_path.hash_part
_PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)

sha256s = st.builds(NixHash, st.binary(min_size=32, max_size=32))
base_names = store_paths.map(lambda path: path.base_name)
signatures = st.builds(Signature, st.just("key-1"), st.binary(min_size=64, max_size=64))
sizes = st.integers(0, 2**64 - 1)
narinfos = st.builds(
    NarInfo,
    store_path=store_paths,
    url=_PRINTABLE.map(lambda text: f"nar/{text}"),
    compression=st.sampled_from(sorted(COMPRESSIONS)),
    nar_hash=sha256s,
    nar_size=sizes.filter(bool),
    file_hash=st.none() | sha256s,
    file_size=st.none() | sizes,
    references=st.lists(base_names, unique=True, max_size=4).map(tuple),
    deriver=st.none() | base_names,
    sigs=st.lists(signatures, unique=True, max_size=3).map(tuple),
    ca=st.none() | sha256s.map(lambda known: f"fixed:r:{known}"),
    extra=st.lists(
        st.tuples(_PRINTABLE.filter(lambda name: ":" not in name).map("X-".__add__), st.text())
    ).map(lambda fields: tuple((name, value) for name, value in fields if value.isprintable())),
)


def _changed(field: str, line: str) -> str:
    """Put this line, or none, in the place of a field's line; a field that is not there goes to the end."""
    lines = _TEXT[:-1].split("\n")
    numbers = [number for number, known in enumerate(lines) if known.startswith(f"{field}:")]
    number = numbers[0] if numbers else len(lines)
    return "".join(f"{kept}\n" for kept in [*lines[:number], *([line] if line else []), *lines[number + 1 :]])


@pytest.mark.parametrize("path", NARINFOS, ids=[path.stem for path in NARINFOS])
def test_what_nix_wrote_is_written_back_byte_for_byte(path: Path) -> None:
    """Clients see what nix copy would have written, whatever Nix that was read."""
    content = path.read_bytes()
    narinfo = NarInfo.parse(content)
    assert narinfo.render().encode() == content
    assert NarInfo.parse(content.decode()) == narinfo
    assert not narinfo.extra


@given(narinfos)
def test_what_is_written_is_read(narinfo: NarInfo) -> None:
    """Both directions agree, for any values."""
    assert NarInfo.parse(narinfo.render()) == narinfo


@given(narinfos)
def test_no_value_breaks_its_line(narinfo: NarInfo) -> None:
    """An empty line would forge a stanza of a table; a value with a newline would forge a field."""
    text = narinfo.render()
    assert text.endswith("\n")
    assert all(": " in line for line in text[:-1].split("\n"))
    assert "\n\n" not in text


def test_fields_are_read() -> None:
    """Each field lands where its name says."""
    assert _NARINFO.store_path.name == "dependent"
    assert _NARINFO.compression == "xz"
    assert _NARINFO.url.endswith(".nar.xz")
    assert (_NARINFO.file_size, _NARINFO.nar_size) == (244, 264)
    assert [reference.split("-")[1] for reference in _NARINFO.references] == ["text", "src", "plain"]
    assert _NARINFO.deriver == "bj99baqrf3vxymbg94ajsikcgkgd4l9r-dependent.drv"
    assert [signature.key_name for signature in _NARINFO.sigs] == ["fixtures-1"]
    assert _NARINFO.ca is None


@pytest.mark.parametrize(
    ("field", "read", "written"),
    [
        ("Compression", "", "Compression: bzip2"),
        ("Compression", "Compression: ", "Compression: bzip2"),
        *(("Deriver", "Deriver: unknown-deriver", ""), ("Deriver", "", ""), ("FileHash", "", "")),
        *(("FileSize", "", ""), ("References", "", "References: ")),
        (
            "References",
            f"References: {_HASH_PART}-b  {_HASH_PART}-a {_HASH_PART}-b ",
            f"References: {_HASH_PART}-b {_HASH_PART}-a",
        ),
        ("URL", "URL: https://example.org/nar/a.nar", "URL: https://example.org/nar/a.nar"),
        ("URL", "URL: nar/a:b?c=d:e", "URL: nar/a:b?c=d:e"),
        *(("URL", "URL: a?c=d:e", "URL: a?c=d:e"), ("CA", "CA: ", "")),
        ("System", "System: x86_64-linux", "System: x86_64-linux"),
        *(
            ("URL", "URL: /nar/a.nar", "URL: nar/a.nar"),
            ("URL", "URL: ./nar/a.nar", "URL: nar/a.nar"),
            ("NarSize", "NarSize: +264", "NarSize: 264"),
        ),
        ("FileHash", f"FileHash: sha512:{'0' * 128}", ""),
        *(("Of the future", "Of the future: 1", ""), ("Foo", "Foo:1", ""), (" ", ": 1", "")),
        *(("Foo", "Foo: \x01", ""), ("Sig", "Sig: ", ""), ("Sig", "Sig: name", "")),
        *(("Sig", "Sig: name:AAAA", ""), ("Sig", "Sig: name:!!!!", "")),
        ("Sig", f"Sig: my cache:{'A' * 86}==", ""),
        ("Sig", f"Sig: name:{'A' * 86}", f"Sig: name:{'A' * 86}=="),
    ],
)
def test_what_every_nix_takes_is_taken(field: str, read: str, written: str) -> None:
    """Lenient where Nix is."""
    assert NarInfo.parse(_changed(field, read)).render() == _changed(field, written)


@pytest.mark.parametrize("field", ["NarHash", "FileHash"])
def test_hashes_are_read_in_every_spelling_and_written_in_one(field: str) -> None:
    """What other writers spell differently is served as Nix spells it."""
    known = _NARINFO.nar_hash if field == "NarHash" else _NARINFO.file_hash
    assert known is not None
    encoded = base64.b64encode(known.digest).decode()
    for spelling in (f"sha256:{known.digest_hex}", f"sha256:{encoded}", f"sha256-{encoded}"):
        assert NarInfo.parse(_changed(field, f"{field}: {spelling}")).render() == _TEXT


@pytest.mark.parametrize("field", ["StorePath", "URL", "NarHash", "NarSize"])
def test_missing_fields_are_refused(field: str) -> None:
    """Nix stops without them, and without the space of empty References takes the next line for the value."""
    assert "\nReferences: \n" in dataclasses.replace(_NARINFO, references=()).render()
    with pytest.raises(FormatError, match=f"narinfo: {field} is missing"):
        NarInfo.parse(_changed(field, ""))


@pytest.mark.parametrize(
    "line",
    [
        *("StorePath: hello", "StorePath: /nix/store/{0}-dependent/bin", "URL: "),
        *("URL: //example.org/a.nar", "URL: nar/a b.nar", "URL: nar/\x01.nar", "URL: a:b.nar"),
        *("URL: file:///a.nar", "URL: https://", "URL: ?a", "Compression: zpaq", "NarHash: {0}"),
        *("NarHash: sha1:0000000000000000000000000000000000000000", "FileHash: sha256:"),
        *("NarSize: 0", "NarSize: -1", "NarSize: 1e3", "NarSize: 18446744073709551616"),
        *("FileSize: x", "References:", "References: hello", "References: /nix/store/{0}-a"),
        *("Deriver: ", "Deriver: /nix/store/{0}-a.drv", "no colon", "NarSize: 264\r", "\n"),
    ],
)
def test_what_some_nix_stops_at_is_refused(line: str) -> None:
    """A hard error in the client ends the user's build: better no narinfo than such a one."""
    text = _changed(line.partition(":")[0], line.format(_HASH_PART))
    with pytest.raises(FormatError):
        NarInfo.parse(text)


def test_urls_end() -> None:
    """How one is read takes time by its length, and no server takes a longer one."""
    longest = "nar/" + "%25" * ((MAX_URL_CHARACTERS - 4) // 3)
    assert NarInfo.parse(_changed("URL", f"URL: {longest}")).url == longest
    with pytest.raises(FormatError, match="characters, over the limit"):
        NarInfo.parse(_changed("URL", f"URL: {longest}%25"))


@pytest.mark.parametrize(
    "text",
    [
        *(f"{_TEXT}CA: {ca}\n" for ca in ("abc", "nar:sha256:abc", "fixed:sha256:x", "text:git:x")),
        f"{_TEXT}CA: fixed:r:sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=\n",
        *(f"{line}\n{_TEXT}" for line in ("NarHash: sha256:", "NarSize: x", "StorePath: hello", "Deriver: ")),
        f"References: {_HASH_PART}-a\n{_TEXT}",
        f"{_TEXT}CA: text:sha256:{'0' * 52}\nCA: text:sha256:{'0' * 52}\n",
    ],
)
def test_a_line_at_which_nix_stops_is_not_hidden_by_a_later_one(text: str) -> None:
    """It reads from the top, stops at a second References or CA line, and at a CA that it does not know."""
    with pytest.raises(FormatError):
        NarInfo.parse(text)


def test_of_two_lines_of_a_field_the_last_counts() -> None:
    """As for Nix, 2.8 and 2.34: a writer that repeats itself is no reason to build."""
    for line in _TEXT[:-1].split("\n"):
        if not line.startswith(("References:", "Sig:", "CA:")):
            name = line.partition(":")[0]
            other = {"StorePath": f"/nix/store/{_HASH_PART}-other", "NarHash": f"sha256:{'0' * 52}"}
            before = f"{name}: {other[name]}\n" if name in other else f"{line}\n"
            assert NarInfo.parse(before + _TEXT).render() == _TEXT, name
    assert NarInfo.parse(f"References: \n{_TEXT}").render() == _TEXT


def test_bytes_that_are_no_text_are_left_out_where_nix_skips_them() -> None:
    """A comment in another encoding does not hide a path; in a field that counts, it is an error."""
    assert NarInfo.parse(_TEXT.encode() + b"Comment: caf\xe9\n").render() == _TEXT
    with pytest.raises(FormatError):
        NarInfo.parse(_TEXT.encode().replace(b"URL: ", b"URL: \xe9"))


@pytest.mark.parametrize(
    "text", ["", "\n", b"\xff\n", _TEXT[:-1], f"{_TEXT}\n", f"\n{_TEXT}", _TEXT.replace("\n", "\r\n")]
)
def test_broken_lines_are_refused(text: str | bytes) -> None:
    """Every line ends in a newline, the last too, and none is empty."""
    with pytest.raises(FormatError, match="narinfo"):
        NarInfo.parse(text)


@pytest.mark.parametrize(
    "values",
    [
        *({"url": "nar/a\nSig: b"}, {"extra": (("a", "b\nc: d"),)}, {"extra": (("a\nb", "c"),)}),
        *({"extra": (("URL", "elsewhere"),)}, {"references": ("a\nb",)}, {"deriver": ""}),
        *({"ca": "fixed:a\nb"}, {"nar_size": 0}, {"file_size": -1}),
        *({"nar_hash": NixHash(bytes(20), "sha1")}, {"file_hash": NixHash(bytes(20), "sha1")}),
    ],
)
def test_a_narinfo_is_right_by_construction(values: dict[str, Any]) -> None:
    """No code can make one that a client would stop at, or that forges a line."""
    with pytest.raises(FormatError):
        dataclasses.replace(_NARINFO, **values)


@pytest.mark.parametrize("line", ["X-{}: ", f"Sig: key-{{}}:{'A' * 86}=="])
def test_a_narinfo_has_a_bounded_number_of_lines(line: str) -> None:
    """Each line costs its reader time: 1 MiB has room for 10,000 signatures, and for 200,000 fields."""
    lines = [line.format(number) for number in range(2 * MAX_LINES)]
    left = MAX_LINES - _TEXT.count("\n")
    NarInfo.parse(_TEXT + "".join(f"{one}\n" for one in lines[:left]))
    with pytest.raises(FormatError, match=f"over the limit of {MAX_LINES}"):
        NarInfo.parse(_TEXT + "".join(f"{one}\n" for one in lines[: left + 1]))
