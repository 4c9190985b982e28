"""What ``verify`` of a healthy cache costs, against a local docker-registry.

Once with small NARs, which lie in packs, and once with each NAR a blob of its own.
"""

import contextlib
import io
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from bench.figures import Series, Target
from bench.scenario import OURS, Bench, Measurement
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.nar_url import describe_nar
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.cli.main import main as run_verb
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.support.docker_registry import DockerRegistry
from tests.support.journey import push_with
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import CREATED, StoreObject, publish
from tests.support.registries import REPO, RunningRegistry

TITLE = "verify of a healthy cache, from a local registry"

_PATHS = 10_000
_QUICK_PATHS = 500
_PATHS_OF_A_SEGMENT = 1_000
_NAR_BYTES = 2_000
_LIMIT_SECONDS = 30
_REQUEST = re.compile(r"http\.request\.method=(\w+)")


def run(bench: Bench) -> None:
    """Fill a cache of each shape, and verify it as often as there are rounds."""
    paths = _QUICK_PATHS if bench.is_quick else _PATHS
    key = SecretKey.generate("bench-1")
    for shape in ("packs", "single blobs"):
        seconds = Series(f"{paths:,} paths in {shape}", "s")
        requests = Series(f"requests for {paths:,} paths in {shape}", "1")
        with DockerRegistry(auth=False) as registry, tempfile.TemporaryDirectory() as folder:
            running = RunningRegistry(registry, "nobody", "nothing")
            filling = partial(_fill, data=registry.data, paths=paths, key=key, in_packs=shape == "packs")
            push_with(running, filling)
            settings = {**running.settings, "NIXCACHE_INDEX_DIR": folder, "NIXCACHE_UPSTREAM": ""}
            bench.compare({OURS: partial(_verify, registry, settings, seconds, requests)})
        bench.expect(Target(seconds, OURS, _LIMIT_SECONDS))


def _verify(
    registry: DockerRegistry, settings: dict[str, str], seconds: Series, requests: Series
) -> Measurement:
    os.environ |= settings
    before = len(_REQUEST.findall(registry.log))
    began = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        status = run_verb(["verify"])
    if status:
        raise RuntimeError(f"verify ended with {status}")
    return {
        seconds: time.monotonic() - began,
        requests: len(_REQUEST.findall(registry.log)) - before,
    }


async def _fill(client: Repository, *, data: Path, paths: int, key: SecretKey, in_packs: bool) -> None:
    segments = []
    for number, objects in enumerate(_objects(paths)):
        signed = [one.signed(key) for one in objects]
        created = CREATED + timedelta(minutes=number)
        if in_packs:
            segments.append(await publish(client, signed, created=created, keys=[key], is_listed=False))
            continue
        narinfos, layers = [], []
        for one in signed:
            narinfo, content = one.compressed()
            digest = Digest.of(content)
            _put_blob(data, digest, content)
            narinfos.append(narinfo)
            layers.append(describe_nar(digest, narinfo.compression, len(content)))
        header = TableHeader(created, public_keys=(str(key.public_key),))
        segments.append(await push_segment(client, Table(header, (), tuple(narinfos)), layers))
    await list_segments(client, segments)


def _put_blob(data: Path, digest: Digest, content: bytes) -> None:
    """Put a blob where docker-registry keeps it: to send 10,000 of them would take minutes."""
    storage = data / "docker" / "registry" / "v2"
    blob = storage / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    link = storage / "repositories" / REPO / "nix-cache" / "_layers" / "sha256" / digest.hex
    for folder, name, written in ((blob, "data", content), (link, "link", str(digest).encode())):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written)


def _objects(paths: int) -> Iterator[Sequence[StoreObject]]:
    """Make objects of random bytes, each of which refers to four earlier ones."""
    for start in range(0, paths, _PATHS_OF_A_SEGMENT):
        objects = []
        for number in range(start, min(paths, start + _PATHS_OF_A_SEGMENT)):
            earlier = sorted({max(0, number - back) for back in range(4)})
            references = tuple(f"{hash_part_of(str(other))}-object-{other}" for other in earlier)
            one = store_object(str(number), contents=random.Random(number).randbytes(_NAR_BYTES))
            objects.append(replace(one, narinfo=replace(one.narinfo, references=references)))
        yield objects
