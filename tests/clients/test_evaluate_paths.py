"""Where a flake lies, and how its attributes are named."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store import evaluator, expression
from nixcache_oci.clients.local_store.build import build
from nixcache_oci.clients.local_store.evaluate import evaluate_file, evaluate_flake
from nixcache_oci.clients.local_store.output import Evaluation
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import FormatError, UsageError
from tests.clients.nix_story import SYSTEM, SYSTEMS, NixStory, attrs_of, evaluate
from tests.support.programs import require_program

nix = pytest.mark.needs("nix", "nix-store")


@nix
@pytest.mark.parametrize("name", ["my project", "c#", "a?b", "100% ü", "p%20q", "[q'u\"o\\te]", "@$HOME:x"])
async def test_folders_of_any_name(story: NixStory, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A bare name of a folder is that folder, no URL and in no registry of flakes; from wherever."""
    story.write_flake(f'packages.{SYSTEM}."ü^%#?" = mk "a";')
    folder = (story.folder / "flake").rename(story.folder / name)
    monkeypatch.chdir(folder)
    assert len((await evaluate_flake(story.nix(), ".", SYSTEMS)).outputs) == 1
    monkeypatch.chdir(story.folder)
    found = await evaluate_flake(story.nix(), name, SYSTEMS)
    assert attrs_of(found) == [f'packages.{SYSTEM}."ü^%#?"']
    result = await build(await LocalStore.open(story.nix()), found.outputs, accept_flake_config=True)
    assert result.failed == {}


