"""Who starts programs."""

import re
from pathlib import Path

import nixcache_oci

_PACKAGE = Path(nixcache_oci.__file__).parent
_STARTING = re.compile(
    r"create_subprocess|subprocess_(exec|shell)|multiprocessing|ProcessPool"
    r"|\bos\.(system|popen|exec|spawn|posix_spawn|fork)|\bpty\b"
)


def test_only_the_local_store_starts_programs() -> None:
    """What cannot start programs cannot be made to; import-linter does not see functions of asyncio."""
    starting = {
        path.relative_to(_PACKAGE).as_posix()
        for path in _PACKAGE.rglob("*.py")
        if _STARTING.search(path.read_text())
    }
    assert starting == {"clients/local_store/environment.py", "clients/local_store/program.py"}


def test_few_may_name_a_program() -> None:
    """Nix by the local store, docker's credential helpers, and what a user names for watch-exec: no more."""
    naming = {
        path.relative_to(_PACKAGE).as_posix()
        for path in _PACKAGE.rglob("*.py")
        if re.search(r"\b(run_program|run_in_foreground)\b", path.read_text())
    }
    others = {path for path in naming if not path.startswith("clients/local_store/")}
    assert others == {"clients/auth_file.py", "cli/watch_exec.py"}


def test_no_program_is_started_by_a_shell() -> None:
    """What a user names is never parsed by a shell."""
    text = (_PACKAGE / "clients/local_store/program.py").read_text()
    assert "shell=" not in text
    assert "subprocess_shell" not in text
