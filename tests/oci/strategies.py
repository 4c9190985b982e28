"""Hypothesis strategies for what manifests are made of."""

from hypothesis import strategies as st

from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import ImageIndex, Manifest

digests = st.binary(min_size=32, max_size=32).map(lambda raw: Digest(raw.hex()))
media_types = st.from_regex(r"[a-z0-9]{1,9}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,20}", fullmatch=True)
texts = st.text(max_size=12)
annotations = st.dictionaries(texts, texts, max_size=4)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
extras = st.dictionaries(texts.map("x-{}".format), json_values, max_size=3)
descriptors = st.builds(
    Descriptor,
    media_type=media_types,
    digest=digests,
    size=st.integers(0, 2**63 - 1),
    annotations=annotations,
    artifact_type=st.none() | media_types,
    extra=extras,
)
descriptor_tuples = st.lists(descriptors, max_size=4).map(tuple)
manifests = st.builds(
    Manifest,
    artifact_type=st.none() | media_types,
    config=descriptors,
    layers=descriptor_tuples,
    annotations=annotations,
    media_type=st.none() | st.sampled_from(media_type.MANIFESTS),
)
image_indexes = st.builds(
    ImageIndex,
    manifests=descriptor_tuples,
    annotations=annotations,
    media_type=st.none() | st.sampled_from(media_type.IMAGE_INDEXES),
    extra=extras,
)