@nix
async def test_an_attribute_behind_the_flake(story: NixStory, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLAKE#ATTR, as `nix build` takes it, is that output alone; a folder with such a name is a folder."""
    story.write_flake(f'packages.{SYSTEM} = {{ a = mk "a"; b = mk "b"; "c d" = mk "c"; }};')
    monkeypatch.chdir(story.folder / "flake")
    for flake, names in {
        ".#a": ["a"],
        f"#packages.{SYSTEM}.b": ["b"],
        f"{story.folder}/flake#b": ["b"],
        f"path:{story.folder}/flake#a": ["a"],
        ".#c%20d": ['"c d"'],
        ".#": ["a", "b", '"c d"'],
    }.items():
        found = await evaluate_flake(story.nix(), flake, SYSTEMS)
        assert attrs_of(found) == [f"packages.{SYSTEM}.{name}" for name in names]
    assert len((await evaluate_flake(story.nix(), ".#a", SYSTEMS, attrs=["b"])).outputs) == 2
    monkeypatch.chdir(story.folder)
    (story.folder / "flake").rename(story.folder / "a#b")
    assert len((await evaluate_flake(story.nix(), "a#b", SYSTEMS)).outputs) == 3


@nix
async def test_relative_programs(story: NixStory, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH is read where the user is, not where the flake is."""
    story.write_flake(f'packages.{SYSTEM}.a = mk "a";')
    path = story.nix().environment["PATH"]
    (story.folder / "programs").symlink_to(Path(require_program("nix")).parent)
    monkeypatch.chdir(story.folder)
    assert attrs_of(await evaluate_flake(story.nix(PATH=f"programs:{path}"), "flake", SYSTEMS))


_WEB = "nixosConfigurations.web"
_NESTED = f"""
  packages.{SYSTEM} = {{
    hello = mk "hello" // {{ tests.unit = mk "unit"; }};
    set = {{ recurseForDerivations = true; inner = mk "inner"; text = "text"; }};
  }};
  legacyPackages.{SYSTEM} = {{
    hello = throw "not this one"; deep.er = mk "deeper"; "a.b" = mk "ab"; more = mk "more"; f = x: x;
    python.pkgs = {{ recurseForDerivations = true; one = mk "one"; two = mk "two"; }};
  }};
  hydraJobs = {{
    build.{SYSTEM} = mk "build"; build.riscv64-linux = mk "far" // {{ system = "riscv64-linux"; }};
    release = mk "release"; "odd \\"name" = mk "odd";
  }};
  nixosConfigurations.web.config.system.build = {{ toplevel = mk "web"; image = mk "image"; }};
  any.where."at all" = mk "any";
"""


async def _find(story: NixStory, attrs: Sequence[str]) -> Evaluation:
    return await evaluate(story, _NESTED, attrs)


@nix
@pytest.mark.parametrize(
    ("attr", "names"),
    [
        *[(name, name) for name in ("hydraJobs.release", r'hydraJobs."odd \"name"', 'any.where."at all"')],
        *[(name, name) for name in (f"packages.{SYSTEM}.hello.tests.unit", f"hydraJobs.build.{SYSTEM}")],
        *[(f"{_WEB}{end}",) * 2 for end in (".config.system.build.toplevel", ".config.system.build.image")],
        (f"legacyPackages.{SYSTEM}.deep.er", f"legacyPackages.{SYSTEM}.deep.er"),
        ("hello", f"packages.{SYSTEM}.hello"),
        ("packages.hello.tests.unit", f"packages.{SYSTEM}.hello.tests.unit"),
        ("hello.tests.unit", f"packages.{SYSTEM}.hello.tests.unit"),
        *(("set", f"packages.{SYSTEM}.set.inner"), ("set.inner", f"packages.{SYSTEM}.set.inner")),
        *(("more", f"legacyPackages.{SYSTEM}.more"), ("deep.er", f"legacyPackages.{SYSTEM}.deep.er")),
        ("legacyPackages.deep.er", f"legacyPackages.{SYSTEM}.deep.er"),
        ('legacyPackages."a.b"', f'legacyPackages.{SYSTEM}."a.b"'),
        ("legacyPackages.mo*", f"legacyPackages.{SYSTEM}.more"),
        ("python.*", " ".join(f"legacyPackages.{SYSTEM}.python.pkgs.{name}" for name in ("one", "two"))),
        ("legacyPackages.python.pkgs.t*", f"legacyPackages.{SYSTEM}.python.pkgs.two"),
        ("hydraJobs.*", rf'hydraJobs."odd \"name" hydraJobs.release hydraJobs.build.{SYSTEM}'),
        *((f"hydraJobs.*.{SYSTEM}", f"hydraJobs.build.{SYSTEM}"), ("web", _WEB)),
    ],
)
async def test_any_path_of_attributes(story: NixStory, attr: str, names: str) -> None:
    """--attr reaches what `nix build` reaches, the system left away or not, and patterns what is in a set."""
    found = await _find(story, [attr])
    assert (" ".join(attrs_of(found)), found.failures) == (names, ())


@nix
async def test_what_a_path_cannot_mean(story: NixStory) -> None:
    """A set says how to name what is in it; what throws is its own failure; a typo is told what there is."""
    (failure,) = (await _find(story, ["hydraJobs.build"])).failures
    assert failure.reason == "it is a set, not a derivation; --attr 'hydraJobs.build.*' means what is in it"
    (failure,) = (await _find(story, ["legacyPackages.hello", "release"])).failures
    assert (failure.attr, failure.reason) == (f"legacyPackages.{SYSTEM}.hello", "not this one")
    for attr in (
        "hydraJobs.absent",
        "hydraJobs.absent.*",
        "absent.*",
        "hydraJobs..x",
        'hydraJobs."x',
        "*.none",
    ):
        with pytest.raises(UsageError, match="no output matches"):
            await _find(story, [attr])


@nix
async def test_nobody_else_is_in_the_way(story: NixStory) -> None:
    """What is wrong elsewhere in the flake is no failure of what was asked for by its name."""
    outputs = f"""
        packages.{SYSTEM}.broken = throw "broken"; homeConfigurations = throw "homes are broken";
        hydraJobs.x = mk "x"; nixosConfigurations.web.config.system.build.toplevel = mk "web";
    """
    for attr in ("hydraJobs.x", "nixosConfigurations.web"):
        assert (await evaluate(story, outputs, [attr])).failures == ()


@nix
async def test_sets_without_end(story: NixStory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets that hold themselves, or one another, end at a bound, which is told once."""
    outputs = 'hydraJobs = rec { a = mk "a"; self = { inherit self a; }; };'
    found = await evaluate(story, outputs, ["hydraJobs.*"])
    assert len(found.outputs) == evaluator.MOST_LEVELS
    (failure,) = found.failures
    assert f"over {evaluator.MOST_LEVELS} deep" in failure.reason
    monkeypatch.setattr(evaluator, "MOST_NESTED", 4)
    (failure,) = (await evaluate(story, outputs, ["hydraJobs.*"])).failures
    assert "over 4 attributes" in failure.reason


@nix
async def test_outputs_of_older_flakes(story: NixStory) -> None:
    """`nix build .` and `nix develop` still take one derivation a system, where a flake has no more."""
    old = f'defaultPackage.{SYSTEM} = mk "old"; devShell.{SYSTEM} = mk "shell";'
    assert attrs_of(await evaluate(story, old)) == [f"defaultPackage.{SYSTEM}", f"devShell.{SYSTEM}"]
    both = await evaluate(story, f'{old} packages.{SYSTEM}.new = mk "new";')
    assert attrs_of(both) == [f"packages.{SYSTEM}.new", f"devShell.{SYSTEM}"]


@nix
async def test_paths_in_a_file(story: NixStory) -> None:
    """A set that asks for it is looked into, as nix-build does it, and a pattern may begin behind a path."""
    text = f"""let mk = name: derivation {{ inherit name; system = "{SYSTEM}"; builder = "/bin/sh"; }}; in {{
      all = {{ recurseForDerivations = true; a = mk "a"; }}; nested.inner = {{ b = mk "b"; c = mk "c"; }};
      function = {{ x ? "d" }}: {{ d = mk x; }};
    }}"""
    folder = story.write("default.nix", text)
    assert attrs_of(await evaluate_file(story.nix(), folder, SYSTEMS)) == ["all.a"]
    attrs = ["nested.inner.*", "function.d"]
    found = await evaluate_file(story.nix(), folder, SYSTEMS, attrs=attrs)
    assert attrs_of(found) == ["nested.inner.b", "nested.inner.c", "function.d"]
    option = await evaluate_file(story.nix(), folder, SYSTEMS, attrs=["--impure"])
    assert [failure.attr for failure in option.failures] == ['"--impure"']


@pytest.mark.parametrize(
    "path", [("a",), ("a", "b-c"), ("a.b", "c"), ('q"', "\\", "\n"), ("${x}",), ("ü", "#?%^")]
)
def test_paths_are_read_as_they_are_written(path: tuple[str, ...]) -> None:
    """What the program prints of an attribute names it on the command line."""
    assert expression.parse_path(expression.write_path(path)) == path


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", '"a', 'a."b'])
def test_no_paths(text: str) -> None:
    """A path has a name on both sides of each dot, and its quotes are closed."""
    with pytest.raises(FormatError):
        expression.parse_path(text)
