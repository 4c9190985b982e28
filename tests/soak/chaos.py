"""What goes wrong in a load, and when: drawn from a seed, so that a run can be had again."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from tests.soak.far_side import FarSide

_READS: Final = ("storage-get", "blob-get", "manifest-head", "manifest-get", "tags", "token")
_WRITES: Final = ("blob-head", "upload-post", "upload-put", "manifest-put")
# How often each is drawn, and what it does beside its name.
_KINDS: Final[dict[str, int]] = {
    "reset": 20,
    "refuse": 10,
    "cut": 25,
    "stall": 8,
    "rate limit": 8,
    "401": 4,
    "500": 8,
    "503": 8,
    "expired tokens": 2,
    "expired URLs": 4,
    "outage": 1,
}
# And these bring bytes that are not those of the blob, in an answer that looks whole. A proxy then refuses
# the blob for ten minutes: too many of them, and nothing is left to load it with.
WRONG_BYTES: Final = frozenset({"truncated", "wrong_byte", "garbage"})
_FORGET_EVERY: Final = 20  # draws: what nobody met by then is forgotten, and counted off


@dataclass(frozen=True, slots=True)
class Pace:
    """How quickly things go wrong.

    Attributes:
        faults_per_second: on the average.
        outage_seconds: how long the registry is away at the most.
        writes: share of the faults that hit what only a publisher does.
        wrong_bytes: weight of each kind that brings wrong bytes; all others have about a hundred together.
        release_seconds: how long what stalls does so at the most; a proxy gives up after 30 s.
    """

    faults_per_second: float
    outage_seconds: float
    writes: float = 0.15
    wrong_bytes: int = 1
    release_seconds: float = 45


class Chaos:
    """Makes trouble at the far side.

    Attributes:
        injected: how often each kind was ordered; ``unmet`` are those that no request ran into.
    """

    def __init__(self, far_side: FarSide, seed: str, pace: Pace) -> None:
        self._far_side = far_side
        self._random = random.Random(f"chaos-{seed}")
        self._pace = pace
        self.injected: Counter[str] = Counter()

    async def run(self) -> None:
        """Go on until it is cancelled; then everything is well again."""
        self._far_side.do("break_upstream", share=0.03)
        draws, released_at = 0, time.monotonic()
        try:
            while True:
                await asyncio.sleep(self._random.expovariate(self._pace.faults_per_second))
                await self._draw()
                draws += 1
                if time.monotonic() - released_at > self._pace.release_seconds:
                    released_at = time.monotonic()
                    self._far_side.do("release")
                if draws % _FORGET_EVERY == 0:
                    self._forget()
        finally:
            self._far_side.do("start")
            self._far_side.do("break_upstream", share=0)
            self._forget()
            self._far_side.do("release")

    def _forget(self) -> None:
        self.injected["unmet"] += self._far_side.do("forget_faults")
        self._far_side.do("reset_requests")  # they are not looked at, and would fill its memory

    async def _draw(self) -> None:
        kinds = _KINDS | dict.fromkeys(sorted(WRONG_BYTES), self._pace.wrong_bytes)
        (kind,) = self._random.choices(list(kinds), list(kinds.values()))
        times = self._random.randint(1, 3)
        self.injected[kind] += 1
        match kind:
            case "outage":
                self._far_side.do("stop")
                await asyncio.sleep(self._random.uniform(0.1, self._pace.outage_seconds))
                self._far_side.do("start")
            case "expired tokens":
                self._far_side.do("expire_tokens")
            case "expired URLs":
                self._far_side.do("expire_urls")
            case "rate limit":
                self._far_side.do("rate_limit", match=self._operation(), times=times)
            case _:
                self._order(kind, times)

    def _order(self, kind: str, times: int) -> None:
        """Order a fault of the double; statuses are kinds of their own here."""
        operation = self._operation()
        if kind in WRONG_BYTES:
            times = 1
        after = self._random.choice([0, 100, 20_000, 500_000])
        status = int(kind) if kind.isdecimal() else 0
        self.injected[kind] += times - 1
        self._far_side.do(
            "fault",
            match=operation,
            kind="status" if status else kind,
            status=status or 500,
            after=after,
            times=times,
        )

    def _operation(self) -> str:
        if self._random.random() < self._pace.writes:
            return self._random.choice(_WRITES)
        return self._random.choice((*_READS, *["storage-get"] * len(_READS)))
