"""Setting up: what each command of make installs, and that the program is found afterwards."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
PARTS = ["Makefile", "LICENSE", "README.md", "pyproject.toml", "requirements.txt", "scripts", "nixcache_oci"]
PAGES = {
    "bash-completion/completions/nixcache-oci": "complete ",
    "zsh/site-functions/_nixcache-oci": "#compdef nixcache-oci",
    "fish/vendor_completions.d/nixcache-oci.fish": "complete -c nixcache-oci",
    "man/man1/nixcache-oci.1": ".TH NIXCACHE",
}
# As pip says that it reached no index; anything else is a failure of ours.
NO_INDEX = re.compile(r"connection broken|Failed to establish|Name or service not known", re.IGNORECASE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a clone has of all that is needed here."""
    folder = tmp_path / "checkout"
    for part in [*PARTS, "workflows/setup/requirements.txt"]:
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (TOP / part).is_dir():
            shutil.copytree(TOP / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(TOP / part, target)
    return folder


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=checkout, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.needs("make")
def test_the_demo_waits_for_no_linter(checkout: Path) -> None:
    """It installs what runs the program, by hash, and the rest is for whoever works on it."""
    demo, setup = (make(checkout, "--dry-run", target).stdout for target in ("demo", "setup"))
    assert "scripts/setup 'python3' .venv -e ." in demo
    assert "-r requirements.txt" not in demo
    assert "-r requirements.txt" in setup
    assert setup.startswith(demo[: demo.index("touch")])
    lock = "workflows/setup/requirements.txt"
    assert f"--require-hashes -r {lock}" in (TOP / "scripts/setup").read_text()
    assert not re.search("^(?:ruff|mypy|pytest|coverage)==", (TOP / lock).read_text(), re.MULTILINE)


@pytest.mark.needs("make")
def test_what_is_installed_is_found(checkout: Path, tmp_path: Path) -> None:
    """From any folder, by its name, without the checkout; what else is in the prefix stays when it goes."""
    prefix = tmp_path / "pre fix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/other").touch()
    done = make(checkout, "install", f"PREFIX={prefix}")
    if NO_INDEX.search(done.stderr) and os.environ.get("CI") != "true":
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    assert "which is not in PATH" in done.stdout
    (advice,) = re.findall(r"export PATH=.*", done.stdout)
    assert not list(checkout.glob("*.egg-info"))
    # Where shells and man look for what they take from others.
    for name, word in PAGES.items():
        assert word in (prefix / "share" / name).read_text()
    shutil.move(checkout, tmp_path / "elsewhere")
    found = subprocess.run(
        ["/bin/sh", "-c", f"{advice}; nixcache-oci --version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stdout.startswith("nixcache-oci ")
    assert make(tmp_path / "elsewhere", "uninstall", f"PREFIX={prefix}").returncode == 0
    assert [str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()] == ["bin/other"]
