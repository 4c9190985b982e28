"""The templates of the page, read when the first page is asked for: most proxies show none."""

import asyncio
import time
from collections.abc import Generator, Mapping
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Final

from nixcache_oci.proxy.page.jobs import PageJobs
from nixcache_oci.wording import format_size, inflected, show_unprintable

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_MOST_CHARACTERS: Final = 300
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# The longest unit that fits, in seconds.
_UNITS: Final = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
_PACKAGE: Final = "nixcache_oci.proxy.page"


class Templates:
    """Writes pages; whatever is put into one is escaped."""

    def __init__(self, jobs: PageJobs) -> None:
        self._jobs = jobs
        self._loading = asyncio.Lock()
        self._environment: Environment | None = None

    async def render(self, name: str, values: Mapping[str, object]) -> str:
        """Write the page of a template."""
        async with self._loading:
            if self._environment is None:
                self._environment = await asyncio.to_thread(_load)
        return await self._jobs.run(_write(self._environment.get_template(f"{name}.html"), values))


def read_asset(name: str) -> bytes:
    """Read a file that pages refer to."""
    return resources.files(_PACKAGE).joinpath("assets", name).read_bytes()


def _load() -> "Environment":
    from jinja2 import DictLoader, Environment, StrictUndefined  # noqa: PLC0415 -- most proxies show no page

    folder = resources.files(_PACKAGE).joinpath("templates")
    sources = {file.name: file.read_text("utf-8") for file in folder.iterdir()}
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ago": _ago,
        "grouped": lambda number: f"{number:,}",
        "inflected": inflected,
        "size": format_size,
        "text": _text,
        "when": _when,
    }
    for name in sources:
        environment.get_template(name)
    return environment


def _write(template: "Template", values: Mapping[str, object]) -> Generator[None, None, str]:
    """Write a page piece by piece: a long one takes several milliseconds."""
    pieces = []
    for piece in template.generate(values):
        pieces.append(piece)
        yield
    return "".join(pieces)


def _text(text: str) -> str:
    """Show what others wrote: letters that nobody sees become visible, and it ends somewhere."""
    shown = show_unprintable(text)
    return shown if len(shown) <= _MOST_CHARACTERS else f"{shown[:_MOST_CHARACTERS]}…"


def _when(time_of: datetime) -> str:
    return f"{time_of.day} {_MONTHS[time_of.month - 1]} {time_of.year}, {time_of:%H:%M} UTC"


def _ago(seconds_of: float) -> str:
    """Say how long ago a time was, in seconds of ``time.time()``."""
    seconds = max(0, int(time.time() - seconds_of))
    for unit, length in _UNITS:
        if seconds >= length:
            number = seconds // length
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"
