"""What a process holds at a moment, as the kernel tells it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Self

from tests.support.proxy import ProxyProcess

_MIB: Final = 1024 * 1024
_PARTS: Final = 5


@dataclass(frozen=True, slots=True)
class Figures:
    """One look at the proxy; memory is in bytes.

    Attributes:
        resident: all of it (VmRSS).
        anonymous: what no file backs (RssAnon).
        packs: of the pack cache, which is bounded, and full or not.
        files: open descriptors.
        sockets: those of them that are sockets.
        maps: of tables of the index; no descriptor is kept for them.
        segments: that the index has.
        threads: of the process.
    """

    resident: int
    anonymous: int
    packs: int
    files: int
    sockets: int
    maps: int
    segments: int
    threads: int

    @classmethod
    def take(cls, proxy: ProxyProcess, *, packs: int = 0, segments: int = 0) -> Self:
        """Look at it; the last two are what its status says."""
        process = Path(f"/proc/{proxy.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        targets = [_target(each) for each in (process / "fd").iterdir()]
        return cls(
            resident=int(status["VmRSS"].split()[0]) * 1024,
            anonymous=int(status["RssAnon"].split()[0]) * 1024,
            packs=packs,
            files=len(targets),
            sockets=sum(target.startswith("socket:") for target in targets),
            maps=(process / "maps").read_text().count("/index/"),
            segments=segments,
            threads=int(status["Threads"]),
        )

    @property
    def holds_listed_tables(self) -> bool:
        """Whether no table is mapped but of a segment that the index has: each has its text and its keys."""
        return self.maps <= 2 * self.segments

    @property
    def own(self) -> int:
        """Anonymous memory without the packs: what would grow if something leaked."""
        return self.anonymous - self.packs

    def __str__(self) -> str:
        return (
            f"RSS {self.resident / _MIB:.1f} MiB, RssAnon {self.anonymous / _MIB:.1f} MiB, "
            f"packs {self.packs / _MIB:.1f} MiB, {self.files} descriptors, {self.sockets} sockets, "
            f"{self.maps} maps of {self.segments} tables, {self.threads} threads"
        )


def summarise(looks: Sequence[Figures]) -> str:
    """Show the median and the most of several looks, and how memory went: its median in each fifth."""
    length = len(looks) // _PARTS + 1
    parts = [looks[start : start + length] for start in range(0, len(looks), length)]
    course = " ".join(f"{median(each.anonymous for each in part) / _MIB:.0f}" for part in parts)

    def show(values: list[float], unit: str) -> str:
        return f"{median(values):.0f} (at most {max(values):.0f}) {unit}"

    return ", ".join(
        (
            show([each.resident / _MIB for each in looks], "MiB RSS"),
            show([each.anonymous / _MIB for each in looks], f"MiB RssAnon (in fifths {course})"),
            show([each.files for each in looks], "descriptors"),
            show([each.threads for each in looks], "threads"),
        )
    )


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""  # closed meanwhile
