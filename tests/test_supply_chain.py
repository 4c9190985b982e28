"""What is installed beside this project is pinned, hashed, and has a reason."""

import base64
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from nixcache_oci.cli.starter import PLACEHOLDER

_ROOT = Path(__file__).parent.parent
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)


# The tests', and what the workflows install; and what locks and audits those.
_LOCKS = ("requirements.txt", "workflows/setup/requirements.txt", "scripts/completion/requirements.txt")
_TOOLS = "scripts/requirements.txt"


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


def _others() -> set[str]:
    return {name for extra in ("dev", "completion") for name in _declared(extra)}


def _tools() -> set[str]:
    lines = (_ROOT / "scripts/requirements.in").read_text(encoding="utf-8").splitlines()
    return {_name(line) for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("lock", [*_LOCKS, _TOOLS])
def test_a_lock_pins_and_hashes_everything(lock: str) -> None:
    """Every requirement is one version with its hashes, and no index and no address is named."""
    requirements = list(_requirements(lock))
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9._-]+==[^ ;]+ ", requirement), requirement
        assert requirement.count("--hash=sha256:") >= 1, requirement
        assert "://" not in requirement


def test_the_changelog_knows_the_version() -> None:
    """A release has a section of its own; what is being worked on (``.dev0``) comes first, as Unreleased."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.findall(r"^## ([^ \n]+)", changelog, re.MULTILINE)[0]
    version = project["version"]
    assert (first == "Unreleased") if version.endswith(".dev0") else (first == version)


def test_every_lock_is_named() -> None:
    """A lock that this file does not know would be held to none of its rules."""
    found = {
        str(path.relative_to(_ROOT))
        for path in _ROOT.glob("*/**/requirements.txt")
        if ".venv" not in str(path)
    }
    assert found | {"requirements.txt"} == {*_LOCKS, _TOOLS}


@pytest.mark.parametrize(("lock", "extra"), [*zip(_LOCKS, ("dev", None, "completion"), strict=True)])
def test_every_declared_dependency_is_locked(lock: str, extra: str | None) -> None:
    """What pyproject.toml asks for, the lock has: nothing else is ever installed."""
    locked = {_name(requirement) for requirement in _requirements(lock)}
    assert extra == "completion" or _declared() <= locked
    assert extra is None or _declared(extra) <= locked


def test_a_runner_installs_what_was_tested() -> None:
    """The same versions by the same hashes, all that the program needs, and nothing of the tests."""
    tests, program = ({_name(one): one.split() for one in _requirements(lock)} for lock in _LOCKS[:2])
    for name, pinned in program.items():
        assert pinned[0] == tests[name][0]
        assert set(pinned) - {"\\"} <= set(tests[name])
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {_name(one) for one in project["build-system"]["requires"]} | _declared() <= program.keys()
    assert not program.keys() & {"mypy", "pytest", "ruff"}


def test_programs_in_go_are_of_one_version() -> None:
    """Go's checksum database then holds everybody to the same bytes; each has its reason."""
    text = (_ROOT / "scripts/go-programs").read_text(encoding="utf-8")
    reasons = (_ROOT / "docs/decisions/dependencies.md").read_text(encoding="utf-8")
    programs = re.findall(r"github\.com/\S*?([\w-]+)@(v\d+\.\d+\.\d+)\b", text)
    assert len(programs) == text.count("@v") == 4
    assert [name for name, _ in programs if f"{name}**" not in reasons] == []


def test_the_tools_are_locked() -> None:
    """What writes the locks, and says what of them is safe, is held to hashes like the rest."""
    assert _tools() <= {_name(requirement) for requirement in _requirements(_TOOLS)}
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    installed = re.findall(r"pip install (.*)", makefile)
    assert installed
    assert all("--require-hashes -r " in one for one in installed)
    for lock in (*_LOCKS, _TOOLS):
        assert re.search(rf"-o {lock}\b", makefile), lock
    (audited,) = re.findall(r"for lock in (.*);", makefile)
    assert set(audited.split()) == {*_LOCKS, _TOOLS}


