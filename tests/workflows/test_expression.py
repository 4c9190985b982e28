"""The evaluator: GitHub's rules where our files rely on them, and an error everywhere else."""

import pytest

from tests.workflows.expression import ExpressionError, Payload, Scope, Value

CONTEXTS: dict[str, Value] = {
    "inputs": {"name": "world", "empty": "", "dry-run": None},
    "github": {"event": Payload({"pull_request": Payload({"number": 7.0})}), "ref_type": "branch"},
    "steps": {"one": {"outputs": Payload({"missing": "true"})}},
}
SCOPE = Scope(CONTEXTS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'it''s'", "it's"),
        ("inputs.name", "world"),
        ("github.event.pull_request.number", 7.0),
        ("github.event.pull_request.head.repo.full_name", None),
        ("github.event.a.b || 'c'", "c"),
        ("inputs.empty || inputs.name", "world"),
        ("inputs.name && inputs.empty", ""),
        ("inputs.dry-run || false", False),
        ("!inputs.empty", True),
        ("'A' == 'a'", True),
        ("1 != 2.0", True),
        ("true || false && false", True),
        ("(true || false) && false", False),
        ("steps.one.outputs.missing == 'true' && github.ref_type == 'branch'", True),
        ("always() && !cancelled()", True),
        ('contains(fromJSON(\'["a", "World"]\'), inputs.name)', True),
        ("contains(fromJSON('[\"worldly\"]'), inputs.name)", False),
    ],
)
def test_values(text: str, value: Value) -> None:
    """Operators give one of their sides, bind as in C, and texts are compared without regard to case."""
    assert SCOPE.evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "inputs.nmae",
        "input.name",
        "github.sha",
        "inputs.name.more",
        "steps.two.outputs.x",
        "fromJSON('1')",
        "success(1)",
        "contains(inputs.name, 'w')",
        "fromJSON('[1]')",
        "fromJSON('[')",
        "inputs.name == true",
        "inputs.name == inputs.dry-run",
        "inputs == inputs",
        'inputs["name"]',
        "inputs.name inputs.name",
        "(true",
        "inputs.",
        "'open",
        "1 +",
    ],
)
def test_mistakes(text: str) -> None:
    """A name that is not there, or what is not in the language, is an error and no empty text."""
    with pytest.raises(ExpressionError):
        SCOPE.evaluate(text)


def test_texts() -> None:
    """Values are written as GitHub writes them; an object is not written."""
    assert (
        SCOPE.render("a ${{ inputs.name }}, ${{ github.event.x }}${{ true }} ${{ 2 }}!") == "a world, true 2!"
    )
    with pytest.raises(ExpressionError):
        SCOPE.render("${{ inputs }}")


@pytest.mark.parametrize(
    ("condition", "after_success", "after_failure"),
    [
        (None, True, False),
        ("inputs.name == 'world'", True, False),
        ("${{ inputs.name == 'other' }}", False, False),
        ("always()", True, True),
        ("${{ !cancelled() && inputs.name != '' }}", True, True),
        ("failure()", False, True),
    ],
)
def test_conditions(condition: str | None, after_success: bool, after_failure: bool) -> None:
    """Without a word on the status, nothing runs after a failure."""
    assert Scope(CONTEXTS).decide(condition) is after_success
    assert Scope(CONTEXTS, "failure").decide(condition) is after_failure
