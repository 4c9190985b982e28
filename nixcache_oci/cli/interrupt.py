"""Ctrl-C, and SIGTERM, which ends a job in CI: the first ends the work in order, the second at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_STATUS_OF_SIGNALS: Final = 128  # and the signal's number, as shells report it
_NOTHING_CHANGED: Final = "nothing was changed; run the same command again"
_STDERR: Final = 2
_SHOW_CURSOR: Final = b"\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; ``holds`` says what holds now, and how to go on."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = _STATUS_OF_SIGNALS + number
        self.holds = ""

    def __str__(self) -> str:
        return f"interrupted: {self.holds or _NOTHING_CHANGED}"


@contextmanager
def if_interrupted(holds: str) -> Iterator[None]:
    """Set what holds when a signal ends the block; the innermost block wins."""
    try:
        yield
    except Interrupted as error:
        error.holds = error.holds or holds
        raise


@contextmanager
def handling_signals(end: Callable[[int], None]) -> Iterator[None]:
    """Let the first signal call ``end`` on the main thread; the second ends the process at once.

    A signal that the process was started to ignore, as by ``nohup``, stays ignored. After the first signal,
    the end of the block restores nothing: whatever is left to do may hang.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        for each in former:
            signal.signal(each, _end_at_once)
        end(number)

    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {each: signal.getsignal(each) for each in _SIGNALS}
        former = {each: handler for each, handler in former.items() if handler not in (None, signal.SIG_IGN)}
    for each in former:
        signal.signal(each, handle)
    try:
        yield
    finally:
        for each, handler in former.items():
            if signal.getsignal(each) is handle:
                signal.signal(each, handler)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    if os.isatty(_STDERR) and os.environ.get("TERM", "dumb") != "dumb":
        os.write(_STDERR, _SHOW_CURSOR)  # which a bar has hidden
    os._exit(_STATUS_OF_SIGNALS + number)
