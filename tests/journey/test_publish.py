"""From a flake to another machine's store, by the real program, real Nix and a registry."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cli.publish import MOST_REASONS
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from tests.clients.nix_story import SYSTEM, NixStory
from tests.support.journey import push_with, settings_of
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine, assert_substitutable
from tests.support.registries import Ghcr
from tests.support.segments import read_records

pytestmark = pytest.mark.needs("nix")

GOOD = 'one = mkFrom "one" "echo built here; echo one > $out";'
OUTPUTS = f"""
  packages.{SYSTEM} = rec {{
    {GOOD}
    two = mkFrom "two" "echo built here; echo ${{one}} > $out";
    bad = mkFrom "bad" "echo the cause >&2; exit 3";
    worse = throw "cannot even be evaluated";
  }};
  devShells.{SYSTEM}.default = mkFrom "shell" "echo shell > $out";
  checks.{SYSTEM}.check = mkFrom "check" "echo check > $out";
"""


@pytest.fixture
def settings(ghcr: Ghcr, key: SecretKey, tmp_path: Path) -> dict[str, str]:
    return {**settings_of(ghcr, tmp_path), "NIX_SIGNING_KEY": key.render()}


def machine_of(story: NixStory, settings: Mapping[str, str]) -> Machine:
    machine = Machine(story.folder / "machine", story.sandbox, settings)
    machine.environment |= {name: value for name, value in story.environment().items() if name == "PATH"}
    return machine


@pytest.fixture
def story(tmp_path: Path) -> NixStory:
    return NixStory(tmp_path / "nix", is_chroot=True)


@pytest.fixture
def machine(story: NixStory, settings: dict[str, str]) -> Machine:
    return machine_of(story, settings)


def records_of(ghcr: Ghcr) -> list[PublishRecord]:
    """What publishes left for gc, the oldest first."""
    found: list[PublishRecord] = []

    async def read(repository: Repository) -> None:
        listing = await read_listing(repository)
        found.extend(await read_records(repository, listing))

    push_with(ghcr, read)
    return found


def test_a_flake_comes_to_another_machine(
    ghcr: Ghcr, settings: dict[str, str], key: SecretKey, tmp_path: Path
) -> None:
    """What can be built is built, published, recorded and substituted elsewhere; what cannot is named."""
    story = NixStory(tmp_path / "first", is_chroot=True)
    flake = story.write_flake(OUTPUTS)
    summary = tmp_path / "summary"
    told_by_github = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_REF_NAME": "main",
        "GITHUB_RUN_ID": "42",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    first = machine_of(story, settings).run("publish", flake, **told_by_github)
    assert first.status == 1
    assert f"::error::packages.{SYSTEM}.bad: " in first.stderr
    assert f"| packages.{SYSTEM}.one | ✓ |" in summary.read_text().replace("\\_", "_")
    assert "the cause" in first.stderr
    assert f"packages.{SYSTEM}.worse: cannot be evaluated: cannot even be evaluated" in first.stderr
    assert "3 paths: 0 upstream, 0 cached, 3 to push" in first.stderr
    assert str(key.public_key) in first.stdout
    assert key.render() not in first.stdout + first.stderr
    (record,) = records_of(ghcr)
    assert (record.scope, record.run) == (f"main-{SYSTEM}", "42")
    assert {name for name, _ in record.roots} == {
        f"packages.{SYSTEM}.one",
        f"packages.{SYSTEM}.two",
        f"devShells.{SYSTEM}.default",
    }
    assert set(record.failed) == {f"packages.{SYSTEM}.bad", f"packages.{SYSTEM}.worse"}
    assert not record.is_partial
    told = {name: value for name, value in settings.items() if name != "NIX_SIGNING_KEY"}
    with ProxyProcess(tmp_path / "proxy", **told, NIXCACHE_PUBLIC_KEYS=str(key.public_key)) as proxy:
        proxy.wait_ready()
        paths = [str(path) for _, path in record.roots]
        assert_substitutable(proxy, paths)
        trusted = [str(key.public_key)]
        story.sandbox.realise(paths, substituters=[proxy.url], trusted_keys=trusted).check()
    # Another machine with an empty store takes what is there instead of building it, and has nothing to send.
    other = NixStory(tmp_path / "second", is_chroot=True)
    second = machine_of(other, settings).run("publish", flake, "--attr", "two")
    assert second.status == 0, second.stderr
    assert "built here" not in second.stderr
    assert "2 paths: 0 upstream, 2 cached, 0 to push" in second.stderr
    _, narrowed = records_of(ghcr)
    assert narrowed.is_partial
    assert narrowed.scope == f"local-{SYSTEM}"
    assert [name for name, _ in narrowed.roots] == [f"packages.{SYSTEM}.two"]


def test_what_is_left_out_is_said(ghcr: Ghcr, story: NixStory, machine: Machine) -> None:
    """What is for other systems is no failure; each has its line, up to a bound. The folder has any name."""
    count = MOST_REASONS + 20
    story.write_flake(
        f"""
        packages.{SYSTEM} = {{ {GOOD} }} // builtins.listToAttrs (builtins.genList (number: {{
          name = "far${{toString number}}"; value = mk "far" // {{ system = "riscv64-linux"; }};
        }}) {count});
        darwinConfigurations.mac = throw "not on this machine";
        """
    )
    folder = (story.folder / "flake").rename(story.folder / "it's my c# project?")
    machine.environment["NIXCACHE_CONFIG_DIR"] = str(folder)
    ran = machine.run("publish").check()
    lines = [line for line in ran.stderr.splitlines() if line.startswith("left out: ")]
    assert len(lines) == MOST_REASONS + 1
    assert lines[0] == f"left out: packages.{SYSTEM}.far0: it is for riscv64-linux, not built here"
    assert lines[-1] == "left out: and 21 more outputs"
    (record,) = records_of(ghcr)
    assert ([name for name, _ in record.roots], record.failed) == ([f"packages.{SYSTEM}.one"], ())
    assert not record.is_partial
    again = machine.run("publish", GITHUB_ACTIONS="true").check()
    assert (
        f"::notice::left out: packages.{SYSTEM}.far0: it is for riscv64-linux, not built here" in again.stderr
    )
    alone = machine.run("publish", "--attr", "mac")
    assert alone.status == 1
    assert (
        "left out: darwinConfigurations.mac: it is for darwin, not built here, and cannot be" in alone.stderr
    )
    assert f"there is nothing to publish for {SYSTEM}" in alone.stderr


def test_several_systems_and_a_file(ghcr: Ghcr, story: NixStory, machine: Machine) -> None:
    """Systems that are named have a scope of their own; a file is evaluated for one."""
    flake = story.write_flake(f"packages = {{ {SYSTEM} = {{ {GOOD} }}; }};")
    systems = ("--system", SYSTEM, "--system", "i686-linux")
    machine.run("publish", flake, *systems).check()
    (record,) = records_of(ghcr)
    assert record.scope == f"local-{SYSTEM}-i686-linux"
    refused = machine.run("publish", "--file", str(story.write("default.nix", "{ }")), *systems)
    assert refused.status == 2
    assert "with --file, --system is given once" in refused.stderr


def test_a_name_that_no_record_can_hold(ghcr: Ghcr, story: NixStory, machine: Machine) -> None:
    """It is named before anything is built, is not built, and the others are published."""
    odd = r"""${builtins.fromJSON ''"a\u001bb\u0007"''}"""
    flake = story.write_flake(
        f'packages.{SYSTEM} = {{ {odd} = mkFrom "odd" "echo must not be built; echo > $out"; {GOOD} }};'
    )
    ran = machine.run("publish", flake)
    assert ran.status == 1
    line = rf'nixcache-oci: error: packages.{SYSTEM}."a\x1bb\x07": not built: no record can hold this name'
    assert line in ran.stderr
    assert "must not be built" not in ran.stderr
    assert ran.stderr.index(line) < ran.stderr.index("built here")
    (record,) = records_of(ghcr)
    assert [name for name, _ in record.roots] == [f"packages.{SYSTEM}.one"]
    assert record.failed == ()


def test_a_cache_that_cannot_be_read(ghcr: Ghcr, settings: dict[str, str], story: NixStory) -> None:
    """Code that may not push is built all the same, and judged by that alone."""
    flake = story.write_flake(f"packages.{SYSTEM} = {{ {GOOD} }};")
    machine = machine_of(story, {**settings, "NIXCACHE_TOKEN_FILE": "", "NIX_SIGNING_KEY": ""})
    ran = machine.run("publish", flake, "--build-only").check()
    assert "warning: the cache cannot be read, so what would be pushed is not known: " in ran.stderr
    assert machine.run("publish", flake, "--dry-run").status == 1
    ran = machine_of(story, settings).run("publish", flake, "--build-only").check()
    assert ran.stdout.startswith("push ")
    assert records_of(ghcr) == []


def test_strict_publishes_all_or_nothing(ghcr: Ghcr, story: NixStory, machine: Machine) -> None:
    """With --strict, one output that fails keeps the others from being published."""
    ran = machine.run("publish", story.write_flake(OUTPUTS), "--strict", "--checks")
    assert ran.status == 1
    assert "--strict: nothing is published" in ran.stderr
    assert records_of(ghcr) == []


def test_a_file_is_published_like_a_flake(ghcr: Ghcr, story: NixStory, machine: Machine) -> None:
    """``--file`` takes what nix-build takes, and -A narrows it."""
    folder = story.write(
        "file/default.nix",
        f"""let mk = name: derivation {{
              inherit name; system = "{SYSTEM}"; builder = "/bin/sh"; args = [ "-c" "echo ${{name}} > $out" ];
            }}; in {{ a = mk "a"; b = mk "b"; }}""",
    )
    ran = machine.run("publish", "--file", str(folder / "default.nix"), "-A", "b")
    assert ran.status == 0, ran.stderr
    (record,) = records_of(ghcr)
    assert [name for name, _ in record.roots] == ["b"]


def test_wrong_usage_is_said_in_one_line(machine: Machine, tmp_path: Path) -> None:
    """A flake that is not there, a key that is none: exit status 2 or 1, and no traceback."""
    assert machine.run("publish", "a", "--file", "b").status == 2
    missing = machine.run("publish", str(tmp_path / "nowhere"))
    assert missing.status in (1, 2)
    assert "nowhere" in missing.stderr.splitlines()[-1]
    # Not a flake of that name in Nix's registry, which would be asked for over the network.
    nothing = machine.run("publish")
    assert nothing.status == 2
    (line,) = nothing.stderr.splitlines()
    assert "no folder config here" in line
    no_key = machine.run("push", "/nix/store/x", NIX_SIGNING_KEY="secret-1:c2VjcmV0")
    assert no_key.status == 2
    assert "NIX_SIGNING_KEY" in no_key.stderr
    assert "c2VjcmV0" not in no_key.stderr
    assert "Traceback" not in missing.stderr + no_key.stderr
