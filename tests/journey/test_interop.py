"""Independent clients read what we wrote, and what they copied is still a cache."""

import subprocess
from pathlib import Path

import oras.client
import pytest

from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.support.docker_registry import DockerRegistry
from tests.support.journey import put
from tests.support.objects import store_object
from tests.support.programs import require_program
from tests.support.proxy import ProxyProcess
from tests.support.registries import REPO, RunningRegistry

pytestmark = pytest.mark.needs("docker-registry")


def test_oras_finds_the_index_the_segment_and_its_blobs(key: SecretKey) -> None:
    """What we push are plain OCI artifacts, not something that only we can read."""
    with DockerRegistry(auth=False) as server:
        put(RunningRegistry(server, "nobody", "nothing"), [store_object("one")], [key])
        client = oras.client.OrasClient(insecure=True)
        name = f"{server.host}/{REPO}/nix-cache"
        [segment_tag] = [tag for tag in client.get_tags(name) if tag.startswith("segment-")]
        manifest = client.get_manifest(f"{name}:{segment_tag}")
        assert manifest["artifactType"] == "application/vnd.nixcache.segment.v2"
        for layer in manifest["layers"]:
            content = client.get_blob(name, layer["digest"]).content
            assert str(Digest.of(content)) == layer["digest"]


@pytest.mark.needs("skopeo")
def test_a_cache_that_skopeo_copied_is_served_whole(key: SecretKey, tmp_path: Path) -> None:
    """Following ``cache-index``, a common copier takes everything that the index lists, digests unchanged."""
    objects = [store_object(f"object-{number}") for number in range(5)]
    objects.append(store_object("large", contents=bytes(range(256)) * 8000))
    with DockerRegistry(auth=False) as server:
        put(RunningRegistry(server, "nobody", "nothing"), objects, [key])
        source = f"docker://{server.host}/{REPO}/nix-cache:cache-index"
        copied = tmp_path / "copied"
        command = [require_program("skopeo"), "copy", "--all", "--src-tls-verify=false", source]
        subprocess.run([*command, f"oci:{copied}:cache-index"], check=True, capture_output=True)
    with ProxyProcess(tmp_path / "proxy", NIXCACHE_REGISTRY=f"oci:{copied}") as proxy:
        assert proxy.wait_ready()["entries"] == len(objects)
        for one in objects:
            narinfo = NarInfo.parse(proxy.ask(f"/{one.narinfo.store_path.hash_part}.narinfo").body)
            answer = proxy.ask(f"/{narinfo.url}")
            assert narinfo.file_hash is not None
            assert Digest.of(answer.body).hex == narinfo.file_hash.digest_hex
