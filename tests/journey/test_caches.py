"""One proxy for several caches: configured ones, merged, and others on demand."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.store_path import HashPart
from tests.support.caches import put_into, write_caches, write_token
from tests.support.docker_registry import DockerRegistry
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject
from tests.support.registries import Ghcr, RunningRegistry, docker_registry, ghcr_double
from tests.support.uploads import UploadProxy, upload_settings

pytestmark = pytest.mark.needs("nix", "docker-registry")

TOP = Path(__file__).parents[2]
PUBLIC = "octocat/public"
PRIVATE = "octocat/private"
DOCKER = "team/tools"


@pytest.fixture
def docker() -> Iterator[RunningRegistry[DockerRegistry]]:
    with docker_registry() as registry:
        yield registry


@pytest.fixture
def ghcr() -> Iterator[Ghcr]:
    """Two packages, one of which everybody may read."""
    with ghcr_double() as registry:
        registry.server.public = frozenset({f"{PUBLIC}/nix-cache"})
        yield registry


class Caches:
    """Three caches on two registries, with one path each and one that two of them have."""

    def __init__(
        self, docker: RunningRegistry[DockerRegistry], ghcr: Ghcr, nix: NixSandbox, folder: Path
    ) -> None:
        self.docker, self.ghcr, self.nix = docker, ghcr, nix
        names = {repo: repo.replace("/", "-") for repo in (PUBLIC, PRIVATE, DOCKER)}
        self.keys = {repo: SecretKey.generate(f"{name}-1") for repo, name in names.items()}
        self.paths = {repo: nix.build_paths(3, seed=name) for repo, name in names.items()}
        for registry, repo in ((ghcr, PUBLIC), (ghcr, PRIVATE), (docker, DOCKER)):
            put_into(registry, repo, self.objects(repo), [self.keys[repo]])
        self.folder = folder

    def objects(self, repo: str) -> list[StoreObject]:
        return read_objects(self.nix, self.paths[repo])

    def public_key(self, repo: str) -> str:
        return str(self.keys[repo].public_key)

    def prefix(self, repo: str) -> str:
        host = (self.docker if repo == DOCKER else self.ghcr).server.host
        return f"{host}/{repo}/nix-cache"

    def entry(self, repo: str) -> dict[str, object]:
        registry = self.docker if repo == DOCKER else self.ghcr
        entry: dict[str, object] = {
            "repo": repo,
            "registry": registry.server.host,
            "public-keys": [self.public_key(repo)],
        }
        return entry if repo == PUBLIC else {**entry, "token-file": write_token(self.folder, registry)}

    def settings(self, *repos: str, on_demand: bool = False) -> dict[str, str]:
        path = write_caches(self.folder / "caches.toml", [self.entry(repo) for repo in repos])
        pattern = f"{self.ghcr.server.host}/* {self.docker.server.host}/*" if on_demand else ""
        return {"NIXCACHE_CACHES_FILE": str(path), "NIXCACHE_ON_DEMAND": pattern}

    def narinfo(self, proxy: ProxyProcess, repo: str, start: str = "") -> NarInfo:
        answer = proxy.ask(f"{start}/{HashPart.of(Path(self.paths[repo][0]).name)}.narinfo")
        assert answer.status == 200
        return NarInfo.parse(answer.body)


@pytest.fixture
def caches(docker: RunningRegistry[DockerRegistry], ghcr: Ghcr, nix: NixSandbox, tmp_path: Path) -> Caches:
    return Caches(docker, ghcr, nix, tmp_path / "settings")


def wait_for_all(proxy: ProxyProcess) -> None:
    proxy.wait_until(lambda status: all(cache["index"]["ready"] for cache in status["caches"]))


def test_the_root_serves_three_caches_to_nix(caches: Caches, client: NixSandbox, tmp_path: Path) -> None:
    """Every path comes out of the cache that has it, with signatures required, and each token goes home."""
    repos = (DOCKER, PUBLIC, PRIVATE)
    with ProxyProcess(tmp_path / "proxy", **caches.settings(*repos)) as proxy:
        wait_for_all(proxy)
        paths = [path for repo in repos for path in caches.paths[repo]]
        run = client.realise(
            paths, substituters=[proxy.url], trusted_keys=[caches.public_key(repo) for repo in repos]
        ).check()
        for path in paths:
            assert client.dump(path, run.store) == caches.nix.dump(path)
        for repo in repos:
            assert caches.narinfo(proxy, repo).url.startswith(f"_/{caches.prefix(repo)}/nar/")
            assert caches.narinfo(proxy, repo, f"/{caches.prefix(repo)}").url.startswith("nar/")
        keys = proxy.ask("/public-key").body.decode().split()
        assert keys == [caches.public_key(repo) for repo in repos]
    shown = [record.headers.get("Authorization") for record in caches.ghcr.server.requests]
    assert not any(caches.docker.password in (text or "") for text in shown)
    assert len([text for text in caches.docker.server.tokens.authorizations if text]) == 1


def test_a_prefix_serves_its_cache_alone(caches: Caches, client: NixSandbox, tmp_path: Path) -> None:
    """Nix takes it for a cache of its own; what the others have is not there."""
    with ProxyProcess(tmp_path / "proxy", **caches.settings(DOCKER, PRIVATE)) as proxy:
        wait_for_all(proxy)
        run = client.realise(
            caches.paths[PRIVATE],
            substituters=[f"{proxy.url}/{caches.prefix(PRIVATE)}"],
            trusted_keys=[caches.public_key(PRIVATE)],
        ).check()
        for path in caches.paths[PRIVATE]:
            assert client.dump(path, run.store) == caches.nix.dump(path)
        part = HashPart.of(Path(caches.paths[DOCKER][0]).name)
        assert proxy.ask(f"/{caches.prefix(PRIVATE)}/{part}.narinfo").status == 404
        status = proxy.status()
        assert [cache["counters"]["misses"] for cache in status["caches"]] == [0, 1]


def test_a_cache_that_is_down_hides_nothing(caches: Caches, tmp_path: Path) -> None:
    """What another one has is a hit; what nobody has is unknown, and 404 in time."""
    caches.ghcr.server.stop()
    try:
        with ProxyProcess(tmp_path / "proxy", **caches.settings(PRIVATE, DOCKER)) as proxy:
            proxy.wait_until(lambda status: bool(status["caches"][1]["index"]["ready"]))
            caches.narinfo(proxy, DOCKER)
            part = HashPart.of(Path(caches.paths[PRIVATE][0]).name)
            assert proxy.ask(f"/{part}.narinfo").status == 404
            status = proxy.status()
        assert (status["counters"]["unknown"], status["counters"]["misses"]) == (1, 0)
        assert [cache["counters"]["unknown"] for cache in status["caches"]] == [1, 0]
        assert [cache["counters"]["misses"] for cache in status["caches"]] == [0, 1]
    finally:
        caches.ghcr.server.start()


def test_what_nix_remembers_works_after_the_caches_changed(caches: Caches, tmp_path: Path) -> None:
    """A URL that one cache handed out, and one of the merged root; reordered, added, removed."""

    def asked(url: str, *repos: str, on_demand: bool = False) -> int:
        with ProxyProcess(tmp_path / "proxy", **caches.settings(*repos, on_demand=on_demand)) as proxy:
            return proxy.ask(f"/{url}").status

    with ProxyProcess(tmp_path / "proxy", **caches.settings(PUBLIC)) as proxy:
        wait_for_all(proxy)
        alone = caches.narinfo(proxy, PUBLIC).url
    with ProxyProcess(tmp_path / "proxy", **caches.settings(PUBLIC, DOCKER)) as proxy:
        wait_for_all(proxy)
        merged = caches.narinfo(proxy, PUBLIC).url
    assert alone.startswith("nar/")
    for url in (alone, merged):
        assert asked(url, DOCKER, PUBLIC) == 200
        assert asked(url, PRIVATE, DOCKER, PUBLIC) == 200
        assert asked(url, PUBLIC) == 200
    assert asked(merged, DOCKER, on_demand=True) == 200
    assert asked(merged, DOCKER) == 404


def test_nix_uses_a_cache_that_nobody_configured(caches: Caches, client: NixSandbox, tmp_path: Path) -> None:
    """Anonymously: what needs a token is not there, and no token is sent for what does not."""
    settings = caches.settings(DOCKER, on_demand=True)
    token = write_token(tmp_path / "other", caches.ghcr)
    caches.ghcr.server.reset_requests()
    with ProxyProcess(
        tmp_path / "proxy", **settings, NIXCACHE_TOKEN_FILE=str(token), GITHUB_TOKEN=caches.ghcr.password
    ) as proxy:
        run = client.realise(
            caches.paths[PUBLIC],
            substituters=[f"{proxy.url}/{caches.prefix(PUBLIC)}"],
            trusted_keys=[caches.public_key(PUBLIC)],
        ).check()
        for path in caches.paths[PUBLIC]:
            assert client.dump(path, run.store) == caches.nix.dump(path)
        part = HashPart.of(Path(caches.paths[PRIVATE][0]).name)
        assert proxy.ask(f"/{caches.prefix(PRIVATE)}/{part}.narinfo").status == 404
        [blob, *_] = caches.ghcr.server.blobs(f"{PRIVATE}/nix-cache")
        assert proxy.ask(f"/{caches.prefix(PRIVATE)}/nar/{blob.hex}.nar.zst").status == 404
    shown = {record.headers.get("Authorization") for record in caches.ghcr.server.requests}
    assert caches.ghcr.server.issued_tokens
    assert all(text is None or text.startswith("Bearer ") for text in shown)


FLAKE = """
{{
  nixConfig = {{
    extra-substituters = [ "{url}" ];
    extra-trusted-public-keys = [ "{key}" ];
  }};
  outputs = _: {{
    packages.x86_64-linux.default = derivation {{
      name = "greeting";
      system = "x86_64-linux";
      builder = "/bin/sh";
      args = [ "-c" "echo hello > $out" ];
    }};
  }};
}}
"""


def test_a_flake_names_its_cache(
    ghcr: Ghcr, nix: NixSandbox, client: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Whoever runs the proxy gets what that has, with signatures required and nothing configured."""
    flake = tmp_path / "flake"
    flake.mkdir()

    def write(url: str) -> None:
        (flake / "flake.nix").write_text(FLAKE.format(url=url, key=key.public_key))

    write("")
    built = nix.build_expression(f"((import {flake}/flake.nix).outputs null).packages.x86_64-linux.default")
    path = built.check().stdout.strip()
    put_into(ghcr, PUBLIC, read_objects(nix, [path]), [key])
    with ProxyProcess(tmp_path / "proxy", NIXCACHE_ON_DEMAND=f"{ghcr.server.host}/*") as proxy:
        write(f"{proxy.url}/{ghcr.server.host}/{PUBLIC}/nix-cache")
        arguments = ("--accept-flake-config", "--no-write-lock-file", "--no-link", "--max-jobs", "0")
        run = client.run("nix", "build", f"path:{flake}", *arguments, store=client.new_store()).check()
        assert client.dump(path, run.store) == nix.dump(path)
        assert [cache["entries"] for cache in proxy.status()["caches"]] == [0, 1]


