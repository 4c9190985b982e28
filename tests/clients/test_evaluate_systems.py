"""Which outputs are for this machine, and which are left out."""

import asyncio
import os

import pytest

from nixcache_oci.clients.local_store.evaluate import evaluate_file
from nixcache_oci.clients.local_store.nix_settings import Systems, find_remote, read_systems
from tests.clients.nix_story import SYSTEM, SYSTEMS, NixStory, attrs_of, evaluate, reasons_of

nix = pytest.mark.needs("nix", "nix-store")
_FOREIGN = "riscv64-linux"


@pytest.mark.parametrize(
    ("builders", "found"),
    [
        *(("", []), ("ssh://one", ["own"]), ("ssh://one -", ["own"])),
        ("ssh://one a-linux,b-linux /key 4 1 kvm", ["a-linux", "b-linux"]),
        (
            "ssh://one a-linux ; ssh://two b-linux\nssh://three c-linux # d-linux",
            ["a-linux", "b-linux", "c-linux"],
        ),
        *(("# ssh://one a-linux", []), ("@ /machines", ["b-linux", "a-linux"])),
        *(("@/absent; ssh://one a-linux", ["a-linux"]), ("@/loop", ["a-linux"])),
    ],
)
def test_remote_builders(builders: str, found: list[str]) -> None:
    """Machines are separated by semicolons or lines, or stand in files, which may name further files."""
    files = {
        "/machines": "ssh://two b-linux\n\n@/more\n",
        "/more": "ssh://one a-linux",
        "/loop": "@/loop\nssh://one a-linux",
    }
    assert list(find_remote(builders, "own", lambda path: files.get(path, ""))) == found


@nix
async def test_what_this_machine_builds(story: NixStory) -> None:
    """Nix's own settings tell: system, extra-platforms, and the systems of remote builders."""
    machines = story.write("machines", f"ssh://far {_FOREIGN}\n") / "machines"
    options = [("system", SYSTEM), ("extra-platforms", "i686-linux"), ("builders", f"@{machines}")]
    assert await read_systems(story.nix(options)) == Systems(
        (SYSTEM,), frozenset({SYSTEM, "i686-linux", _FOREIGN})
    )
    named = await read_systems(story.nix(options[:2]), ["m-linux", "n-linux", "m-linux"])
    assert named.asked == ("m-linux", "n-linux")
    assert named.built >= {SYSTEM, "i686-linux", *named.asked}
    assert _FOREIGN not in named.built


@nix
async def test_a_file_of_machines_that_is_no_file(story: NixStory) -> None:
    """What the setting names may be absent, a folder or a pipe: nothing is waited for."""
    pipe = story.folder / "pipe"
    await asyncio.to_thread(os.mkfifo, pipe)
    for path in (pipe, story.folder, story.folder / "absent"):
        found = await read_systems(story.nix([("builders", f"@{path}"), ("extra-platforms", "")]))
        assert found.built == set(found.asked)


_SYSTEMS = f"""
  packages.{SYSTEM} = {{
    own = mk "own"; other = mk "o" // {{ system = "i686-linux"; }};
    far = mk "f" // {{ system = "{_FOREIGN}"; }}; any = mk "b" // {{ system = "builtin"; }};
  }};
  packages.i686-linux = {{ more = mk "m" // {{ system = "i686-linux"; }}; broken = throw "not for i686"; }};
  packages.{_FOREIGN}.far = throw "not asked for";
  nixosConfigurations.far.config.system.build.toplevel = mk "f" // {{ system = "{_FOREIGN}"; }};
  nixosConfigurations.other.config.system.build.toplevel = mk "o" // {{ system = "i686-linux"; }};
"""


@nix
async def test_all_that_this_machine_builds(story: NixStory) -> None:
    """Whatever Nix can build here is built, whichever system it is for; the rest is told with its reason."""
    found = await evaluate(story, _SYSTEMS)
    assert attrs_of(found) == [
        *(f"packages.{SYSTEM}.{name}" for name in ("any", "other", "own")),
        "packages.i686-linux.more",
        "nixosConfigurations.other",
    ]
    assert found.failures == ()
    assert reasons_of(found.left_out) == {
        "packages": f"those for {_FOREIGN}, not built here",
        f"packages.{SYSTEM}.far": f"it is for {_FOREIGN}, not built here",
        "packages.i686-linux.broken": "not for i686",
        "nixosConfigurations.far": f"it is for {_FOREIGN}, not built here",
    }


