"""skopeo, an independent client of registries, and an image to give it."""

import json
import subprocess
from pathlib import Path

from nixcache_oci.oci.digest import Digest
from tests.support.programs import require_program

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def manifest_of(*layers: bytes, annotation: str = "") -> bytes:
    """Render an image manifest with the config ``{}`` and these layers."""
    descriptors = [
        {"mediaType": "application/octet-stream", "digest": str(Digest.of(each)), "size": len(each)}
        for each in (b"{}", *layers)
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": descriptors[0],
        "layers": descriptors[1:],
        "annotations": {"test": annotation},
    }
    return json.dumps(document).encode()


def write_layout(folder: Path, layer: bytes) -> None:
    """Write an OCI image layout with one image, tagged ``one``."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    content = manifest_of(layer)
    for each in (b"{}", layer, content):
        (blobs / Digest.of(each).hex).write_bytes(each)
    descriptor = {
        "mediaType": IMAGE_MANIFEST,
        "digest": str(Digest.of(content)),
        "size": len(content),
        "annotations": {"org.opencontainers.image.ref.name": "one"},
    }
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def layout_blobs(folder: Path) -> set[str]:
    """The hex digests of all that lies in a layout."""
    return {path.name for path in (folder / "blobs/sha256").iterdir()}


def skopeo_copy(source: str, destination: str, *options: str) -> None:
    """Copy over plain HTTP."""
    command = [require_program("skopeo"), "--insecure-policy", "copy", "--quiet", *options]
    command += ["--src-tls-verify=false", "--dest-tls-verify=false", source, destination]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode:
        raise RuntimeError(f"skopeo copy {source} {destination}: {result.stderr}")