def test_uploads_go_to_the_cache_of_a_prefix(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """And to no cache that takes none; a cache is not opened because somebody uploads to it."""
    registries = [f"oci:{tmp_path}/first", f"oci:{tmp_path}/second"]
    file = write_caches(
        tmp_path / "caches.toml", [{"registry": registries[0]}, {"registry": registries[1], "uploads": True}]
    )
    settings = upload_settings(tmp_path / "uploads", key, NIXCACHE_CACHES_FILE=str(file))
    del settings["NIXCACHE_REGISTRY"]
    paths = nix.build_paths(5)
    with UploadProxy(tmp_path / "proxy", **settings) as proxy:
        wait_for_all(proxy)
        first, second = (cache["prefix"] for cache in proxy.status()["caches"])
        nix.copy_to(f"{proxy.url_with_password}/{second}", paths[:3]).check()
        nix.copy_to(proxy.url_with_password, paths[3:]).check()
        proxy.wait_until(lambda status: status["entries"] == len(paths))
        assert [cache["entries"] for cache in proxy.status()["caches"]] == [0, len(paths)]
        run = nix.realise(paths, substituters=[proxy.url], trusted_keys=[str(key.public_key)])
        assert run.returncode == 0, run.stderr
        for prefix in (first, "owner/unknown"):
            answer = proxy.put(f"/{prefix}/{'0' * 32}.narinfo", b"x")
            assert answer.status == 405
            assert b"takes no uploads" in answer.body
        assert len(proxy.status()["caches"]) == len(registries)


def test_each_cache_has_its_metrics(caches: Caches, tmp_path: Path) -> None:
    """Configured ones by their prefix; what is opened on demand is one series, however many are named."""
    settings = caches.settings(DOCKER, on_demand=True)
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        wait_for_all(proxy)
        caches.narinfo(proxy, DOCKER)
        caches.narinfo(proxy, PUBLIC, f"/{caches.prefix(PUBLIC)}")
        for number in range(3):
            assert proxy.ask(f"/{caches.ghcr.server.host}/x/{number}/{'0' * 32}.narinfo").status == 404
        text = proxy.ask("/metrics").body.decode()
        samples = {
            (one.name, one.labels.get("cache")): one.value
            for each in text_string_to_metric_families(text)
            for one in each.samples
        }
        assert samples["nixcache_cache_hits_total", caches.prefix(DOCKER)] == 1
        assert samples["nixcache_cache_hits_total", "on-demand"] == 1
        assert samples["nixcache_hits_total", None] == 2
        assert samples["nixcache_on_demand_open", None] == 1
        assert {label for _, label in samples} == {None, caches.prefix(DOCKER), "on-demand"}
        dashboard = (TOP / "docs/grafana-dashboard.json").read_text()
        assert set(re.findall(r"nixcache_[a-z_]+", dashboard)) <= {name for name, _ in samples}
        on_demand = proxy.status()["on_demand"]
        assert (on_demand["open"], on_demand["absent"]) == (1, 3)


def test_an_unknown_cache_costs_few_round_trips(ghcr: Ghcr, tmp_path: Path) -> None:
    """Its first narinfo: tags, token, tags, index, table, and where that is kept; the second costs none."""
    objects = [store_object("first"), store_object("second")]
    put_into(ghcr, PUBLIC, objects)
    ghcr.server.reset_requests()
    prefix = f"{ghcr.server.host}/{PUBLIC}/nix-cache"
    with ProxyProcess(tmp_path / "proxy", NIXCACHE_ON_DEMAND=f"{ghcr.server.host}/*") as proxy:
        asked = []
        for name in ("first", "second"):
            assert proxy.ask(f"/{prefix}/{hash_part_of(name)}.narinfo", method="HEAD").status == 200
            asked.append(len(ghcr.server.requests))
    assert asked == [6, 6]