@nix
async def test_named_systems(story: NixStory) -> None:
    """Who names systems gets their packages and configurations, and no word on others'."""
    named = Systems((_FOREIGN, "i686-linux"), frozenset({SYSTEM, "i686-linux", _FOREIGN}), is_named=True)
    found = await evaluate(story, _SYSTEMS, systems=named)
    assert attrs_of(found) == [
        "packages.i686-linux.more",
        "nixosConfigurations.far",
        "nixosConfigurations.other",
    ]
    assert {one.attr for one in found.failures} == {f"packages.{_FOREIGN}.far", "packages.i686-linux.broken"}
    assert found.left_out == ()


@nix
@pytest.mark.parametrize(
    "configuration",
    [
        f'{{ config.nixpkgs.hostPlatform = "{_FOREIGN}"; config.system.build.toplevel = throw "x"; }}',
        f'{{ config.nixpkgs.hostPlatform.system = "{_FOREIGN}"; config.system = {{ }}.missing; }}',
        f'{{ config = throw "x"; pkgs.stdenv.hostPlatform.system = "{_FOREIGN}"; }}',
        f'{{ config = {{ }}.missing; pkgs.system = "{_FOREIGN}"; }}',
        '{ config.system.build.toplevel = import (mk "x" // { inherit (far) drvPath outPath; }); }',
    ],
)
async def test_a_configuration_of_another_system(story: NixStory, configuration: str) -> None:
    """One for another system need not be evaluated here: it is no failure, and is told with its reason."""
    found = await evaluate(
        story,
        f"""
        nixosConfigurations = let
          far = derivation {{ name = "far"; system = "{_FOREIGN}"; builder = "/bin/sh"; }};
        in {{ far = {configuration}; near.config.system.build.toplevel = mk "near"; }};
        """,
    )
    assert attrs_of(found) == ["nixosConfigurations.near"]
    assert found.failures == ()
    (left,) = found.left_out
    assert left.attr == "nixosConfigurations.far"
    assert left.reason.startswith(f"it is for {_FOREIGN}, not built here, and cannot be evaluated: ")


@nix
async def test_configurations_of_another_operating_system(story: NixStory) -> None:
    """They are never for this machine, whatever is wrong with one or with all of them."""
    found = await evaluate(story, f'darwinConfigurations.mac = throw "a"; packages.{SYSTEM}.x = mk "x";')
    assert (attrs_of(found), found.failures) == ([f"packages.{SYSTEM}.x"], ())
    assert [one.attr for one in found.left_out] == ["darwinConfigurations.mac"]
    whole = await evaluate(story, 'darwinConfigurations = throw "a";')
    assert [(one.attr, one.is_set) for one in whole.left_out] == [("darwinConfigurations", False)]


@nix
async def test_a_configuration_of_this_system(story: NixStory) -> None:
    """One that is broken is a failure, also where nothing tells what it is for."""
    found = await evaluate(
        story,
        f"""
        nixosConfigurations.a = {{ pkgs.system = "{SYSTEM}"; config = throw "a is broken"; }};
        homeConfigurations.b = throw "b is broken";
        """,
    )
    assert reasons_of(found.failures) == {
        "nixosConfigurations.a": "a is broken",
        "homeConfigurations.b": "b is broken",
    }
    assert found.left_out == ()


@nix
async def test_a_file_for_another_system(story: NixStory) -> None:
    """As with nix-build, a file sees the system that was named for the machine's own."""
    text = '{ a = derivation { name = "a"; system = builtins.currentSystem; builder = "/bin/sh"; }; }'
    folder = story.write("default.nix", text)
    named = Systems((_FOREIGN,), frozenset({_FOREIGN}), is_named=True)
    (output,) = (await evaluate_file(story.nix(), folder, named)).outputs
    assert output.system == _FOREIGN
    found = await evaluate_file(story.nix([("system", _FOREIGN)]), folder, SYSTEMS)
    assert [one.reason for one in found.left_out] == [f"it is for {_FOREIGN}, not built here"]
