"""The page over HTTP: who gets it, what is on it, and that nothing on it is taken for markup."""

import html
import re
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.repository import Repository
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.proxy.cache_set import ConfiguredCache
from nixcache_oci.proxy.on_demand.settings import OnDemandSettings
from nixcache_oci.proxy.prefix import RepositoryPattern
from nixcache_oci.proxy.server import serving
from tests.proxy.page.conftest import NamedLayout, OpenSite, Site
from tests.support.front import proxy_config
from tests.support.publish import CREATED
from tests.support.sample_cache import HOSTILE, KEY, SOURCE, hostile_records, publish_sample, sample_path

WEB = sample_path("web-server-0.9.1")
HELLO = sample_path("hello-2.12.2")
PAGES = ("/", "/?q=hello", "/?q=", f"/_path/{WEB.base_name}", "/_roots", "/_path/nothing")


def words(page: str) -> str:
    """The text of a page, in one line."""
    body = page[page.index("<body") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "text/plain"])
async def test_other_clients_than_browsers_get_what_they_got(site: Site, accept: str) -> None:
    """Nix and curl have always had a 404 there."""
    for path in ("/", "/example/project/", "/example/project"):
        assert await site.get(path, status=404, Accept=accept) == "Not Found\n"


async def test_methods_are_as_they_were(site: Site) -> None:
    """HEAD works wherever GET does, and another method is refused plainly."""
    async with site.session.head(f"{site.url}/", headers={"Accept": "text/html"}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")
    for method, path, status in (
        ("POST", "/", 405),
        ("PUT", "/upstream/none/nar/x.nar", 405),
        ("POST", "/example/project", 405),
    ):
        async with site.session.request(
            method, f"{site.url}{path}", headers={"Accept": "text/html"}
        ) as answer:
            assert answer.status == status, path


@pytest.mark.parametrize("path", [*PAGES, "/_page/style.css", "/_page/copy.js", "/_page/icon.svg"])
async def test_nothing_but_our_own_files_may_be_loaded(site: Site, path: str) -> None:
    """By the policy, and in fact: no script, style or handler is in a page, and no page in a frame."""
    async with site.session.get(f"{site.url}{path}", headers={"Accept": "text/html"}) as answer:
        text, headers = await answer.text(), answer.headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("frame-ancestors") == "'none'"
    assert set(policy.values()) == {"'self'"}
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "no-referrer"
    if answer.content_type == "text/html":
        assert not re.search(r"<script(?! src=\"[./]*_page/copy\.js\" defer></script>)|<style| style=", text)
        assert not re.search(r"<[^>]*\son\w+=", text)
        own = text.replace(f'<a href="{SOURCE}" rel="noopener noreferrer external">', "")
        assert not re.search(r"(?:src|href|action)=\"(?!\.|#)", own)


async def test_hosts_and_other_sites_are_refused_as_everywhere(site: Site) -> None:
    """A page on the internet that rebinds its name must not read which caches somebody uses."""
    await site.get("/", status=403, Host="evil.example")
    for path in PAGES:
        await site.get(path, status=403, **{"Sec-Fetch-Site": "cross-site"})


async def test_the_overview_says_what_the_cache_is(site: Site) -> None:
    """Name, size, health, key, what was built last, and the lines for nix.conf."""
    page = words(await site.get("/"))
    assert "ghcr.io/example/project/nix-cache Up to date checked" in page
    assert "Store paths 12 Segments 2" in page
    key = str(KEY.public_key)
    assert f"extra-substituters = {site.url} extra-trusted-public-keys = {key} fallback = true" in page
    assert page.index("nixosConfigurations.web1") < page.index("packages.x86_64-linux.hello")


async def test_a_key_that_nobody_configured_is_a_comment(open_site: OpenSite) -> None:
    """What a cache says of itself proves nothing: copied as they are, the lines trust nobody."""
    async with open_site("example/project", keys=()) as site:
        page = html.unescape(await site.get("/"))
        [conf] = re.findall(r"data-copy><code>(.*?)</code>", page, re.DOTALL)
        lines = [line for line in conf.splitlines() if not line.startswith("#")]
        assert lines == [f"extra-substituters = {site.url}", "fallback = true"]
        assert f"# extra-trusted-public-keys = {KEY.public_key}" in conf
        assert "The cache names this key itself." in page


async def test_a_search_finds_by_a_part_of_the_name(site: Site) -> None:
    """And shows what was asked for as text."""
    page = words(await site.get("/?q=HELLO"))
    assert "2 store paths for HELLO" in page
    assert "hello-2.12.1" in page
    assert "No store path for" in words(await site.get("/?q=nothing"))
    asked = '"><script>alert(1)</script>'
    found = await site.get(f"/?q={quote(asked)}")
    assert "<script>alert" not in found
    assert asked in words(found.replace('value="', ">"))
    for odd in ("%00", "%ff", "%F0%9F%98%80", "%E2%80%AE", "a" * 3000, "+++", "%0d%0aX:y"):
        await site.get(f"/?q={odd}")


async def test_the_page_of_a_path_says_what_it_reaches_and_what_keeps_it(site: Site) -> None:
    """Closure, references, referrers, roots through others, pins, signatures, and how to get it."""
    page = words(await site.get(f"/_path/{WEB.base_name}"))
    assert f"nix-store -r {WEB}" in page
    assert "Paths in closure 6" in page
    assert f"Published 21 Nov 2026, 03:15 UTC , {SOURCE}" in page
    assert f"{KEY.name} valid" in page
    kept = page[page.index("Kept by") : page.index("Refers to")]
    for name in ("nixosConfigurations.web1", "packages.x86_64-linux.web-server", "demo for 5 revisions"):
        assert name in kept
    assert "python3 " not in kept
    assert "packages.x86_64-linux.hello" not in kept
    refers, referred = page[page.index("Refers to 2") :].split("Referred to by 1")
    assert "hello-2.12.2" in refers
    assert "nixos-system-web1-25.11" in referred
    assert await site.get(f"/_path/{WEB.hash_part}") == await site.get(f"/_path/{WEB.base_name}")


async def test_a_path_that_is_not_here_is_a_page_of_its_own(site: Site) -> None:
    """With status 404, whatever it is called."""
    for name in ("0" * 32, "<script>", "%00", "%2e%2e%2f", "a" * 4000, f"{'0' * 32}-%3Cb%3E"):
        page = await site.get(f"/_path/{quote(name, safe='%')}", status=404)
        assert "Nothing here" in page
        assert "<script>alert" not in page
        assert "<b>" not in page


async def test_roots_and_pins_are_listed(site: Site) -> None:
    """Those that count."""
    page = words(await site.get("/_roots"))
    assert "4 roots" in page
    assert "2 pins" in page
    assert "release-1.0 forever hello-2.12.1" in page


async def test_what_publishers_write_is_shown_as_text(open_site: OpenSite) -> None:
    """Names of roots and scopes may be anything; letters that turn others around are made visible."""
    async with open_site("example/project", records=tuple(hostile_records())) as site:
        for path in ("/", "/_roots", f"/_path/{HELLO.base_name}"):
            page = await site.get(path)
            assert "<script>alert" not in page
            assert "\u202e" not in page
            assert HOSTILE.replace("\u202e", "\\u202e") in words(page).replace(" ; ", ";")


async def test_long_lists_are_cut(open_site: OpenSite) -> None:
    """A page has an end, and says what is left out."""
    many = tuple((f"packages.n{number:05}", HELLO) for number in range(3000))
    record = PublishRecord("many", "1", CREATED, many)
    async with open_site("example/project", records=(record,)) as site:
        page = await site.get("/_roots")
        assert "3,004 roots" in page
        assert page.count("<tr>") < 520
        assert "nixcache-oci list --roots" in page


async def test_a_prefix_has_the_same_pages(open_site: OpenSite) -> None:
    """With lines that name the prefix, and links that stay below it."""
    async with open_site("example/project", "example/other") as site:
        for path in PAGES[:-1]:
            page = await site.get(f"/example/other{path}")
            assert "ghcr.io/example/other/nix-cache" in page
        page = html.unescape(await site.get("/example/other/"))
        assert f"extra-substituters = {site.url}/example/other\n" in page
        assert f'nixConfig = {{\n  extra-substituters = [ "{site.url}/example/other" ];\n' in page
        assert f'\n  extra-trusted-public-keys = [ "{KEY.public_key}" ];\n}};' in page
        assert "nixConfig" not in await site.get("/")
        found = await site.get("/example/other/?q=hello")
        assert f'href="../../example/other/_path/{HELLO.base_name}"' in found
        async with site.session.get(f"{site.url}/example/other", headers={"Accept": "text/html"}) as answer:
            assert str(answer.url) == f"{site.url}/example/other/"
        async with site.session.get(
            f"{site.url}/example/other?q=x", headers={"Accept": "text/html"}, allow_redirects=False
        ) as answer:
            assert (answer.status, answer.headers["Location"]) == (307, "./other/")


async def test_the_root_shows_all_caches(open_site: OpenSite) -> None:
    """Each leads to its own page, and a search says where it found what."""
    async with open_site("example/project", "example/other") as site:
        page = await site.get("/")
        assert "2 binary caches" in page
        for repo in ("example/project", "example/other"):
            assert f'href="./{repo}/"' in page
            assert f"ghcr.io/{repo}/nix-cache" in await site.get("/?q=hello")
        assert "4 store paths for" in words(await site.get("/?q=hello"))
        assert words(await site.get("/_roots")).count("4 roots") == 2


async def test_a_prefix_that_nothing_may_open_is_404(site: Site) -> None:
    """Also in a browser."""
    for path in ("/other/project/", "/other/project/_roots", "/other/project/?q=x", "/a/b/c/"):
        assert "No cache that everybody may read" in await site.get(path, status=404)
    for path in ("/other/project", "/log/x", "/nar/x"):
        assert await site.get(path, status=404) == "Not Found\n"


async def test_a_cache_that_is_opened_on_demand_has_a_page(tmp_path: Path) -> None:
    """The first look opens it; its key is what it says itself."""
    repository = Layout(tmp_path / "cache")
    await publish_sample(repository)
    await repository.close()

    def open_it(reference: RegistryReference, *, must_be_public: bool) -> Repository:
        assert must_be_public is False
        is_there = reference.repository == "example/project/nix-cache"
        return NamedLayout(tmp_path / ("cache" if is_there else "none"), str(reference))

    on_demand = OnDemandSettings((RepositoryPattern.parse("ghcr.io/*"),), open_it)
    config = proxy_config(tmp_path)
    none = ConfiguredCache(Layout(tmp_path / "own"))
    async with (
        serving(config, [none], on_demand=on_demand) as [url],
        aiohttp.ClientSession() as session,
    ):
        site = Site(url, session)
        page = html.unescape(await site.get("/Example/project/"))
        assert "ghcr.io/example/project/nix-cache" in page
        assert f"# extra-trusted-public-keys = {KEY.public_key}" in page
        assert f'# extra-trusted-public-keys = [ "{KEY.public_key}" ];' in page
        assert f"extra-substituters = {url}/example/project" in page
        assert "hello-2.12.2" in await site.get("/example/project/?q=hello")
        assert "No cache that everybody may read" in await site.get("/example/other/", status=404)
    await none.repository.close()


async def test_the_page_is_there_without_an_index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It says what is wrong."""
    folder = tmp_path_factory.mktemp("none")
    (folder / "cache").mkdir()
    (folder / "cache" / "index.json").write_text("no JSON")
    repository = Layout(folder / "cache")
    cache = ConfiguredCache(repository, "example/none")
    async with serving(proxy_config(folder), [cache]) as [url], aiohttp.ClientSession() as session:
        site = Site(url, session)
        page = words(await site.get("/"))
        assert "Not ready" in page
        assert "There is no index yet:" in page
        for path in PAGES[1:3] + PAGES[4:5]:
            await site.get(path)
    await repository.close()
