from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.evaluate import evaluate_file, evaluate_flake
from nixcache_oci.clients.local_store.evaluator import MOST_NAME_BYTES
from nixcache_oci.clients.local_store.output import Evaluation
from nixcache_oci.errors import StoreError, UsageError
from nixcache_oci.nix.nix_string import quote
from tests.clients.nix_story import SYSTEM, SYSTEMS, NixStory, attrs_of, evaluate, reasons_of

pytestmark = pytest.mark.needs("nix", "nix-store")


_EVERYTHING = f"""
  packages.{SYSTEM} = {{ default = mk "hello"; hello = mk "hello"; world = mk "world"; }};
  packages.other-system.foreign = throw "not asked for";
  devShells.{SYSTEM}.default = mk "shell";
  checks.{SYSTEM}.lint = mk "lint";
  nixosConfigurations.web.config.system.build.toplevel = mk "web";
  homeConfigurations."user@host".activationPackage = mk "home";
  darwinConfigurations.mac.system = mk "mac" // {{ system = "aarch64-darwin"; }};
"""


async def test_every_kind_of_output(story: NixStory) -> None:
    """A flake's outputs are found by the conventions of flakes, and their derivations are in the store."""
    found = await evaluate(story, _EVERYTHING)
    assert attrs_of(found) == [
        f"packages.{SYSTEM}.default",
        f"packages.{SYSTEM}.hello",
        f"packages.{SYSTEM}.world",
        f"devShells.{SYSTEM}.default",
        "nixosConfigurations.web",
        'homeConfigurations."user@host"',
    ]
    assert found.failures == ()
    assert reasons_of(found.left_out) == {
        "packages": "those for other-system, not built here",
        "darwinConfigurations.mac": "it is for aarch64-darwin, not built here",
    }
    first, second, third, *_ = found.outputs
    assert first.drv_path == second.drv_path != third.drv_path
    assert all(Path(str(output.drv_path)).exists() for output in found.outputs)  # noqa: ASYNC240 - as below
    flake = story.write_flake(_EVERYTHING)
    with_checks = await evaluate_flake(story.nix(), flake, SYSTEMS, with_checks=True)
    assert f"checks.{SYSTEM}.lint" in attrs_of(with_checks)


async def test_a_flake_with_little(story: NixStory) -> None:
    """It need not have every set, and a lack is no error that is shown; a trace that says so hides no set."""
    assert await evaluate(story, "") == Evaluation((), ())
    for outputs in ("nixosConfigurations = { };", "packages.other-system.x = mk ''x'';"):
        assert attrs_of(await evaluate(story, outputs)) == []
    assert story.lines == []
    lie = "flake does not provide attribute 'packages'"
    found = await evaluate(story, f'packages.{SYSTEM} = builtins.trace "{lie}" {{ a = mk "a"; }};')
    assert attrs_of(found) == [f"packages.{SYSTEM}.a"]


@pytest.mark.parametrize(
    ("attrs", "names"),
    [
        ([f"packages.{SYSTEM}.hello"], [f"packages.{SYSTEM}.hello"]),
        (["packages.hello", "web"], [f"packages.{SYSTEM}.hello", "nixosConfigurations.web"]),
        (["default"], [f"packages.{SYSTEM}.default", f"devShells.{SYSTEM}.default"]),
        (["packages.*"], [f"packages.{SYSTEM}.{name}" for name in ("default", "hello", "world")]),
        (["nixos*", "w*"], [f"packages.{SYSTEM}.world", "nixosConfigurations.web"]),
        (["user@host"], ['homeConfigurations."user@host"']),
        (["checks.lint"], [f"checks.{SYSTEM}.lint"]),
    ],
)
async def test_narrowing(story: NixStory, attrs: list[str], names: list[str]) -> None:
    """Users name an output in full, without the system, by its name alone, or by a pattern."""
    assert attrs_of(await evaluate(story, _EVERYTHING, attrs)) == names


async def test_a_name_that_means_nothing(story: NixStory) -> None:
    """A typo is no successful publish of nothing; what there is is told."""
    with pytest.raises(UsageError, match=rf"--attr helo: .* packages.{SYSTEM}.hello"):
        await evaluate(story, _EVERYTHING, ["web", "helo"])


