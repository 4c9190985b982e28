"""Image manifests, ours and those of other programs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import MAX_MANIFEST_BYTES, Manifest, parse_media_type
from tests.oci.strategies import manifests

_GENERAL = ("", "application/json", "application/octet-stream", "text/plain; charset=utf-8")
_TABLE = Descriptor(media_type.TABLE, Digest.of(b"table"), 5)
_SEGMENT = Manifest(media_type.SEGMENT, EMPTY_CONFIG, (_TABLE,), {media_type.ANNOTATION_PATHS: "1"})

# Written by skopeo 1.9.3: copy --format v2s2 oci:… dir:…
_DOCKER = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType"'
    b':"application/vnd.docker.container.image.v1+json","size":159,"digest":"sha256:01cad59f119718c9e2541f9169e5b'
    b'e2fa5c10d0868a539aeaa0590f87f9cd5ce"},"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar'
    b'.gzip","size":100,"digest":"sha256:371a64ceca0c2a1e709beea40214cc3b3f9341c64a392fd44182feac610d1dcc"}]}'
)
_DIGEST = "sha256:" + "ab" * 32
_DESCRIPTOR: dict[str, object] = {"mediaType": "text/plain", "digest": _DIGEST, "size": 5}
_FIELDS: dict[str, object] = {"schemaVersion": 2, "config": _DESCRIPTOR, "layers": [_DESCRIPTOR]}


def _json(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode()


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    """Whatever can be made can be written and read back."""
    assert Manifest.parse(manifest.render()) == manifest


def test_exact_bytes() -> None:
    """A manifest's digest is its name: equal ones are the same bytes, in every version of this program."""
    assert _SEGMENT.render() == (
        b'{"annotations":{"dev.nixcache.paths":"1"},"artifactType":"application/vnd.nixcache.segment.v2",'
        b'"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",'
        b'"mediaType":"application/vnd.oci.empty.v1+json","size":2},"layers":[{'
        b'"digest":"sha256:0d4fc4a78d3706edccafb665a8b2fdd9309e82c78625bb0f2b8e7bb9e1c4d21c",'
        b'"mediaType":"application/vnd.nixcache.table.v2+zstd","size":5}],'
        b'"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
    )


def test_docker_manifest() -> None:
    """Images that Docker's own tools pushed are read like all others."""
    manifest = Manifest.parse(_DOCKER)
    assert manifest.media_type == media_type.DOCKER_MANIFEST
    assert manifest.artifact_type is None
    assert manifest.config.size == 159
    assert [layer.size for layer in manifest.layers] == [100]
    assert json.loads(manifest.render()) == json.loads(_DOCKER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schemaVersion": 1}, "schemaVersion: expected 2, got 1"),
        ({"schemaVersion": True}, "schemaVersion: expected 2, got True"),
        ({"schemaVersion": None}, "schemaVersion"),
        ({"mediaType": media_type.IMAGE_INDEX}, "mediaType: expected"),
        ({"mediaType": 2}, "mediaType: expected a string"),
        ({"manifests": []}, "manifests: does not belong in"),
        ({"config": None}, "config: expected an object, got None"),
        ({"config": {**_DESCRIPTOR, "size": -1}}, "config: size: "),
        ({"layers": {}}, "layers: expected a list, got dict"),
        ({"layers": [_DESCRIPTOR, 7]}, r"layers\[1\]: expected an object, got 7"),
        ({"layers": [{**_DESCRIPTOR, "digest": "x"}]}, r"layers\[0\]: digest: "),
        ({"artifactType": []}, "artifactType: expected a string, got list"),
        ({"annotations": {"a": 1}}, "annotations: 'a': expected a string, got 1"),
    ],
)
def test_wrong_field(change: dict[str, object], message: str) -> None:
    """The error says where in the document the trouble is."""
    assert Manifest.parse(_json(_FIELDS)).layers[0].size == 5
    with pytest.raises(FormatError, match=rf"\Amanifest: {message}"):
        Manifest.parse(_json({**_FIELDS, **change}))


def test_missing_fields() -> None:
    """A manifest that lists nothing is not one without layers."""
    with pytest.raises(FormatError, match="layers: is missing"):
        Manifest.parse(_json({"schemaVersion": 2, "config": _DESCRIPTOR}))
    assert Manifest.parse(_json({**_FIELDS, "layers": None})).layers == ()


def test_too_large() -> None:
    """Reading a manifest costs a bounded amount of memory."""
    padding = b" " * (MAX_MANIFEST_BYTES - len(_SEGMENT.render()))
    assert Manifest.parse(_SEGMENT.render() + padding) == _SEGMENT
    with pytest.raises(FormatError, match="limit"):
        Manifest.parse(_SEGMENT.render() + padding + b" ")


@pytest.mark.parametrize("stated", _GENERAL)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mediaType": media_type.IMAGE_INDEX}, media_type.IMAGE_INDEX),
        ({"mediaType": media_type.DOCKER_MANIFEST_LIST}, media_type.DOCKER_MANIFEST_LIST),
        ({"mediaType": media_type.IMAGE_MANIFEST}, media_type.IMAGE_MANIFEST),
        ({"mediaType": media_type.DOCKER_MANIFEST}, media_type.DOCKER_MANIFEST),
        ({"manifests": []}, media_type.IMAGE_INDEX),
        ({"layers": []}, media_type.IMAGE_MANIFEST),
    ],
)
def test_own_media_type(stated: str, fields: dict[str, object], expected: str) -> None:
    """Where the repository says nothing useful, the document tells what it is."""
    assert parse_media_type(_json(fields), stated) == expected


@given(st.sampled_from(media_type.MANIFESTS + media_type.IMAGE_INDEXES), st.booleans())
def test_stated_media_type(stated: str, says_so: bool) -> None:
    """What the repository states counts where the document does not contradict."""
    content = _json({"mediaType": stated} if says_so else {})
    assert parse_media_type(content, stated.upper() + "; charset=utf-8") == stated


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({"mediaType": media_type.IMAGE_INDEX}, media_type.IMAGE_MANIFEST),
        ({"mediaType": media_type.IMAGE_MANIFEST}, media_type.IMAGE_INDEX),
        ({"mediaType": media_type.IMAGE_MANIFEST}, media_type.DOCKER_MANIFEST),
        ({"mediaType": media_type.IMAGE_MANIFEST, "manifests": []}, ""),
        ({"mediaType": media_type.IMAGE_INDEX, "layers": []}, ""),
        *(({"layers": [], "manifests": []}, ""), ({"layers": []}, media_type.IMAGE_INDEX)),
        *(({"config": {}}, media_type.IMAGE_INDEX), ({"manifests": []}, media_type.IMAGE_MANIFEST)),
        ({"mediaType": "text/plain", "layers": []}, ""),
        ({"mediaType": "text/plain", "layers": []}, media_type.IMAGE_MANIFEST),
        *(({"mediaType": 7, "layers": []}, ""), ({}, ""), ({"version": 1, "entries": {}}, "")),
    ],
)
def test_ambiguous_documents(fields: dict[str, object], stated: str) -> None:
    """A document that could be read as both, or as neither, is refused (CVE-2021-41190)."""
    with pytest.raises(FormatError, match=r"\Amanifest or image index: "):
        parse_media_type(_json(fields), stated)
