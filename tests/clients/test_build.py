import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store import build as build_module
from nixcache_oci.clients.local_store.build import BuildResult, _Reasons, build
from nixcache_oci.clients.local_store.evaluate import evaluate_file, evaluate_flake
from nixcache_oci.clients.local_store.nix_settings import Systems
from nixcache_oci.clients.local_store.output import Output
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.nix.store_path import StorePath
from tests.clients.nix_story import SYSTEM, SYSTEMS, NixStory

_HASH_OF_1 = "sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s="

pytestmark = pytest.mark.needs("nix", "nix-store")


async def _evaluate(story: NixStory, packages: str, settings: str = "") -> tuple[Output, ...]:
    flake = story.write_flake(f"packages.{SYSTEM} = rec {{ {packages} }};", settings)
    found = await evaluate_flake(story.nix(), flake, SYSTEMS)
    assert found.failures == ()
    return found.outputs


async def _build(story: NixStory, packages: str) -> BuildResult:
    outputs = await _evaluate(story, packages)
    story.lines.clear()
    return await build(await LocalStore.open(story.nix()), outputs)


def _attr(name: str) -> str:
    return f"packages.{SYSTEM}.{name}"


async def test_everything_is_built(story: NixStory) -> None:
    """Each output's paths are told, also where two are the same derivation; logs are shown."""
    result = await _build(
        story,
        """
        a = mkFrom "a" "echo building a; echo a > $out"; same = a;
        both = derivation {
          name = "both"; inherit (a) system builder; outputs = [ "out" "dev" ];
          args = [ "-c" "echo out > $out; echo dev > $dev" ];
        };
        """,
    )
    assert result.failed == {}
    assert result.built[_attr("a")] == result.built[_attr("same")]
    assert sorted(path.name for path in result.built[_attr("both")]) == ["both", "both-dev"]
    (path,) = result.built[_attr("a")]
    assert Path(str(path)).read_text() == "a\n"  # noqa: ASYNC240 - a test's own file
    assert "a> building a" in story.lines


async def test_a_failure_leaves_the_others(story: NixStory) -> None:
    """One output that does not build does not keep others from being built, nor from being told."""
    packages = """
        bad = mkFrom "bad" "echo the cause >&2; exit 3";
        needs = mkFrom "needs" "echo ${bad} > $out";
        good = mk "good"; zlast = mk "zlast";
    """
    result = await _build(story, packages)
    assert set(result.built) == {_attr("good"), _attr("zlast")}
    assert set(result.failed) == {_attr("bad"), _attr("needs")}
    assert "exit code 3" in result.failed[_attr("bad")]
    assert ".drv" in result.failed[_attr("needs")]
    assert "bad> the cause" in story.lines


async def test_what_is_no_derivation_leaves_the_others(story: NixStory) -> None:
    """A flake may name a derivation that is not there: Nix itself then builds nothing at all."""
    outputs = await _evaluate(story, 'good = mk "good"; zlast = mk "zlast";')
    missing = StorePath.parse(f"{outputs[0].drv_path.store_dir}/{'a' * 32}-x.drv")
    store = await LocalStore.open(story.nix())
    result = await build(store, [Output("missing", missing, SYSTEM), *outputs])
    assert set(result.built) == {_attr("good"), _attr("zlast")}
    assert set(result.failed) == {"missing"}
    assert missing.base_name in result.failed["missing"]


_FEATURES = [("extra-experimental-features", "ca-derivations impure-derivations")]
_DERIVED = f"""
  derived = changes: derivation ({{
    system = "{SYSTEM}"; builder = "/bin/sh"; PATH = "/bin:/usr/bin"; args = [ "-euc" "echo $name > $out" ];
  }} // changes);
  floating = {{ __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; }};
  impure = {{ __impure = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; }};
"""
_ODD = {
    "good": 'mk "good"',
    "zlast": 'mk "zlast"',
    "ca": 'derived ({ name = "ca"; } // floating)',
    "uses": 'mkFrom "uses" "cat ${ca} > $out"',
    "anew": 'derived ({ name = "impure"; } // impure)',
    "fixed": f'derived {{ name = "f"; args = [ "-c" "printf 1 > $out" ]; outputHash = "{_HASH_OF_1}"; }}',
}
_FAILING = {
    "bad": 'mkFrom "bad" "exit 3"',
    "caBad": 'derived ({ name = "ca-bad"; args = [ "-c" "exit 4" ]; } // floating)',
    "needsBad": 'derived ({ name = "needs"; args = [ "-c" "cat ${bad} > $out" ]; } // floating)',
    "badAfterCa": 'derived ({ name = "after"; args = [ "-c" "cat ${ca}; exit 5" ]; } // floating)',
    "wrongHash": f'derived {{ name = "w"; outputHash = "{_HASH_OF_1}"; }}',
    "far": 'derived { name = "far"; system = "riscv64-linux"; }',
    "needsFar": 'mkFrom "needs-far" "cat ${far} > $out"',
}


async def test_no_kind_of_output_hides_another(story: NixStory) -> None:
    """Whatever fails, and however, all that can be built is built, and each failure has its own reason."""
    packages = "".join(f"{name} = {text};" for name, text in (_ODD | _FAILING).items())
    flake = story.write_flake(f"packages.{SYSTEM} = let {_DERIVED} all = rec {{ {packages} }}; in all;")
    nix = story.nix(_FEATURES)
    found = await evaluate_flake(nix, flake, Systems((SYSTEM,), frozenset({SYSTEM, "riscv64-linux"})))
    assert found.failures == ()
    result = await build(await LocalStore.open(nix), found.outputs)
    assert set(result.built) == {_attr(name) for name in _ODD}
    assert set(result.failed) == {_attr(name) for name in _FAILING}
    assert all(Path(str(path)).exists() for (path,) in result.built.values())  # noqa: ASYNC240 - a test's own
    reasons = {name: result.failed[_attr(name)] for name in _FAILING}
    assert "exit code 3" in reasons["bad"]
    assert "exit code 4" in reasons["caBad"]
    assert "riscv64-linux" in reasons["far"]
    assert "hash mismatch" in reasons["wrongHash"]
    assert not {name: text for name, text in reasons.items() if ".drv" not in text}
    assert not [line for line in story.lines if "Cannot use output path" in line]


