"""Image indexes: what is not understood survives a rewrite."""

import json
from dataclasses import replace

import pytest
from hypothesis import given

from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.manifest import ImageIndex, parse_media_type
from tests.oci.strategies import image_indexes

# index.json of a layout, written by skopeo 1.9.3: copy oci:… oci:…
_SKOPEO = (
    b'{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:'
    b'5f9931b272d4a7eb17f2a4d62bcd1e3d632da49a8eebdcdd32f7b31d568951c2","size":479,"annotations":{"org.opencontai'
    b'ners.image.ref.name":"segment-1"}},{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:'
    b'f3df898be0cb3f4e47c6852c3c34ea87a3d933455dea2becbe77a2ad0b4652ca","size":323,"annotations":{"org.opencontai'
    b'ners.image.ref.name":"cache-index"}}]}'
)
_DESCRIPTOR = {"mediaType": "text/plain", "digest": "sha256:" + "ab" * 32, "size": 5}


@given(image_indexes)
def test_round_trip(index: ImageIndex) -> None:
    """Whatever can be made can be written and read back."""
    assert ImageIndex.parse(index.render()) == index


@given(image_indexes, image_indexes)
def test_what_is_known_changes_nothing(index: ImageIndex, known: ImageIndex) -> None:
    """An index is read as it is written, whatever was known before."""
    assert ImageIndex.parse(index.render(), (*index.manifests, *known.manifests)) == index


@pytest.mark.parametrize(
    "change",
    [{"size": True}, {"size": 1.0}, {"mediaType": "text/html"}, {"annotations": {"a": "b"}}, {"x": 1}],
)
def test_a_descriptor_that_is_known_otherwise_is_read_anew(change: dict[str, object]) -> None:
    """The same digest is not the same descriptor: gc marks one by its annotations."""
    content = json.dumps({"schemaVersion": 2, "manifests": [{**_DESCRIPTOR, "size": 1}]}).encode()
    known = ImageIndex.parse(content).manifests
    assert ImageIndex.parse(content, known).manifests[0] is known[0]
    changed = json.dumps({"schemaVersion": 2, "manifests": [{**_DESCRIPTOR, "size": 1, **change}]}).encode()
    if "size" in change:
        with pytest.raises(FormatError, match="size"):
            ImageIndex.parse(changed, known)
        return
    [read] = ImageIndex.parse(changed, known).manifests
    assert read == ImageIndex.parse(changed).manifests[0] != known[0]


def test_skopeo_index() -> None:
    """What skopeo writes is read, and written again with the same content."""
    index = ImageIndex.parse(_SKOPEO)
    assert [each.annotations[media_type.ANNOTATION_REF_NAME] for each in index.manifests] == [
        "segment-1",
        "cache-index",
    ]
    assert [each.size for each in index.manifests] == [479, 323]
    assert json.loads(index.render()) == json.loads(_SKOPEO)
    assert parse_media_type(_SKOPEO) == media_type.IMAGE_INDEX


def test_everything_is_carried_over() -> None:
    """A writer that changes one annotation leaves all that it does not know as it was."""
    fields = {
        "schemaVersion": 2,
        "mediaType": media_type.DOCKER_MANIFEST_LIST,
        "artifactType": "a/b",
        "subject": _DESCRIPTOR,
        "manifests": [{**_DESCRIPTOR, "platform": {"os": "linux"}, "future": [1, {"x": None}]}],
        "annotations": {"a": "b"},
        "x-future": {"deep": [True, 1.5, "\u00e9\ud800"]},
    }
    index = ImageIndex.parse(json.dumps(fields).encode())
    changed = replace(index, annotations={**index.annotations, "c": "d"})
    assert json.loads(changed.render()) == {**fields, "annotations": {"a": "b", "c": "d"}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "schemaVersion: "),
        ({"schemaVersion": 2}, "manifests: is missing"),
        ({"schemaVersion": 2, "manifests": {}}, "manifests: expected a list"),
        ({"schemaVersion": 2, "manifests": [{}]}, r"manifests\[0\]: mediaType: is missing"),
        ({"schemaVersion": 2, "manifests": [], "layers": []}, "layers: does not belong in"),
        ({"schemaVersion": 2, "manifests": [], "config": {}}, "config: does not belong in"),
        ({"schemaVersion": 2, "manifests": [], "mediaType": media_type.IMAGE_MANIFEST}, "mediaType: "),
    ],
)
def test_damage_is_not_emptiness(fields: dict[str, object], message: str) -> None:
    """An index that lost its list must never be taken for one that lists nothing."""
    with pytest.raises(FormatError, match=rf"\Aimage index: {message}"):
        ImageIndex.parse(json.dumps(fields).encode())


def test_empty() -> None:
    """A new layout starts with exactly these bytes; Go programs write an empty list as null."""
    assert ImageIndex(()).render() == (
        b'{"manifests":[],"mediaType":"application/vnd.oci.image.index.v1+json","schemaVersion":2}'
    )
    assert ImageIndex.parse(b'{"schemaVersion":2,"manifests":null}').manifests == ()
