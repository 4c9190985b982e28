"""GitHub Actions: what a workflow tells us of itself, and how it is told of trouble and results.

Source: GitHub's documentation, "Workflow commands for GitHub Actions" and "Variables reference".
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nixcache_oci.cli.log import escape_unprintable

MAX_SUMMARY_BYTES: Final = 1024 * 1024
"""Of a step; GitHub shows nothing of a longer one."""

_CUT: Final = b"\n\nThe rest is left out: it is over what GitHub shows.\n"


@dataclass(frozen=True, slots=True)
class GithubActions:
    """A run of a workflow; what GitHub did not tell is None.

    Attributes:
        server_url: of GitHub.
        repository: ``owner/name``.
        sha: the commit that the workflow runs on.
        ref_name: the branch or tag.
        run_id: of the run; its later attempts have the same.
        summary: the file that the step's summary is appended to.
    """

    server_url: str | None = None
    repository: str | None = None
    sha: str | None = None
    ref_name: str | None = None
    run_id: str | None = None
    summary: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """Read what GitHub set; None outside of a workflow."""
        if environment.get("GITHUB_ACTIONS") != "true":
            return None

        def get(name: str) -> str | None:
            return environment.get(f"GITHUB_{name}") or None

        summary = get("STEP_SUMMARY")
        return cls(
            get("SERVER_URL"),
            get("REPOSITORY"),
            get("SHA"),
            get("REF_NAME"),
            get("RUN_ID"),
            Path(summary) if summary else None,
        )

    @property
    def source(self) -> str | None:
        """Address of the commit."""
        if not (self.server_url and self.repository and self.sha):
            return None
        return f"{self.server_url}/{self.repository}/commit/{self.sha}"

    def warning(self, line: str) -> None:
        """Annotate the run with a warning."""
        _print_command("warning", line)

    def error(self, line: str) -> None:
        """Annotate the run with an error."""
        _print_command("error", line)

    def append_summary(self, markdown: str) -> None:
        """Append to the step's summary; that it cannot be written is a warning, and no failure."""
        if self.summary is None:
            self.warning("there is no step's summary: GITHUB_STEP_SUMMARY is not set")
            return
        content = markdown.encode(errors="replace")
        try:
            with self.summary.open("ab") as file:
                room = MAX_SUMMARY_BYTES - file.tell()
                if room < min(len(content), len(_CUT)):
                    self.warning("the step's summary is full: GitHub shows nothing of a longer one")
                    return
                file.write(content if len(content) <= room else _cut(content, room))
        except OSError as error:
            self.warning(f"the step's summary cannot be written: {error.strerror}")


def _cut(content: bytes, room: int) -> bytes:
    """Keep whole lines, or whole letters where there is but one line, and say that this is not all."""
    text = content[: room - len(_CUT)].decode(errors="ignore")
    lines, line_end, _ = text.rpartition("\n")
    return (lines + line_end or text).encode() + _CUT


def _print_command(name: str, line: str) -> None:
    """Write a workflow command; GitHub reads both streams, and standard output is for results."""
    shown = "".join(letter if letter in "\r\n" else escape_unprintable(letter) for letter in line)
    escaped = shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    print(f"::{name}::{escaped}", file=sys.stderr, flush=True)
