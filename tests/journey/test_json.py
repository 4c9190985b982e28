"""``--json``: one object on standard output, whose keys are those of docs/json.md, whatever came of it."""

import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.nix import NixSandbox
from tests.support.publisher import Machine

pytestmark = pytest.mark.needs("nix")

_PAGE = Path(__file__).parents[2] / "docs/json.md"
_SECTION = re.compile(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_ROW = re.compile(r"^\| `([^`]+)` \| (.*) \|$", re.MULTILINE)
_ELSEWHERE = re.compile(r"as under `([^`]+)`")


def documented() -> dict[str, set[str]]:
    """The keys of each verb; what is told under another is put in."""
    rows = {title: _ROW.findall(body) for title, body in _SECTION.findall(_PAGE.read_text("utf-8"))}
    found: dict[str, set[str]] = {}
    for title, keys in rows.items():
        told: set[str] = set()
        for key, text in keys:
            told.add(key)
            if other := _ELSEWHERE.search(text):
                below = (name.partition("[].")[2] for name, _ in rows[other[1]])
                told |= {f"{key}.{name}" for name in below if name}
        found |= dict.fromkeys(title.split(", "), told)
    return found


KEYS = documented()


class Story:
    """A machine with a cache, whose every output is held to the page.

    Args:
        machine: that runs the program.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.seen: dict[str, set[str]] = {verb: set() for verb in KEYS}

    def run(
        self,
        verb: str,
        *arguments: str,
        status: int = 0,
        input_text: str = "",
        settings: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        ran = self.machine.run(*verb.split(), *arguments, "--json", input_text=input_text, **(settings or {}))
        assert ran.status == status, ran.stderr
        document: dict[str, Any] = json.loads(ran.stdout)
        keys = set(walk(document, KEYS[verb]))
        assert keys - KEYS[verb] == set(), verb
        tops = {key.partition(".")[0].removesuffix("[]") for key in KEYS[verb]}
        assert tops - document.keys() == ({"done"} if verb == "gc" and "--dry-run" in arguments else set())
        self.seen[verb] |= keys
        return document


def walk(value: object, known: set[str], path: str = "") -> Iterator[str]:
    """Give the path of each key; what the page tells as one value is one, whatever it holds."""
    if path in known:
        yield path
        if not any(other.startswith((f"{path}.", f"{path}[]")) for other in known):
            return
    if isinstance(value, dict):
        for key, below in value.items():
            yield from walk(below, known, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        # None of a list of words is shown as well as some are.
        for below in value or [None] * (f"{path}[]" in known):
            yield from walk(below, known, f"{path}[]")
    elif path not in known:
        yield path


@pytest.fixture
def story(nix: NixSandbox, tmp_path: Path) -> Story:
    settings = {
        "NIXCACHE_REGISTRY": f"oci:{tmp_path / 'cache'}",
        "NIX_SIGNING_KEY": SecretKey.generate("json-1").render(),
    }
    return Story(Machine(tmp_path / "machine", nix, settings))


def test_every_key_is_told_and_printed(story: Story, nix: NixSandbox, tmp_path: Path) -> None:
    """Each verb prints what the page says and no more, when it worked, had nothing to do, or did a part."""
    one, other = nix.build_paths(2, seed="json")
    large = nix.build_file("large", random.Random(1).randbytes(3_000_000))
    gone = f"/nix/store/{'0' * 32}-gone"
    expression = tmp_path / "outputs.nix"
    expression.write_text(
        """let mk = name: script: derivation {
          inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ];
        }; in { good = mk "good" "echo > $out"; bad = mk "bad" "exit 1"; }"""
    )
    dry = story.run("push", one, "--dry-run", "--stdin", input_text=f"{gone}\n", status=1)
    assert [path["path"] for path in dry["plan"]["push"]] == [one]
    assert (dry["dryRun"], dry["pushed"]) == (True, [])
    assert dry["failed"] == [{"name": gone, "reason": "it is not valid in this store"}]
    assert [path["path"] for path in story.run("push", one, large)["pushed"]] == [one, large]
    again = story.run("push", one)
    assert (again["pushed"], again["written"], again["plan"]["cached"]) == ([], [], 1)
    assert story.run("push", "--stdin")["plan"] == {"upstream": 0, "cached": 0, "sign": [], "push": []}
    second = SecretKey.generate("json-2").render()
    signed = story.run("push", one, "--new-key", settings={"NIX_SIGNING_KEY": second})["signed"]
    assert signed == [one]
    outputs = story.run("publish", "--file", str(expression), status=1)["outputs"]
    assert [(output["attr"], len(output["paths"]), output["reason"] is None) for output in outputs] == [
        ("good", 1, True),
        ("bad", 0, False),
    ]
    story.run("publish", "--file", str(expression), "-A", "good", "--dry-run")

    found, listed = story.run("search", "large")["paths"], story.run("list")["paths"]
    assert found == [one for one in listed if one["path"] == large]
    story.run("pin create", "release", one, "--stdin", input_text="./missing\n", status=1)
    story.run("push", other)
    story.run("pin create", "release", other)
    for verb in ("pin list", "list --roots", "queue status"):
        story.run(verb)
    story.run("info", one, "--stdin", input_text="./missing\n", status=1)
    story.run("pin remove", "release")
    story.run("gc", "--dry-run")
    story.run("gc", "--retention-days", "0", "--grace-days", "0", "--min-age-hours", "0")
    story.run("doctor", "--publisher", status=story.machine.run("doctor", "--publisher").status)

    copy = f"oci:{tmp_path / 'copy'}"
    assert [story.run("mirror", f"oci:{tmp_path / 'cache'}", copy)["sent"] > 0 for _ in "ab"] == [True, False]
    flat = str(tmp_path / "flat")
    assert story.run("export", flat)["exported"] > 0
    assert story.run("export", flat)["exported"] == 0
    into = {"NIXCACHE_REGISTRY": f"oci:{tmp_path / 'imported'}"}
    next((tmp_path / "flat").glob("*.narinfo")).write_text("no narinfo")
    assert story.run("import", flat, settings=into, status=1)["failed"]
    story.run("import", flat, "--stdin", settings=into)

    # What the cache lost is told by each verb, with the rest.
    blobs = tmp_path / "cache/blobs/sha256"
    max(blobs.iterdir(), key=lambda blob: blob.stat().st_size).unlink()
    for verb, *arguments in (
        ("mirror", f"oci:{tmp_path / 'cache'}", f"oci:{tmp_path / 'new'}"),
        ("export", f"{flat}2"),
    ):
        assert [path["name"] for path in story.run(verb, *arguments, status=1)["failed"]] == [large]
    story.run("verify", status=1)
    story.run("verify --repair", "--dry-run", status=1)
    story.run("verify --repair")
    # These print the same, and not each of them was made to print all of it.
    for same in (("push", "publish", "import"), ("pin create", "pin remove"), ("verify", "verify --repair")):
        seen = set[str]().union(*(story.seen[verb] for verb in same))
        for verb in same:
            story.seen[verb] = seen
    assert {verb: KEYS[verb] - story.seen[verb] for verb in KEYS if KEYS[verb] - story.seen[verb]} == {}
