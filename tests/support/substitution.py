"""Whether a proxy really serves store paths: every byte of each is fetched, unpacked and hashed."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import zstandard

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import StorePath
from tests.support.proxy import ProxyProcess

_AT_ONCE = 8


def assert_substitutable(proxy: ProxyProcess, paths: Iterable[str]) -> None:
    """Fetch narinfo and NAR of every path, and hold it to its NarHash."""

    def check(text: str) -> None:
        path = StorePath.parse(text)
        answer = proxy.ask(f"/{path.hash_part}.narinfo")
        assert answer.status == 200, f"{path} is not listed"
        narinfo = NarInfo.parse(answer.body)
        body = proxy.ask(f"/{narinfo.url}").body
        if narinfo.compression == "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        assert NixHash(hashlib.sha256(body).digest()) == narinfo.nar_hash, f"{path} has other bytes"

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(check, paths))