async def test_what_throws_hides_nothing(story: NixStory) -> None:
    """An output that throws is named with its reason, a whole set is one failure; the others are found."""
    found = await evaluate(
        story,
        f"""
        packages.{SYSTEM} = {{ a = mk "a"; b = throw "b is broken"; c = mk "c"; d = {{ }}; }};
        nixosConfigurations.bad.config.system.build.toplevel = throw "bad is broken";
        nixosConfigurations.good.config.system.build.toplevel = mk "good";
        nixosConfigurations.other = {{ }}; homeConfigurations = throw "no homes";
        """,
    )
    assert attrs_of(found) == [f"packages.{SYSTEM}.a", f"packages.{SYSTEM}.c", "nixosConfigurations.good"]
    assert reasons_of(found.failures) == {
        f"packages.{SYSTEM}.b": "b is broken",
        f"packages.{SYSTEM}.d": "it is a set, not a derivation",
        "nixosConfigurations.bad": "bad is broken",
        "nixosConfigurations.other": "it is not a derivation",
        "homeConfigurations": "no homes",
    }
    assert any("b is broken" in line for line in story.lines)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("import ./broken.nix", "syntax error"),
        ("{ }.missing", "attribute 'missing' missing"),
        ("abort ''stop''", "stop"),
        ("mk 1", " string"),
    ],
)
@pytest.mark.parametrize("accepts", [True, False])
async def test_what_cannot_be_caught_hides_nothing(
    story: NixStory, broken: str, reason: str, *, accepts: bool
) -> None:
    """No expression can catch these; then each output is asked for by itself."""
    story.write("flake/broken.nix", "{ a = ; }")
    flake = story.write_flake(f'packages.{SYSTEM} = {{ a = mk "a"; b = {broken}; c = mk "c"; }};')
    found = await evaluate_flake(story.nix(), flake, SYSTEMS, accept_flake_config=accepts)
    assert attrs_of(found) == [f"packages.{SYSTEM}.a", f"packages.{SYSTEM}.c"]
    assert reason in reasons_of(found.failures)[f"packages.{SYSTEM}.b"]


async def test_packages_that_cannot_be_evaluated(story: NixStory) -> None:
    """Older versions look for all else among the packages first, and say so; newer ones find the rest."""
    shell = f"devShells.{SYSTEM}.default"
    found = await evaluate(story, f'packages.{SYSTEM} = {{ }}.missing; {shell} = mk "shell";')
    assert "missing" in reasons_of(found.failures)[f"packages.{SYSTEM}"]
    assert {f"devShells.{SYSTEM}", shell} & {*attrs_of(found), *reasons_of(found.failures)}
    if await story.nix().require_version() >= (2, 26, 0):
        assert attrs_of(found) == [shell]


async def test_odd_names(story: NixStory) -> None:
    """Dots, quotes and dollars in a name are part of it, and no name changes what the answer means."""
    names = ["a.b", 'q"x', "${x}", "back\\slash", "outPath", "__toString", "type", "über"]
    found = await evaluate(
        story,
        f"packages.{SYSTEM} = {{ "
        + " ".join(f'{quote(name)} = mk "p{number}";' for number, name in enumerate(names))
        + " };",
    )
    assert found.failures == ()
    assert {output.attr.removeprefix(f"packages.{SYSTEM}.") for output in found.outputs} == {
        *('"a.b"', r'"q\"x"', r'"\${x}"', r'"back\\slash"', "outPath", "__toString", "type", '"über"')
    }
    alone = await evaluate(story, f'packages.{SYSTEM}."q\\"x" = mk "x";', ['q"x'])
    assert attrs_of(alone) == [f'packages.{SYSTEM}."q\\"x"']


async def test_a_derivation_that_is_none(story: NixStory) -> None:
    """A flake may give any path for one: it is that output's failure, and no end of the others."""
    wrong = {"none": "/nix/store/none", "other": f"/nix/store/{'a' * 32}-other", "relative": "x.drv"}
    odd = " ".join(f'{name} = {{ drvPath = "{path}"; }};' for name, path in wrong.items())
    found = await evaluate(story, f'packages.{SYSTEM} = {{ a = mk "a"; {odd} z = mk "z"; }};')
    assert attrs_of(found) == [f"packages.{SYSTEM}.a", f"packages.{SYSTEM}.z"]
    failures = reasons_of(found.failures)
    assert failures.keys() == {f"packages.{SYSTEM}.{name}" for name in wrong}
    assert all(reason.startswith("its drvPath: ") for reason in failures.values())
    folder = story.write("file/default.nix", '{ none = { drvPath = "/nix/store/none"; }; }')
    alone = await evaluate_file(story.nix(), folder, SYSTEMS, attrs=["none"])
    assert reasons_of(alone.failures)["none"].startswith("its drvPath: ")


async def test_answers_that_cannot_be_read(story: NixStory) -> None:
    """Nix takes any bytes for a string, and any value for a system: each is that output's failure alone."""
    flake = story.write_flake(
        f"""packages.{SYSTEM} = {{
          a = mk "a"; "BYTES" = mk "b"; z = mk "z"; text = {{ drvPath = "BYTES"; }};
          deep = {{
            drvPath = "x"; system = builtins.foldl' (all: _: [ all ]) null (builtins.genList (n: n) 5000);
          }};
        }};"""
    )
    file = story.folder / "flake/flake.nix"
    # A byte alone, and half a pair, which some decoders take.
    file.write_bytes(file.read_bytes().replace(b"BYTES", b"\xff\xed\xa0\x80"))
    found = await evaluate_flake(story.nix(), flake, SYSTEMS)
    assert attrs_of(found) == [f"packages.{SYSTEM}.a", f"packages.{SYSTEM}.z"]
    failures = {
        name.removeprefix(f"packages.{SYSTEM}."): told for name, told in reasons_of(found.failures).items()
    }
    assert "cannot be read" in failures.pop("deep")
    assert failures.pop("text").startswith("its drvPath: ")
    assert list(failures.values()) == ["its name is not UTF-8"]


