"""Media types and annotation keys.

Sources: OCI image specification, "Media Types" and "Annotations"; section 2 of docs/design.md for our own.
"""

# Manifests and image indexes, the preferred type first.
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFESTS = (IMAGE_MANIFEST, DOCKER_MANIFEST)

IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
IMAGE_INDEXES = (IMAGE_INDEX, DOCKER_MANIFEST_LIST)

EMPTY = "application/vnd.oci.empty.v1+json"

# The format in the registry, version 2.
SEGMENT = "application/vnd.nixcache.segment.v2"
TABLE = "application/vnd.nixcache.table.v2+zstd"
PACK = "application/vnd.nixcache.pack.v2"
NAR = "application/vnd.nix.nar"
NAR_XZ = "application/vnd.nix.nar+xz"
NAR_ZSTD = "application/vnd.nix.nar+zstd"

# Version 1: the one layer of its cache-index.
INDEX_V1 = "application/vnd.nix.cache.index.v1+json"

ANNOTATION_CREATED = "org.opencontainers.image.created"
ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
ANNOTATION_SOURCE = "org.opencontainers.image.source"

ANNOTATION_CONDEMNED = "dev.nixcache.condemned"
ANNOTATION_FORMAT = "dev.nixcache.format"
ANNOTATION_FORMER = "dev.nixcache.former"
ANNOTATION_IDLE = "dev.nixcache.idle"
ANNOTATION_KEEPS_LISTED = "dev.nixcache.keeps-listed"
ANNOTATION_MERGES = "dev.nixcache.merges"
ANNOTATION_PATHS = "dev.nixcache.paths"
ANNOTATION_TABLE = "dev.nixcache.table"
ANNOTATION_WATERMARK = "dev.nixcache.watermark"
