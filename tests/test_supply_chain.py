"""What is installed beside this project is pinned, hashed, and has a reason."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)


# The tests', what the workflows install, and the bench's.
_LOCKS = ("requirements.lock", "workflows/setup/requirements.lock", "bench/requirements.lock")


def _requirements(lock: str) -> Iterator[str]:
    """Each of a lock's requirements, its continued lines joined."""
    text = (_ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    return (line for line in text.splitlines() if line and not line.lstrip().startswith("#"))


def _name(requirement: str) -> str:
    found = _NAME.match(requirement)
    assert found is not None, requirement
    return found[0].lower().replace("_", "-").replace(".", "-")


def _declared(extra: str | None = None) -> set[str]:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {_name(one) for one in asked}


@pytest.mark.parametrize("lock", _LOCKS)
def test_a_lock_pins_and_hashes_everything(lock: str) -> None:
    """Every requirement is one version with its hashes, and no index and no address is named."""
    requirements = list(_requirements(lock))
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9._-]+==[^ ;]+ ", requirement), requirement
        assert requirement.count("--hash=sha256:") >= 1, requirement
        assert "://" not in requirement


@pytest.mark.parametrize(("lock", "extra"), [*zip(_LOCKS, ("dev", None, "bench"), strict=True)])
def test_every_declared_dependency_is_locked(lock: str, extra: str | None) -> None:
    """What pyproject.toml asks for, the lock has: nothing else is ever installed."""
    locked = {_name(requirement) for requirement in _requirements(lock)}
    assert _declared() <= locked
    assert extra is None or _declared(extra) <= locked


def test_every_dependency_has_a_reason() -> None:
    """The program's dependencies are the decision's table, no more and no less; the others are named."""
    text = (_ROOT / "docs" / "decisions" / "dependencies.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    reasons = {row[1].strip(): row[2].strip() for row in rows if row[1].strip() != "package"}
    assert reasons.keys() == _declared()
    assert all(reasons.values())
    assert not [name for name in _declared("dev") | _declared("bench") if name not in text.lower()]
