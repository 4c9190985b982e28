"""The verb ``demo``: a cache from nothing, in a folder that is thrown away, served until Ctrl-C."""

import argparse
import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import zstandard

from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.pack import PackBuilder
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.cli.compose import opened, run_async, start_logging
from nixcache_oci.cli.console import say
from nixcache_oci.cli.verb import DONE
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import Error
from nixcache_oci.nix.content_address import ContentAddress, Method
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import Directory, File, Symlink, dump_tree
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, SecretKey, fingerprint
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.proxy.cache_set import ConfiguredCache
from nixcache_oci.proxy.config import MIN_PACK_MEMORY_BYTES, ProxyConfig
from nixcache_oci.proxy.server import run_proxy
from nixcache_oci.proxy.systemd import Notifier
from nixcache_oci.settings.values import Values

_SAMPLE_NAME = "nixcache-oci-sample"
_SAMPLE_TREE = Directory(
    {
        b"README": File(
            b"This store object was computed, packed and signed by nixcache-oci itself.\n"
            b"It came to you out of an OCI repository.\n"
        ),
        b"bin": Directory(
            {b"hello": File(b'#!/bin/sh\necho "Hello from an OCI repository."\n', executable=True)}
        ),
        b"hello": Symlink(b"bin/hello"),
    }
)
_STORE_DIR = "/nix/store"
_KEY_NAME = "nixcache-oci-demo-1"
_FETCH_WITHOUT_CURL = (
    "python3 -c 'import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())'"
)

DESCRIPTION = (
    "Publish a sample to a cache in a throw-away folder, serve it on a free port of this machine, and print "
    "what to try. Needs neither Nix nor a registry; Ctrl-C ends it and leaves nothing behind."
)


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Describe no arguments."""


def run(values: Values) -> int:
    """Serve until a signal ends it."""
    start_logging(values, serves_strangers=True)
    try:
        folder = tempfile.TemporaryDirectory(prefix="nixcache-oci-demo-")
    except OSError as error:
        raise Error(
            f"cannot make a temporary folder: {error.strerror}; set TMPDIR to a writable one"
        ) from None
    with folder as name:
        run_async(_demo(Path(name), values))
    return DONE


async def _demo(folder: Path, values: Values) -> None:
    key = SecretKey.generate(_KEY_NAME)
    async with opened(folder / "cache", values) as repository:
        sample = await _publish_sample(repository, key)
        config = ProxyConfig(
            listen="127.0.0.1",
            port=0,
            upstreams=(),
            index_ttl_seconds=300,
            index_dir=folder / "index",
            pack_memory_bytes=MIN_PACK_MEMORY_BYTES,
            priority=30,
            store_dir=_STORE_DIR,
            upstream_nars="stream",
            hosts=frozenset(),
        )
        cache = ConfiguredCache(repository, public_keys=(key.public_key,))

        def announce(addresses: Sequence[str]) -> None:
            say(*_what_to_try(addresses[0], sample, key.public_key, folder / "cache").splitlines(), "")

        await run_proxy(config, [cache], activated_sockets=(), notify=Notifier(""), announce=announce)
    say("The demo is over; its folder is removed.")


async def _publish_sample(repository: Repository, key: SecretKey) -> NarInfo:
    narinfo, nar = make_sample(_STORE_DIR)
    compressed = zstandard.ZstdCompressor().compress(nar)
    builder = PackBuilder()
    builder.add(
        replace(
            narinfo,
            compression="zstd",
            file_hash=NixHash(hashlib.sha256(compressed).digest()),
            file_size=len(compressed),
            sigs=(key.sign(fingerprint(narinfo)),),
        ),
        compressed,
    )
    pack = builder.finish()
    await repository.push_blob(pack.digest, pack.content)
    header = TableHeader(datetime.now(UTC), public_keys=(str(key.public_key),))
    segment = await push_segment(
        repository,
        Table(header, (), pack.narinfos),
        [Descriptor(media_type.PACK, pack.digest, len(pack.content))],
    )
    await list_segments(repository, [segment])
    return pack.narinfos[0]


def make_sample(store_dir: str) -> tuple[NarInfo, bytes]:
    """Compute the sample, content-addressed as ``nix store add-path`` would add it: no Nix is needed.

    Returns:
        Its narinfo, not yet pointing at any blob, and its NAR.
    """
    nar = b"".join(dump_tree(_SAMPLE_TREE))
    nar_hash = NixHash(hashlib.sha256(nar).digest())
    address = ContentAddress(Method.NAR, nar_hash)
    narinfo = NarInfo(
        store_path=address.store_path(_SAMPLE_NAME, (), store_dir),
        url=f"nar/{nar_hash.digest_hex}.nar",
        compression="none",
        nar_hash=nar_hash,
        nar_size=len(nar),
        ca=str(address),
    )
    return narinfo, nar


def _what_to_try(address: str, sample: NarInfo, public_key: PublicKey, cache: Path) -> str:
    path = sample.store_path
    key = shlex.quote(str(public_key))
    fetch = "curl" if shutil.which("curl") is not None else _FETCH_WITHOUT_CURL
    return f"""\
A cache with one store object is served at {address}

Its narinfo:
  {fetch} {address}/{path.hash_part}.narinfo

What an operator sees:
  {fetch} {address}/_status

Into a store of its own, where Nix is installed (nothing of this machine's store is touched):
  nix-store --store "$(mktemp -d)" --option substituters {address} --option substitute true \\
    --option trusted-public-keys {key} -r {path}

The cache is an OCI layout in {cache}: skopeo and oras copy it to any registry.
Ctrl-C ends the demo.
"""
