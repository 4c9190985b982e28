"""Asks Nix for outputs so that one that cannot be evaluated does not hide the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from nixcache_oci.clients.local_store import expression
from nixcache_oci.clients.local_store.expression import (
    MOST_SHOWN,
    NOTHING,
    SET,
    Listener,
    describe_kind,
    parse_answer,
    read_answer,
)
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.nix_settings import Systems
from nixcache_oci.clients.local_store.output import (
    SYSTEM_PLACES,
    Evaluation,
    Installable,
    NameForBuild,
    NotBuilt,
    Output,
    OutputKind,
    OutputSet,
    is_pattern,
)
from nixcache_oci.clients.local_store.program import Ended, OnLine, ignore_line
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.wording import counted

_WHOLE_FILE: Final = "default"
_MOST_NAMES_SHOWN: Final = 20
MOST_NAME_BYTES: Final = 1000
"""Of an attribute's name, which goes into an argument of Nix and into a record."""

MOST_LEVELS: Final = 8
"""Of nested sets: a set may contain itself."""

MOST_NESTED: Final = 100_000
"""Attributes in nested sets: sets that contain each other are infinite."""

_MOST_BYTES_AT_ONCE: Final = 48_000  # escaped, they fit into one argument, at most 128 KiB on Linux

_NOT_HERE: Final = "not built here"

Locate = Callable[[expression.Path], tuple[Installable, expression.Path]]
"""Returns what to ask Nix for to find an attribute, and the rest of the path from there."""