async def test_a_nix_that_always_fails_is_given_up(story: NixStory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not called without end, and what was not tried says so."""
    outputs = await _evaluate(story, " ".join(f'p{number} = mk "p{number}";' for number in range(8)))
    monkeypatch.setattr(build_module, "MOST_CALLS", 3)
    store = await LocalStore.open(story.nix())
    broken = replace(store, nix=story.nix([("store", "none://here")]))
    result = await build(broken, outputs)
    assert await build(broken, []) == BuildResult({}, {})  # no outputs are no question to Nix
    assert result.built == {}
    assert set(result.failed.values()) == {"not tried: Nix gave up 3 times before"}


async def test_half_an_output_is_not_built(story: NixStory) -> None:
    """An output of several paths is there when all of them are."""
    flag = story.write("flag", "") / "flag"
    packages = f"""
        two = derivation {{
          name = "two"; system = "{SYSTEM}"; builder = "/bin/sh"; outputs = [ "out" "dev" ];
          args = [ "-euc" "test -e {flag}; echo out > $out; echo dev > $dev" ];
        }};
    """
    paths = (await _build(story, packages)).built[_attr("two")]
    (dev,) = [str(path) for path in paths if path.name == "two-dev"]
    story.sandbox.run("nix-store", "--delete", dev).check()
    flag.unlink()  # from now on it cannot be built
    result = await _build(story, packages)
    assert result.built == {}
    assert "exit code 1" in result.failed[_attr("two")]


async def _away(story: NixStory, path: StorePath, parameters: str = "") -> str:
    """Move what was built into a cache, from where alone it can come now; gives the cache."""
    cache = f"file://{story.folder}/cache"
    await asyncio.to_thread(lambda: story.sandbox.copy_to(cache + parameters, [str(path)]).check())
    await asyncio.to_thread(lambda: story.sandbox.run("nix-store", "--delete", str(path)).check())
    (story.folder / "flag").unlink()  # from now on it cannot be built
    return cache


async def test_the_systems_own_settings(story: NixStory) -> None:
    """A flake's substituters are used when they are accepted, for all outputs, and not otherwise."""
    flag = story.write("flag", "") / "flag"
    packages = f'a = mk "a"; "q\\"x" = mk "q"; b = mkFrom "b" "test -e {flag} && echo b > $out";'
    cache = f"file://{story.folder}/cache"
    settings = f'nixConfig = {{ extra-substituters = [ "{cache}" ]; require-sigs = false; }};'
    outputs = await _evaluate(story, packages, settings)
    store = await LocalStore.open(story.nix([("require-sigs", "false")]))
    (path,) = (await build(store, outputs)).built[_attr("b")]
    assert await _away(story, path) == cache
    assert _attr("b") in (await build(store, outputs)).failed
    assert (await build(store, outputs, accept_flake_config=True)).failed == {}


async def test_substituters_by_option(story: NixStory) -> None:
    """The proxy's own cache is a substituter for a publish without a change of nix.conf."""
    flag = story.write("flag", "") / "flag"
    (output,) = await _evaluate(story, f'b = mkFrom "b" "test -e {flag} && echo b > $out";')
    (path,) = (await build(await LocalStore.open(story.nix()), [output])).built[_attr("b")]
    secret, public = story.sandbox.generate_key("cache-1")
    cache = await _away(story, path, f"?secret-key={secret}")
    options = [("extra-substituters", cache), ("extra-trusted-public-keys", public)]
    assert (await build(await LocalStore.open(story.nix(options[:1])), [output])).built == {}
    assert (await build(await LocalStore.open(story.nix(options)), [output])).failed == {}


async def test_a_file_is_built(story: NixStory) -> None:
    """What was found in a file is built like what was found in a flake."""
    text = f"""{{ a = derivation {{
      name = "a"; system = "{SYSTEM}"; builder = "/bin/sh"; args = [ "-c" "echo a > $out" ];
    }}; }}"""
    found = await evaluate_file(story.nix(), story.write("default.nix", text), SYSTEMS)
    result = await build(await LocalStore.open(story.nix()), found.outputs, accept_flake_config=True)
    assert set(result.built) == {"a"}


def test_reasons_of_newer_versions() -> None:
    """They tell the cause on a line of its own, which belongs to the derivation above it."""
    drv_path = StorePath.parse("/nix/store/rmls3l6557n63na18h9lxrdfnjb00vrc-bad.drv")
    shown: list[str] = []
    reasons = _Reasons(shown.append)
    lines = [
        "building '/nix/store/rmls3l6557n63na18h9lxrdfnjb00vrc-bad.drv'...",
        f"error: Cannot build '{drv_path}'.",
        "       Reason: builder failed with exit code 3.",
        "       Required system: 'riscv64-linux'",
        "       Output paths:",
        f"error: Cannot build '{drv_path}'.",
        "       Reason: told again.",
    ]
    for line in lines:
        reasons(line)
    assert shown == lines
    told = "Reason: builder failed with exit code 3. Required system: 'riscv64-linux'"
    assert reasons.find(drv_path) == f"Cannot build '{drv_path}'. {told}"
    assert reasons.find(StorePath.parse("/nix/store/v71yfj64kk1f150ln7lhazlhk04sfvm1-other.drv")) is None
