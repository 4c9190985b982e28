"""Descriptors point at content by type, digest and size, all three checked."""

import pytest
from hypothesis import given

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from tests.oci.strategies import descriptors

_DIGEST = "sha256:" + "ab" * 32
_FIELDS: dict[str, object] = {"mediaType": "text/plain", "digest": _DIGEST, "size": 5}


@given(descriptors)
def test_round_trip(descriptor: Descriptor) -> None:
    """Whatever can be made can be written and read back."""
    assert Descriptor.from_json(descriptor.to_json()) == descriptor


def test_unknown_fields_survive() -> None:
    """A rewrite carries over verbatim what it does not understand."""
    fields: dict[str, object] = {
        **_FIELDS,
        "annotations": {"key": "value"},
        "artifactType": "a/b",
        "platform": {"os": "linux", "os.features": ["x", None, 1.5]},
        "urls": ["https://example.org"],
    }
    assert Descriptor.from_json(fields).to_json() == fields


@pytest.mark.parametrize("name", ["mediaType", "digest", "size"])
def test_required_field(name: str) -> None:
    """A descriptor without one of the three points at nothing, and the error names which."""
    with pytest.raises(FormatError, match=rf"\A{name}: "):
        Descriptor.from_json({key: value for key, value in _FIELDS.items() if key != name})


def test_made_by_hand() -> None:
    """A descriptor is valid however it was made; equal ones count once in a set."""
    digest = Digest.parse(_DIGEST)
    for kind, size, name in (("text/plain", -1, "size"), ("text/plain", True, "size"), ("", 0, "mediaType")):
        with pytest.raises(FormatError, match=name):
            Descriptor(kind, digest, size)
    one, two = Descriptor.from_json(_FIELDS), Descriptor.from_json({**_FIELDS, "annotations": {"a": "b"}})
    assert len({one, two, Descriptor.from_json(_FIELDS)}) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("size", -1), ("size", 2**63), ("size", True), ("size", 5.0), ("size", "5")),
        *(("size", None), ("digest", "sha256:" + "AB" * 32), ("digest", "sha512:" + "ab" * 64)),
        *(("digest", "ab" * 32), ("digest", 7), ("digest", "sha256:" + "ab" * 32 + "\n")),
        *(("mediaType", ""), ("mediaType", "text"), ("mediaType", "text/plain\n")),
        *(("mediaType", "text/plain; charset=utf-8"), ("mediaType", ["text/plain"])),
        *(("artifactType", "text"), ("artifactType", 5), ("annotations", ["a"])),
        *(("annotations", {"a": 1}), ("annotations", {"a": None})),
    ],
)
def test_wrong_field(name: str, value: object) -> None:
    """What is malformed is refused, and the error names the field."""
    with pytest.raises(FormatError, match=rf"\A{name}: "):
        Descriptor.from_json({**_FIELDS, name: value})


@pytest.mark.parametrize("name", ["annotations", "artifactType"])
def test_null_is_absent(name: str) -> None:
    """Go programs write empty maps and lists as null."""
    assert Descriptor.from_json({**_FIELDS, name: None}) == Descriptor.from_json(_FIELDS)


def test_empty_config() -> None:
    """The empty config is the one that the specification prints."""
    assert EMPTY_CONFIG.to_json() == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    }
    EMPTY_CONFIG.digest.check(EMPTY_CONFIG_CONTENT)