class Evaluator:
    """Asks for one set after another, and collects the answers; no patterns means all attributes."""

    def __init__(self, nix: Nix, systems: Systems, patterns: Sequence[str] = ()) -> None:
        self._nix = nix
        self._systems = systems
        self._patterns = tuple(patterns)
        self._matched: set[str] = set()
        self._known: list[str] = []
        self._outputs: list[Output] = []
        self._failures: list[NotBuilt] = []
        self._left_out: list[NotBuilt] = []

    def unmatched(self) -> list[str]:
        """Return the patterns that have matched nothing so far."""
        return [pattern for pattern in self._patterns if pattern not in self._matched]

    def finish(self) -> Evaluation:
        """Return what was found; UsageError if all could be evaluated, and a pattern matches nothing."""
        unknown = self.unmatched()
        if unknown and not self._failures:
            known = ", ".join(self._known[:_MOST_NAMES_SHOWN]) or "none"
            raise UsageError(f"--attr {unknown[0]}: no output matches; this flake has: {known}")
        failures = self._failures
        if self._patterns and not unknown and not any(map(is_pattern, self._patterns)):
            # Every name that was asked for was found, so nothing else was wanted of these sets.
            failures = [failure for failure in failures if not failure.is_set]
        return Evaluation(tuple(self._outputs), tuple(failures), tuple(self._left_out))

    async def find_systems(self, kind: OutputKind, asked: Installable) -> list[str]:
        """Return the systems to build for that a flake has outputs of this kind for."""
        listener = Listener(ignore_line)
        ended = await self._ask(asked, expression.NAMES, listener)
        names: Any = None
        with suppress(FormatError):
            names = read_answer(ended) if ended.status == 0 else None
        if not isinstance(names, list):
            return [] if listener.is_missing else list(self._systems.asked)
        others = sorted(name for name in names if isinstance(name, str) and not self._systems.can_build(name))
        if others and not self._systems.is_named and not self._patterns:
            more = f" and {len(others) - _MOST_NAMES_SHOWN} more" if len(others) > _MOST_NAMES_SHOWN else ""
            shown = ", ".join(name[:MOST_SHOWN] for name in others[:_MOST_NAMES_SHOWN])
            self._left_out.append(NotBuilt(kind.name, f"those for {shown}{more}, {_NOT_HERE}"))
        return self._systems.choose(names)

    async def add_set(self, one: OutputSet) -> bool:
        """Evaluate all of a set; returns whether the flake has it."""
        listener = Listener(self._nix.on_line)
        ended = await self._ask(one.asked, expression.NAMES, listener)
        # A trace may contain the same error although the set exists.
        if listener.is_missing and ended.status:
            return False
        if ended.status:
            await self._fail(one, (), ended.reason, listener, is_set=True)
            return True
        try:
            names: Any = read_answer(ended)
        except FormatError as error:
            await self._fail(one, (), str(error), listener, is_set=True)
            return True
        if names is None:
            await self._describe_alone(one, ())
        else:
            await self._walk(one, [(name,) for name in names if self._is_wanted(one, name)])
        return True

    async def add_path(
        self,
        attr: str,
        candidates: Iterable[expression.Path],
        locate: Locate,
        name_for_build: NameForBuild | None = None,
        pattern: str | None = None,
    ) -> None:
        """Look for an attribute path that the user named, at one place after another: the first counts.

        With a pattern, what matches it within the set at that path is wanted, else the derivation at the
        path.
        """
        failures: list[NotBuilt] = []
        for path in candidates:
            asked, inner = locate(path)
            kind = OutputKind(path[0])
            one = OutputSet(asked, path, kind, inner, pattern=pattern, name_for_build=name_for_build)
            listener = Listener(self._nix.on_line)
            ended = await self._ask(
                asked, expression.describe_one(inner, is_deep=pattern is not None), listener
            )
            if ended.status:
                if not listener.is_missing:
                    failures.append(NotBuilt(one.attr(()), ended.reason))
                continue
            try:
                answer = parse_answer(read_answer(ended))
            except FormatError as error:
                failures.append(NotBuilt(one.attr(()), str(error)))
                continue
            if pattern is not None and isinstance(answer, list):
                known = len(self._outputs) + len(self._failures)
                await self._walk(one, [(name,) for name in answer])
                if len(self._outputs) + len(self._failures) > known:
                    self._matched.add(attr)
                    return
            elif pattern is None and isinstance(answer, tuple):
                self._matched.add(attr)
                self._add(one, (), *answer)
                return
            elif inner == () or answer != NOTHING:
                found = answer if isinstance(answer, str) else SET
                hint = f"; --attr '{attr}.*' means what is in it" if found == SET else ""
                failures.append(NotBuilt(one.attr(()), f"{describe_kind(found)}{hint}"))
        self._failures += failures[:1]

    async def _walk(self, one: OutputSet, paths: Sequence[expression.Path]) -> None:
        """Evaluate attributes of a set, then those of the sets among them, and so on."""
        count = 0
        for _ in range(MOST_LEVELS):
            chosen = [path for path in paths if one.may_hold(path) and self._has_usable_name(one, path)]
            deeper: list[expression.Path] = []
            for batch in _batches(chosen, one.kind.at_once):
                deeper += await self._describe(one, batch)
            count += len(deeper)
            if count > MOST_NESTED:
                reason = f"the sets within it have over {MOST_NESTED} attributes, which is the limit"
                self._failures.append(NotBuilt(one.attr(()), reason, is_set=True))
                return
            paths = deeper
        if paths:
            reason = f"sets are nested in it over {MOST_LEVELS} deep, which is the limit"
            self._failures.append(NotBuilt(one.attr(paths[0][:1]), reason, is_set=True))

    async def _describe(self, one: OutputSet, paths: Sequence[expression.Path]) -> list[expression.Path]:
        """Ask for all at once, then for each that threw; for each alone if an error cannot be caught.

        Returns the attributes within those that are sets.
        """
        answers: list[tuple[bool, object]] = [(False, None)] * len(paths)
        if len(paths) > 1:
            text = expression.describe_many(map(one.steps, paths), is_deep=one.is_deep)
            ended = await self._ask(one.asked, text)
            if ended.status == 0:
                with suppress(FormatError):  # reported below, for the attribute that causes it
                    answers = cast("list[tuple[bool, object]]", read_answer(ended))
        deeper: list[expression.Path] = []
        for path, (is_told, value) in zip(paths, answers, strict=True):
            names = self._take(one, path, value) if is_told else await self._describe_alone(one, path)
            deeper += [(*path, name) for name in names]
        return deeper

    async def _describe_alone(self, one: OutputSet, path: expression.Path) -> list[str]:
        listener = Listener(self._nix.on_line)
        text = expression.describe_one(one.steps(path), is_deep=one.is_deep)
        ended = await self._ask(one.asked, text, listener)
        if ended.status:
            await self._fail(one, path, ended.reason, listener)
            return []
        try:
            return self._take(one, path, read_answer(ended))
        except FormatError as error:
            await self._fail(one, path, str(error), listener)
            return []

    def _take(self, one: OutputSet, path: expression.Path, value: object) -> list[str]:
        """Record what an attribute is; returns the names in it, if it is a set of further ones."""
        try:
            answer = parse_answer(value)
        except FormatError as error:
            if one.is_meant(path):
                self._failures.append(NotBuilt(one.attr(path), str(error)))
            return []
        if isinstance(answer, list):
            return answer
        if isinstance(answer, tuple):
            if one.is_meant(path):
                self._add(one, path, *answer)
        elif one.path and one.pattern is None and len(path) <= 1:
            # Files and nested sets also hold functions and strings, which nix-build skips as well.
            self._failures.append(NotBuilt(one.attr(path), describe_kind(answer)))
        return []

    def _add(self, one: OutputSet, path: expression.Path, drv_path: StorePath, system: str | None) -> None:
        attr = one.attr(path) or _WHOLE_FILE
        if not self._can_build(one, system):
            self._left_out.append(NotBuilt(attr, f"it is for {str(system)[:MOST_SHOWN]}, {_NOT_HERE}"))
            return
        self._outputs.append(Output(attr, drv_path, system, one.installable(path)))

    async def _fail(
        self, one: OutputSet, path: expression.Path, reason: str, listener: Listener, *, is_set: bool = False
    ) -> None:
        """Note what cannot be evaluated: a failure, if this machine should have built it."""
        if not one.is_meant(path):
            return
        attr = one.attr(path) or _WHOLE_FILE
        system = await self._find_foreign(one, path, listener)
        if system is not None:
            reason = f"it is for {system}, {_NOT_HERE}, and cannot be evaluated: {reason}"
        if system is not None or not one.is_wanted:
            # Nothing of a set for other systems would be built here.
            self._left_out.append(NotBuilt(attr, reason, is_set and system is None))
        else:
            self._failures.append(NotBuilt(attr, reason, is_set))

    async def _find_foreign(self, one: OutputSet, path: expression.Path, listener: Listener) -> str | None:
        """Return the other system that a failed configuration is for; None if it may be built here."""
        kind = one.kind
        if not kind.is_configuration:
            return None
        if kind.os and not self._systems.can_build_os(kind.os):
            return kind.os
        needed = [system for system in listener.required if not self._can_build(one, system)]
        if needed or not path:
            return needed[0] if needed else None
        places = [(*one.inner, *path, *place) for place in SYSTEM_PLACES]
        # All at once, then one by one: an error that cannot be caught at one place would hide the next.
        for some in (places, *([place] for place in places)):
            ended = await self._ask(one.asked, expression.find_system(some), ignore_line)
            if ended.status:
                continue
            with suppress(FormatError):
                system = read_answer(ended)
                if isinstance(system, str) and not self._can_build(one, system):
                    return system[:MOST_SHOWN]
            if some is places:
                return None
        return None

    def _can_build(self, one: OutputSet, system: str | None) -> bool:
        return self._systems.can_build(system, is_configuration=one.kind.is_configuration)

    async def _ask(self, asked: Installable, text: str, on_line: OnLine | None = None) -> Ended:
        return await self._nix.attempt(
            *("eval", "--json", "--apply", text, *asked.arguments), on_line=on_line, folder=asked.folder
        )

    def _is_wanted(self, one: OutputSet, name: str) -> bool:
        self._known.append(one.attr((name,)))
        matching = set(one.find_matching(name, self._patterns))
        self._matched |= matching
        return not self._patterns or bool(matching)

    def _has_usable_name(self, one: OutputSet, path: expression.Path) -> bool:
        """Tell whether a name can be used; notes a failure if not."""
        reason = None
        try:
            size = len(path[-1].encode())
        except UnicodeEncodeError:
            reason = "its name is not UTF-8"
        else:
            if size > MOST_NAME_BYTES:
                reason = f"its name has {counted(size, 'byte')}, over the limit of {MOST_NAME_BYTES}"
        if reason is not None:
            attr = one.attr(path)
            shown = attr if len(attr) <= MOST_SHOWN else f"{attr[:MOST_SHOWN]}..."
            self._failures.append(NotBuilt(shown, reason))
        return reason is None


def _batches(paths: Sequence[expression.Path], most: int) -> Iterator[list[expression.Path]]:
    """Split into what one process evaluates, and one argument holds."""
    batch: list[expression.Path] = []
    size = 0
    for path in paths:
        more = sum(len(name.encode()) for name in path)
        size += more
        if batch and (len(batch) == most or size > _MOST_BYTES_AT_ONCE):
            yield batch
            batch, size = [], more
        batch.append(path)
    if batch:
        yield batch
