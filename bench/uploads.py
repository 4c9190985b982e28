"""``nix copy --to`` the proxy, beside the same to nginx with WebDAV, which keeps files and checks nothing.

What the proxy and nginx keep lies in TMPDIR, or where UPLOADS_FOLDER says: nginx waits for no disk, and the
proxy does, before it answers to a narinfo.
"""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from bench.figures import Series, Target
from bench.nginx import nginx
from bench.places import Client, find_clients
from bench.scenario import OURS, Bench, Measurement
from nixcache_oci.nix.signature import SecretKey
from tests.support.nix import NixSandbox
from tests.support.uploads import UploadProxy, upload_settings

TITLE = "uploads of many small paths, and of a large one"

_SMALL_BYTES = 20_000
_DAV = "nginx with WebDAV"
_MB = 1_000_000


class _Copies:
    """Copies paths to empty caches."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()

    def to_proxy(self, client: Client, paths: Sequence[str], series: Series) -> Measurement:
        """Copy to a proxy that has nothing; it signs, and would publish later."""
        with self._place() as place:
            settings = upload_settings(place / "cache", SecretKey.generate("bench-1"))
            settings["NIXCACHE_UPLOAD_QUIET"] = "60"
            with UploadProxy(place / "proxy", **settings) as proxy:
                proxy.wait_ready()
                return self._time(client, proxy.url_with_password, paths, series)

    def to_nginx(self, client: Client, paths: Sequence[str], series: Series) -> Measurement:
        """Copy to nginx."""
        with self._place() as place:
            (place / "dav").mkdir(parents=True)
            server = (
                f"root {place / 'dav'}; client_max_body_size 0; dav_methods PUT; create_full_put_path on;"
            )
            with nginx(place / "nginx", server) as address:
                return self._time(client, f"http://{address}", paths, series)

    def _time(self, client: Client, url: str, paths: Sequence[str], series: Series) -> Measurement:
        begun = time.monotonic()
        client.nix.copy_to(f"{url}?compression=zstd", paths).check()
        return {series: time.monotonic() - begun}

    @contextmanager
    def _place(self) -> Iterator[Path]:
        place = self._folder / str(next(self._numbers))
        yield place
        shutil.rmtree(place)


def run(bench: Bench) -> None:
    """Measure with each version of Nix."""
    paths_count, large_bytes = (100, 100 * _MB) if bench.is_quick else (1000, 1000 * _MB)
    kept = os.environ.get("UPLOADS_FOLDER")
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory(dir=kept) as kept_name:
        nix = NixSandbox(Path(name) / "nix")
        small = nix.build_paths(paths_count, size=_SMALL_BYTES)
        chance = random.Random(1)
        content = b"".join(chance.randbytes(_MB) for _ in range(large_bytes // _MB))
        large = [nix.build_file("large", content)]
        del content
        copies = _Copies(Path(kept_name))
        found = list(find_clients(Path(name) / "nix", one_store=True))
        bench.note("Nix", ", ".join(client.version for client in found))
        for client in found:
            for what, paths in ((f"{paths_count} small paths", small), (f"{large_bytes // _MB} MB", large)):
                series = Series(f"{what}, Nix {client.version}", "s")
                bench.compare(
                    {
                        OURS: partial(copies.to_proxy, client, paths, series),
                        _DAV: partial(copies.to_nginx, client, paths, series),
                    }
                )
                bench.expect(Target(series, OURS, 1 / 0.9, beside=_DAV))