def test_what_may_break_is_bounded() -> None:
    """No newer version is taken unseen where internals are used, or where nothing is promised yet.

    aiohttp's server protocol and client requests are extended here; before version 1, any release may break.
    """
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounded = {_name(one): one for one in project["dependencies"] if re.search(r"<\d", one)}
    sources = "".join(path.read_text(encoding="utf-8") for path in (_ROOT / "nixcache_oci").rglob("*.py"))
    assert re.search(r"\((?:web\.RequestHandler|aiohttp\.ClientRequest)\)", sources)
    assert "<4" in bounded["aiohttp"]
    versions = dict(
        re.findall(r"^([a-z0-9-]+)==(\S+)", (_ROOT / _LOCKS[0]).read_text(encoding="utf-8"), re.MULTILINE)
    )
    unstable = {name for name in _declared() if versions[name].startswith("0.")}
    assert unstable
    assert unstable <= bounded.keys()


def test_the_flakes_inputs_are_locked() -> None:
    """Who uses the flake gets the nixpkgs that was looked at: flake.lock resolves what flake.nix names."""
    lock = json.loads((_ROOT / "flake.lock").read_text(encoding="utf-8"))
    nodes = lock["nodes"]
    named = dict(
        re.findall(r'inputs\.(\w+)\.url = "([^"]+)"', (_ROOT / "flake.nix").read_text(encoding="utf-8"))
    )
    assert nodes[lock["root"]]["inputs"].keys() == named.keys()
    assert nodes.keys() == {lock["root"], *named}
    for name, url in named.items():
        original, locked = nodes[name]["original"], nodes[name]["locked"]
        assert url == f"{original['type']}:{original['owner']}/{original['repo']}/{original['ref']}"
        assert {part: locked[part] for part in ("type", "owner", "repo")} == {
            part: original[part] for part in ("type", "owner", "repo")
        }
        assert re.fullmatch(r"[0-9a-f]{40}", locked["rev"])
        assert len(base64.b64decode(locked["narHash"].removeprefix("sha256-"), validate=True)) == 32


def test_the_bot_sees_every_lock_and_action() -> None:
    """Newer versions are proposed for each folder that pins something, a week after their release."""
    bot = YAML(typ="safe", pure=True).load(_ROOT / ".github/dependabot.yml")
    updates = {update["package-ecosystem"]: update for update in bot["updates"]}
    assert updates.keys() == {"pip", "github-actions"}
    folders = {f"/{Path(lock).parent}".removesuffix(".") for lock in (*_LOCKS, _TOOLS)}
    assert set(updates["pip"]["directories"]) == folders
    seen = set(updates["github-actions"]["directories"])
    assert {"/", "/workflows/*", "/nixcache_oci/starter/.github/workflows"} <= seen
    assert {path.parent.parent for path in _ROOT.glob("*/**/action.yml")} == {_ROOT / "workflows"}
    ignored = {one["dependency-name"] for one in updates["github-actions"]["ignore"]}
    assert ignored == {f"{PLACEHOLDER.partition('/')[0]}/*"}
    for update in updates.values():
        assert update["cooldown"]["default-days"] >= 7
        assert update["groups"]


def test_weaknesses_are_asked_for_daily() -> None:
    """A weakness that becomes known is named by a run that fails, also where nothing changes here."""
    workflow = YAML(typ="safe", pure=True).load(_ROOT / ".github/workflows/audit.yml")
    (schedule,) = workflow["on"]["schedule"]
    minute, hour, *every = schedule["cron"].split()
    assert minute.isdecimal()
    assert hour.isdecimal()
    assert every == ["*"] * 3
    assert workflow["jobs"]["audit"]["steps"][-1] == {"run": "make audit"}


def test_every_dependency_has_a_reason() -> None:
    """The program's dependencies are the decision's table, no more and no less; the others are named."""
    text = (_ROOT / "docs" / "decisions" / "dependencies.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    reasons = {row[1].strip(): row[2].strip() for row in rows if row[1].strip() != "package"}
    assert reasons.keys() == _declared()
    assert all(reasons.values())
    assert not [name for name in _others() | _tools() if name not in text.lower()]
