"""The file of tokens: what it may hold, and that errors repeat no token."""

from pathlib import Path

import pytest

from nixcache_oci.errors import UsageError
from nixcache_oci.proxy.writers import MIN_TOKEN_CHARACTERS, read_tokens

TOKEN = "x" * MIN_TOKEN_CHARACTERS


def test_tokens_have_names(tmp_path: Path) -> None:
    """Blank lines and comments are skipped; a token may hold a colon."""
    (tmp_path / "tokens").write_text(f"# of the team\n\nlaptop:{TOKEN}\n ci:{TOKEN}:y \n")
    assert read_tokens(tmp_path / "tokens") == {"laptop": TOKEN, "ci": f"{TOKEN}:y"}
    assert read_tokens(None) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nobody\n",
        f"{TOKEN}\n",
        f"a:{TOKEN[1:]}\n",
        f"a:{TOKEN} y\n",
        f"a b:{TOKEN}\n",
        f"a:{TOKEN}\na:{TOKEN}y\n",
        "x" * 70_000,
    ],
)
def test_a_file_that_cannot_be_meant(tmp_path: Path, text: str) -> None:
    """A start is refused rather than a writer forgotten, or a token that can be guessed."""
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(UsageError, match="NIXCACHE_UPLOAD_TOKENS_FILE") as caught:
        read_tokens(tmp_path / "tokens")
    assert "xxx" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """One line names the setting, the file and the reason."""
    with pytest.raises(UsageError, match=r"NIXCACHE_UPLOAD_TOKENS_FILE: .*No such file"):
        read_tokens(tmp_path / "tokens")
