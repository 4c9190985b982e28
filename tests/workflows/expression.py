"""Evaluates what stands in ``${{ }}``: the part of GitHub's language that our files use, nothing beyond.

Stricter than GitHub, which takes what it does not know for an empty text: a name or function that is not
there is an error here, and so is a comparison of different types. Only what a webhook may or may not have
sent is looked up as GitHub does it; see ``Payload``.

Source: GitHub's documentation, "Evaluate expressions in workflows and actions".
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

Value: TypeAlias = "bool | float | str | tuple[str, ...] | Mapping[str, Value] | None"

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^']|'')*')
      | (?P<number>-?\d+(?:\.\d+)?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_-]*)
      | (?P<sign>\|\||&&|==|!=|[!().,])
    )""",
    re.VERBOSE,
)
_PLACEHOLDER: Final = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_CONSTANTS: Final[Mapping[str, Value]] = {"true": True, "false": False, "null": None}
STATUS_FUNCTIONS: Final = ("success", "failure", "cancelled", "always")


class ExpressionError(Exception):
    """An expression that this evaluator does not take."""


class Payload(dict[str, Value]):
    """Something whose keys depend on circumstances: what is missing is null, and so is all below it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What expressions can name.

    Attributes:
        contexts: such as ``inputs`` and ``github``.
        status: how the job stands: success or failure.
    """

    contexts: Mapping[str, Value]
    status: str = "success"

    def evaluate(self, text: str) -> Value:
        """Evaluate what stands between the braces.

        Raises:
            ExpressionError: it is not in the language, or names what is not there.
        """
        parser = _Parser(_split(text), self)
        value = parser.parse_or()
        if parser.tokens:
            raise ExpressionError(f"{text!r}: did not expect {parser.tokens[0][1]!r}")
        return value

    def render(self, text: str) -> str:
        """Put the values into a text that has placeholders."""
        return _PLACEHOLDER.sub(lambda found: render(self.evaluate(found[1])), text)

    def decide(self, condition: str | None) -> bool:
        """Tell whether something with this ``if`` runs: without a status function, only after success."""
        text = condition or "success()"
        wrapped = _PLACEHOLDER.fullmatch(text.strip())
        text = wrapped[1] if wrapped else text
        has_status = any(re.search(rf"\b{name}\(", text) for name in STATUS_FUNCTIONS)
        return is_true(self.evaluate(text if has_status else f"success() && ({text})"))


def is_true(value: Value) -> bool:
    """Tell what counts as true: a text does even where it reads false."""
    return bool(value) or isinstance(value, Mapping)


def render(value: Value) -> str:
    """Write a value as GitHub puts it into a text.

    Raises:
        ExpressionError: there is no such form.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value
    raise ExpressionError(f"an object is no text: {sorted(value)}")


_Token: TypeAlias = tuple[str, str]


def _split(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    rest = text.strip()
    while rest:
        found = _TOKEN.match(rest)
        if found is None or found.lastgroup is None:
            raise ExpressionError(f"{text!r}: cannot read {rest!r}")
        tokens.append((found.lastgroup, found[found.lastgroup]))
        rest = rest[found.end() :].lstrip()
    return tokens


class _Parser:
    """Evaluates while it reads; ``&&`` and ``||`` give one of their sides, and both sides are read."""

    def __init__(self, tokens: list[_Token], scope: Scope) -> None:
        self.tokens = tokens
        self._scope = scope

    def parse_or(self) -> Value:
        value = self._parse_and()
        while self._take("||"):
            other = self._parse_and()
            value = value if is_true(value) else other
        return value

    def _parse_and(self) -> Value:
        value = self._parse_comparison()
        while self._take("&&"):
            other = self._parse_comparison()
            value = other if is_true(value) else value
        return value

    def _parse_comparison(self) -> Value:
        value = self._parse_not()
        for sign, wanted in (("==", True), ("!=", False)):
            if self._take(sign):
                return _are_equal(value, self._parse_not()) is wanted
        return value

    def _parse_not(self) -> Value:
        if self._take("!"):
            return not is_true(self._parse_not())
        return self._parse_operand()

    def _parse_operand(self) -> Value:
        if not self.tokens:
            raise ExpressionError("the expression ends too early")
        kind, text = self.tokens.pop(0)
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "number":
            return float(text)
        if kind == "name":
            return self._parse_name(text)
        if text == "(":
            value = self.parse_or()
            self._expect(")")
            return value
        raise ExpressionError(f"did not expect {text!r}")

    def _parse_name(self, name: str) -> Value:
        if self._take("("):
            return self._call(name, self._parse_arguments())
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        value = _look_up(self._scope.contexts, name, "a context")
        path = name
        while self._take("."):
            kind, key = self.tokens.pop(0) if self.tokens else ("", "")
            if kind != "name":
                raise ExpressionError(f"{path}.: expected a name")
            value = _look_up(value, key, path)
            path = f"{path}.{key}"
        return value

    def _parse_arguments(self) -> list[Value]:
        if self._take(")"):
            return []
        arguments = [self.parse_or()]
        while self._take(","):
            arguments.append(self.parse_or())
        self._expect(")")
        return arguments

    def _call(self, name: str, arguments: list[Value]) -> Value:
        match name, arguments:
            case "fromJSON", [str(text)]:
                return _parse_texts(text)
            case "contains", [tuple(texts), str(one)]:
                return any(_are_equal(text, one) for text in texts)
        status = self._scope.status
        functions: Mapping[str, Callable[[], bool]] = {
            "success": lambda: status == "success",
            "failure": lambda: status == "failure",
            "cancelled": lambda: False,
            "always": lambda: True,
        }
        if name not in functions or arguments:
            raise ExpressionError(f"there is no function {name} with {len(arguments)} such arguments here")
        return functions[name]()

    def _take(self, sign: str) -> bool:
        if self.tokens and self.tokens[0] == ("sign", sign):
            del self.tokens[0]
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise ExpressionError(f"expected {sign!r}")


def _parse_texts(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ExpressionError(f"fromJSON: expected a list of texts, got {text!r}")
    return tuple(found)


def _look_up(value: Value, key: str, path: str) -> Value:
    if value is None:  # only a payload has such; below what is missing, everything is
        return None
    if isinstance(value, Payload):
        return value.get(key)
    if isinstance(value, Mapping) and key in value:
        return value[key]
    raise ExpressionError(f"{path} has no {key}")


def _are_equal(one: Value, other: Value) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.casefold() == other.casefold()
    if type(one) is not type(other) or isinstance(one, Mapping):
        raise ExpressionError(f"{one!r} and {other!r} are not of one type")
    return one == other
