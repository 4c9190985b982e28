"""Asking Nix for outputs, so that one that cannot be evaluated does not hide the others."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from nixcache_oci.clients.local_store import expression
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.output import Evaluation, EvaluationFailure, Output, OutputSet
from nixcache_oci.clients.local_store.program import Ended, OnLine
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.wording import counted

_MISSING: Final = "does not provide attribute"
_NO_DERIVATION: Final = "is not a derivation"
_WHOLE_FILE: Final = "default"
_MOST_NAMES_SHOWN: Final = 20
MOST_NAME_BYTES: Final = 1000
"""Of an attribute's name: it goes to Nix in an argument, and into a record."""

_MOST_BYTES_AT_ONCE: Final = 48_000  # escaped, they fit into an argument, of which Linux takes 128 KiB


class Evaluator:
    """Asks for one set after another, and collects the answers.

    Args:
        nix: evaluates.
        patterns: which attributes are wanted; empty for all.
    """

    def __init__(self, nix: Nix, patterns: Sequence[str] = ()) -> None:
        self._nix = nix
        self._patterns = tuple(patterns)
        self._matched: set[str] = set()
        self._known: list[str] = []
        self._outputs: list[Output] = []
        self._failures: list[EvaluationFailure] = []

    def finish(self) -> Evaluation:
        """Give what was found.

        Raises:
            UsageError: one of the patterns means nothing, although everything could be looked at.
        """
        unknown = [pattern for pattern in self._patterns if pattern not in self._matched]
        if unknown and not self._failures:
            known = ", ".join(self._known[:_MOST_NAMES_SHOWN]) or "none at all"
            raise UsageError(f"--attr {unknown[0]}: there is no such output; there are: {known}")
        return Evaluation(tuple(self._outputs), tuple(self._failures))

    async def add_set(self, one: OutputSet) -> None:
        """Look at all of a set; a flake need not have it."""
        held = _HoldBack(self._nix.on_line)
        ended = await self._ask(one.arguments, expression.NAMES, held)
        # A trace may say the same of a set that is there.
        if held.is_missing and ended.status:
            return
        if ended.status:
            self._failures.append(EvaluationFailure(one.label or _WHOLE_FILE, ended.reason, is_set=True))
            return
        names: Any = _read_answer(ended)
        if names is None:
            await self.add_derivation(one.label or _WHOLE_FILE, one.arguments)
            return
        chosen = []
        for name in names:
            if not self._is_wanted(one, name):
                continue
            try:
                size = len(name.encode())
            except UnicodeEncodeError:
                self._failures.append(EvaluationFailure(one.attr(name)[:80], "its name is no UTF-8"))
                continue
            if size > MOST_NAME_BYTES:
                reason = f"its name has {counted(size, 'byte')}, over the limit of {MOST_NAME_BYTES}"
                self._failures.append(EvaluationFailure(f"{one.attr(name)[:80]}...", reason))
            else:
                chosen.append(name)
        for batch in _batches(chosen, one.kind.at_once):
            await self._add_some(one, batch)

    async def add_derivation(self, attr: str, arguments: Sequence[str]) -> None:
        """Look at one derivation; ``arguments`` name it to ``nix eval``."""
        ended = await self._ask(arguments, expression.ITSELF)
        if ended.status:
            self._failures.append(EvaluationFailure(attr, ended.reason))
            return
        try:
            found = _parse_derivation(_read_answer(ended))
        except FormatError as error:
            self._failures.append(EvaluationFailure(attr, f"its drvPath: {error}"))
            return
        if found is not None:
            self._outputs.append(Output(attr, *found))
        else:
            self._failures.append(EvaluationFailure(attr, _NO_DERIVATION))

    async def _add_some(self, one: OutputSet, names: Sequence[str]) -> None:
        """Ask for all at once, then for each that threw; for every one where something cannot be caught."""
        answers: list[tuple[bool, object]] = [(False, None)] * len(names)
        if len(names) > 1:
            ended = await self._ask(one.arguments, expression.describe_many(names, one.kind.rest))
            if ended.status == 0:
                with suppress(FormatError):  # it is said of the one that gives it, below
                    answers = cast("list[tuple[bool, object]]", _read_answer(ended))
        for name, (is_told, value) in zip(names, answers, strict=True):
            if is_told:
                self._add(one, name, value)
                continue
            ended = await self._ask(one.arguments, expression.describe_one(name, one.kind.rest))
            if ended.status:
                self._failures.append(EvaluationFailure(one.attr(name), ended.reason))
                continue
            try:
                self._add(one, name, _read_answer(ended))
            except FormatError as error:
                self._failures.append(EvaluationFailure(one.attr(name), f"its drvPath: {error}"))

    def _add(self, one: OutputSet, name: str, value: object) -> None:
        try:
            found = _parse_derivation(value)
        except FormatError as error:
            self._failures.append(EvaluationFailure(one.attr(name), f"its drvPath: {error}"))
            return
        if found is not None:
            self._outputs.append(one.make_output(name, *found))
        elif one.label:
            # A file may hold functions and strings beside derivations; nix-build passes over them, too.
            self._failures.append(EvaluationFailure(one.attr(name), _NO_DERIVATION))

    async def _ask(self, arguments: Sequence[str], text: str, on_line: OnLine | None = None) -> Ended:
        return await self._nix.attempt("eval", "--json", *arguments, "--apply", text, on_line=on_line)

    def _is_wanted(self, one: OutputSet, name: str) -> bool:
        self._known.append(one.attr(name))
        matching = set(one.find_matching(name, self._patterns))
        self._matched |= matching
        return not self._patterns or bool(matching)


async def evaluate_sets(nix: Nix, sets: Iterable[OutputSet], patterns: Sequence[str]) -> Evaluation:
    """Look at all of these sets, one after another: evaluating takes memory.

    Raises:
        UsageError: one of the patterns means nothing.
    """
    evaluator = Evaluator(nix, patterns)
    for one in sets:
        await evaluator.add_set(one)
    return evaluator.finish()


class _HoldBack:
    """Passes lines on, but for the complaint that a flake lacks a set: it need not have it."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self.is_missing = False

    def __call__(self, line: str) -> None:
        self.is_missing = self.is_missing or _MISSING in line
        if not self.is_missing:
            self._on_line(line)


def _batches(names: Sequence[str], most: int) -> Iterator[list[str]]:
    """Cut into what one process is asked for, and one argument holds."""
    batch: list[str] = []
    size = 0
    for name in names:
        size += len(name.encode())
        if batch and (len(batch) == most or size > _MOST_BYTES_AT_ONCE):
            yield batch
            batch, size = [], len(name.encode())
        batch.append(name)
    if batch:
        yield batch


def _read_answer(ended: Ended) -> object:
    """Read what ``nix eval`` printed; bytes that are no UTF-8, which Nix takes in any string, stay halves.

    Raises:
        FormatError: a flake put too much of itself into it.
    """
    try:
        return json.loads(ended.stdout.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"what Nix tells cannot be read: {error}") from None


def _parse_derivation(value: object) -> tuple[StorePath, str | None] | None:
    """Read what ``describe_one`` gives; a flake may say anything there.

    Raises:
        FormatError: the path of the derivation is none.
    """
    match value:
        case [str(drv_path), str() | None as system]:
            path = StorePath.parse(drv_path)
            if not path.name.endswith(".drv"):
                raise FormatError(f"{path} is no derivation")
            return path, system
    return None
