"""The page in a real browser, at three widths, light and dark; with PAGE_PICTURES its pictures go there."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.proxy.page.conftest import OpenSite, Site
from tests.support.browser import CHROMIUM, Tab, opened_tab
from tests.support.programs import require_program
from tests.support.sample_cache import HOSTILE, SOURCE, hostile_records, sample_path

pytestmark = pytest.mark.needs(CHROMIUM)

WEB = sample_path("web-server-0.9.1")
HELLO = sample_path("hello-2.12.2")
PAGES = {
    "overview": "/",
    "search": "/?q=hello",
    "path": f"/_path/{WEB.base_name}",
    "roots": "/_roots",
    "cache": "/example/other/",
}
WIDTHS = (360, 768, 1280)
SCHEMES = ("light", "dark")
# In the documentation.
SHOWN = {
    "overview-1280-light.png",
    "cache-360-dark.png",
    "path-1280-dark.png",
    "search-768-light.png",
}
_AXE = "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    async with opened_tab(tmp_path / "browser") as opened:
        yield opened


@pytest.fixture
async def caches(open_site: OpenSite) -> AsyncIterator[Site]:
    async with open_site("example/project", "example/other", upstreams=("https://cache.example",)) as opened:
        yield opened


async def texts(tab: Tab, selector: str) -> list[str]:
    found: list[str] = await tab.run(
        f"[...document.querySelectorAll({selector!r})].map(one => one.innerText.trim())"
    )
    return found


async def test_every_link_leads_somewhere_and_nothing_goes_elsewhere(caches: Site, tab: Tab) -> None:
    """From the first page on; the console stays empty, and no request leaves for another host."""
    waiting, seen = [f"{caches.url}/"], set[str]()
    while waiting:
        url = waiting.pop().partition("#")[0]
        if url in seen:
            continue
        seen.add(url)
        await tab.go(url)
        status = await tab.run("performance.getEntriesByType('navigation')[0].responseStatus")
        assert status == 200, url
        assert await tab.run("document.title || document.contentType == 'application/json'"), url
        links: list[str] = await tab.run("[...document.links].map(link => link.href)")
        away = {link for link in links if not link.startswith(f"{caches.url}/")}
        assert away <= {SOURCE}
        waiting += set(links) - away
    assert len(seen) > 20
    assert tab.errors == []
    assert {urlsplit(url).netloc for url in tab.requests} == {urlsplit(caches.url).netloc}


async def test_a_search_needs_no_scripts(caches: Site, tab: Tab) -> None:
    """Nor does anything else: with them, only the buttons that copy come."""
    for are_allowed in (False, True):
        await tab.allow_scripts(are_allowed=are_allowed)
        await tab.go(f"{caches.url}/example/project/")
        assert await texts(tab, "button.copy") == (["Copy"] * 2 if are_allowed else [])
        await tab.run("document.querySelector('input[name=q]').value = 'HELLO 2.12'")
        await tab.act("document.querySelector('form').requestSubmit()")
        assert await texts(tab, ".results .name") == ["hello-2.12.1", "hello-2.12.2"]
        await tab.act("document.querySelector('.results a').click()")
        assert await texts(tab, "h1") == ["hello-2.12.1"]


@pytest.mark.parametrize(
    ("path", "starts"),
    [("/", ["extra-substituters = "]), ("/example/other/", ["nixConfig = {", "extra-substituters = "])],
)
async def test_the_lines_are_copied_as_they_are_shown(
    caches: Site, tab: Tab, path: str, starts: list[str]
) -> None:
    """With a permission; without one, they are selected for Ctrl-C."""
    await tab.go(f"{caches.url}{path}")
    for number, start in enumerate(starts):
        shown = await tab.run(f"document.querySelectorAll('[data-copy]')[{number}].textContent")
        await tab.run(f"document.querySelectorAll('button.copy')[{number}].click()")
        await tab.run("new Promise(done => setTimeout(done, 0))")
        selected = await tab.run("getSelection().toString()")
        told = (await texts(tab, "button.copy"))[number]
        assert (told, selected) in {("Copied", ""), ("Selected", shown)}
        assert shown.startswith(start)
    assert len(await texts(tab, "button.copy")) == len(starts)


async def test_the_keyboard_reaches_everything_in_order(caches: Site, tab: Tab) -> None:
    """What skips the header comes first, then search; where one is can be seen, and Enter searches."""
    await tab.go(f"{caches.url}/")
    reached = []
    for _ in range(5):
        await tab.press("Tab")
        reached.append(await tab.run("document.activeElement.innerText || document.activeElement.id"))
        style = await tab.run("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid", reached
    assert reached[:4] == ["Skip to the content", "nixcache-oci", "q", "Search"]
    await tab.run("document.querySelector('#q').focus()")
    await tab.send("Input.insertText", text="python")
    await tab.press("Enter", "\r", leads_away=True)
    assert await texts(tab, ".results .name") == ["python3-3.13.7"] * 2


async def test_what_publishers_write_stays_text(open_site: OpenSite, tab: Tab) -> None:
    """Markup, quotes, letters that turn others around and 200 of one: seen, run by nobody, and no wider."""
    async with open_site("example/project", records=tuple(hostile_records())) as site:
        for width in WIDTHS:
            await tab.resize(width)
            for path in (
                "/",
                "/example/project/",
                "/_roots",
                f"/_path/{HELLO.base_name}",
                f"/?q={'w' * 200}%22%3E%3Cscript%3E",
            ):
                await tab.go(f"{site.url}{path}")
                assert await tab.run("document.scripts.length") == 1
                assert await tab.run("document.querySelectorAll('[onload]').length") == 0
                assert await tab.run("document.documentElement.scrollWidth") == width, path
        await tab.go(f"{site.url}/_roots")
        assert HOSTILE.replace("\u202e", "\\u202e") in await texts(tab, "tbody th")
        assert tab.errors == []


@pytest.mark.needs("axe-core")
async def test_the_page_is_accessible(caches: Site, tab: Tab) -> None:
    """Axe finds nothing: contrast AA, names, headings, sizes to hit; light and dark, wide and narrow."""
    axe = await asyncio.to_thread(Path(require_program("axe-core")).read_text, "utf-8")
    for scheme in SCHEMES:
        await tab.prefer(scheme)
        for width in WIDTHS:
            await tab.resize(width)
            for path in (*PAGES.values(), "/_path/nothing", "/?q=nothing"):
                await tab.go(f"{caches.url}{path}")
                await tab.run(axe)
                found = (await tab.run(_AXE))["violations"]
                told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
                assert told == [], (path, width, scheme)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PAGE_PICTURES", tmp_path / "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def test_the_page_fits_every_width(caches: Site, tab: Tab, pictures: Path, tmp_path: Path) -> None:
    """Nothing is wider than the window; each page is pictured, as docs/pictures shows some."""
    for scheme in SCHEMES:
        await tab.prefer(scheme)
        for width in WIDTHS:
            await tab.resize(width)
            for name, path in PAGES.items():
                await tab.go(f"{caches.url}{path}")
                assert await tab.run("document.documentElement.scrollWidth") == width, name
                # Ports and keys of a test differ from run to run.
                await tab.run(_AS_IN_USE)
                picture = f"{name}-{width}-{scheme}.png"
                if picture in SHOWN or pictures.is_relative_to(tmp_path):
                    await tab.take_picture(pictures / picture)


_AS_IN_USE = """
for (const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walker.nextNode();) {
  const node = walker.currentNode;
  node.data = node.data
    .replace(/127\\.0\\.0\\.1:\\d+/g, "127.0.0.1:37515")
    .replace(/(example-cache-1):[\\w+\\/=]{44}/g, "$1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")
    .replace(/checked .* ago|checked just now/g, "checked 12 seconds ago");
}
"""
