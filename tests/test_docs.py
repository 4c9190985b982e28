"""What README and docs name exists: files, verbs and their flags, settings, options of the modules."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.cli.main import VERBS, load_verb
from nixcache_oci.settings.variables import ALL_VARIABLES

_TOP = Path(__file__).parent.parent
_PAGES = [
    _TOP / "README.md",
    _TOP / "CONTRIBUTING.md",
    *(_TOP / "docs" / f"{name}.md" for name in (
        *("architecture", "consuming", "endpoints", "json", "maintenance", "moving", "other-registries"),
        *("private-caches", "publishing", "signing", "troubleshooting", "uploads"),
    )),
]  # fmt: skip
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
# Up to where the shell, or the prose around it, goes on.
_COMMAND = re.compile(r"\bnixcache-oci ([a-z]+(?:-[a-z]+)*)((?: [^`|;#\n]*)?)")
_FLAG = re.compile(r"(?<!\S)(--?[A-Za-z][a-z-]*)")
_VARIABLE = re.compile(r"\bNIXCACHE_[A-Z_]+\b|\bNIX_SIGNING_KEY\b")
_OPTION = re.compile(r"services\.nixcache-(?:proxy|queue)\.(\w+)")
_SET = re.compile(r"services\.nixcache-(?:proxy|queue) = \{(.*?)\n *\};", re.DOTALL)
_SETTING = re.compile(r"^ *(\w+) =", re.MULTILINE)

pytestmark = pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)


def _flags_of(name: str) -> set[str]:
    """Every flag of a verb, and of its actions."""
    parser = argparse.ArgumentParser()
    load_verb(name).add_arguments(parser)
    return set(_walk(parser))


def _walk(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # argparse has no other way to list them
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _walk(below)


def test_links_lead_somewhere(page: Path) -> None:
    """A relative link names a file of this repository, and a heading that it has."""
    for target, heading in _LINK.findall(page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        assert path.exists(), target
        if heading:
            lines = path.read_text(encoding="utf-8").splitlines()
            titles = [line.lstrip("# ").lower().replace(" ", "-") for line in lines if line.startswith("#")]
            assert heading in titles, heading


def test_commands_exist(page: Path) -> None:
    """Each verb is one of the program's, and takes the flags that it is shown with."""
    for verb, rest in _COMMAND.findall(_unquoted(page)):
        assert verb in VERBS, verb
        assert set(_FLAG.findall(rest)) <= _flags_of(verb), f"{verb}{rest}"


def test_lone_flags_exist(page: Path) -> None:
    """A flag that stands alone in backticks is one of some verb's."""
    known = {flag for verb in VERBS for flag in _flags_of(verb)}
    for flag in re.findall(r"`(--[a-z-]+)`", page.read_text(encoding="utf-8")):
        assert flag in known, flag


def test_settings_exist(page: Path) -> None:
    """Each environment variable of ours is read by the program."""
    known = {variable.name for variable in ALL_VARIABLES}
    assert set(_VARIABLE.findall(page.read_text(encoding="utf-8"))) <= known


def test_module_options_exist(page: Path) -> None:
    """Each option of the modules is declared."""
    text = page.read_text(encoding="utf-8")
    named = {
        *_OPTION.findall(text),
        *(name for body in _SET.findall(text) for name in _SETTING.findall(body)),
    }
    files = ("nix/options.nix", "nix/queue-options.nix", "nix/queue-hook-option.nix")
    declared = "".join((_TOP / file).read_text(encoding="utf-8") for file in files)
    assert [
        name for name in named if not re.search(rf"^ *{name} = (?:lib\.)?mk", declared, re.MULTILINE)
    ] == []


def _unquoted(page: Path) -> str:
    """The page's code only: in prose, the program's name is no command."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"(?<!`)`([^`\n]+)`", text)])