async def test_long_names(story: NixStory) -> None:
    """What fits into no argument is named; what fits only in parts is asked for in parts."""
    long = ["l" * 200_000, "m" * (MOST_NAME_BYTES + 1)]
    names = [*long, *(f"{number:03}" + "n" * (MOST_NAME_BYTES - 3) for number in range(150))]
    found = await evaluate(
        story,
        f"packages.{SYSTEM} = builtins.listToAttrs (map (name: {{ inherit name; value = mk "
        f"(builtins.substring 0 3 name); }}) [ {' '.join(map(quote, names))} ]);",
    )
    assert len(found.outputs) == 150
    assert sorted(failure.reason for failure in found.failures) == [
        f"its name has 1001 bytes, over the limit of {MOST_NAME_BYTES}",
        f"its name has 200000 bytes, over the limit of {MOST_NAME_BYTES}",
    ]
    assert all(len(failure.attr) < 200 for failure in found.failures)


async def test_evaluation_is_pure(story: NixStory) -> None:
    """What a flake evaluates to is what it evaluates to elsewhere: the environment cannot be seen."""
    flake = story.write_flake(f"""packages.{SYSTEM}.x = mk "x${{builtins.getEnv "SECRET"}}";""")
    pure, other = [await evaluate_flake(story.nix(SECRET=value), flake, SYSTEMS) for value in ("one", "two")]
    assert pure == other


async def test_a_flake_that_is_none(story: NixStory) -> None:
    """A flake that cannot be read at all is an error, not an empty publish."""
    with pytest.raises(StoreError, match="nix flake: "):
        await evaluate_flake(story.nix(), f"path:{story.folder}/absent", SYSTEMS)
    story.write("flake/flake.nix", "{ outputs = ; }")
    with pytest.raises(StoreError, match="nix flake: syntax error"):
        await evaluate_flake(story.nix(), f"path:{story.folder}/flake", SYSTEMS)
    with pytest.raises(UsageError, match="--help: expected a flake"):
        await evaluate_flake(story.nix(), "--help", SYSTEMS)


_FILE = f"""{{ name ? "x" }}: let
  mk = name: derivation {{ inherit name; system = "{SYSTEM}"; builder = "/bin/sh"; }};
in {{ a = mk "${{name}}-a"; b = throw "b is broken"; nested.c = mk "c"; text = "text"; }}"""


async def test_a_file(story: NixStory) -> None:
    """A file's derivations are built as by nix-build; -A takes a path or a pattern of names."""
    file = story.write("default.nix", _FILE) / "default.nix"
    found = await evaluate_file(story.nix(), file, SYSTEMS)
    assert (attrs_of(found), reasons_of(found.failures)) == (["a"], {"b": "b is broken"})
    assert found.outputs[0].drv_path.name == "x-a.drv"
    assert await evaluate_file(story.nix(), story.folder, SYSTEMS) == found
    named = await evaluate_file(story.nix(), file, SYSTEMS, attrs=["nested.c", "text", "a*", "absent"])
    assert sorted(attrs_of(named)) == ["a", "nested.c"]
    reasons = reasons_of(named.failures)
    assert "absent" in reasons.pop("absent")
    assert reasons == {"text": "it is a string, not a derivation"}
    with pytest.raises(UsageError, match=r"--attr z\*: no output matches; this flake has: a, b, "):
        await evaluate_file(story.nix(), file, SYSTEMS, attrs=["z*"])


async def test_a_file_that_is_a_derivation(story: NixStory) -> None:
    """It is called default; a file that is not there is said to be missing."""
    text = f'derivation {{ name = "x"; system = "{SYSTEM}"; builder = "/bin/sh"; }}'
    file = story.write("one.nix", text) / "one.nix"
    assert attrs_of(await evaluate_file(story.nix(), file, SYSTEMS)) == ["default"]
    with pytest.raises(UsageError, match="no such file"):
        await evaluate_file(story.nix(), story.folder / "absent.nix", SYSTEMS)


async def test_without_the_commands(story: NixStory) -> None:
    """Evaluating needs a Nix that can."""
    with pytest.raises(UsageError, match=r"before 2\.4"):
        await evaluate_flake(story.old_nix(), "path:/x", SYSTEMS)
