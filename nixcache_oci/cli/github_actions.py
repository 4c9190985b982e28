"""GitHub Actions: what a workflow's environment holds, annotations, outputs and summaries.

Source: GitHub's documentation, "Workflow commands for GitHub Actions" and "Variables reference".
"""

import re
import secrets
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self

from nixcache_oci.cli.console import escape_controls, without_colours
from nixcache_oci.cli.log import escape_unprintable

MAX_SUMMARY_BYTES: Final = 1024 * 1024
"""Of a step; GitHub shows no longer one."""

_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_CUT: Final = b"\n\nThe rest is left out: it is over what GitHub shows.\n"


class WorkflowLog:
    """The log of a step, on standard error, in which GitHub finds no commands in foreign lines.

    ``::stop-commands::`` and a random word stand before them, and that word ends them. It is another one each
    time, so that nobody can know it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._word: str | None = None

    def show(self, line: str) -> None:
        """Show a line of another program."""
        with self._lock:
            if self._word is None:
                self._word = secrets.token_hex(16)
                self._write(f"::stop-commands::{self._word}")
            # Nothing may look like the end; the older form of commands works even here.
            shown = escape_controls(without_colours(line)).replace("##[", "#\\x23[")
            self._write(shown.replace(self._word, "..."))

    def command(self, name: str, line: str) -> None:
        """Give GitHub a command."""
        lines = _LINE_END.split(line.rstrip("\r\n"))
        shown = "%0A".join(escape_unprintable(one).replace("%", "%25") for one in lines)
        with self._lock:
            self.resume()
            self._write(f"::{name}::{shown}")

    def resume(self) -> None:
        """End the foreign lines, if there were any."""
        with self._lock:
            if self._word is not None:
                self._write(f"::{self._word}::")
                self._word = None

    def _write(self, line: str) -> None:
        # GitHub reads both streams, and standard output is for results.
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class GithubActions:
    """A run of a workflow; what GitHub did not set is None.

    Attributes:
        repository: ``owner/name``.
        ref_name: the branch or tag.
        run_id: the same for all attempts of a run.
        summary: the file that the step's summary is appended to.
        output: the file that the step's outputs are appended to.
    """

    server_url: str | None = None
    repository: str | None = None
    sha: str | None = None
    ref_name: str | None = None
    run_id: str | None = None
    summary: Path | None = None
    output: Path | None = None
    log: WorkflowLog = field(default_factory=WorkflowLog, compare=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """Read what GitHub set; None outside a workflow."""
        if environment.get("GITHUB_ACTIONS") != "true":
            return None

        def get(name: str) -> str | None:
            return environment.get(f"GITHUB_{name}") or None

        summary, output = get("STEP_SUMMARY"), get("OUTPUT")
        return cls(
            get("SERVER_URL"),
            get("REPOSITORY"),
            get("SHA"),
            get("REF_NAME"),
            get("RUN_ID"),
            Path(summary) if summary else None,
            Path(output) if output else None,
        )

    @property
    def source(self) -> str | None:
        """Address of the commit."""
        if not (self.server_url and self.repository and self.sha):
            return None
        return f"{self.server_url}/{self.repository}/commit/{self.sha}"

    def annotate(self, level: Literal["notice", "warning", "error"], line: str) -> None:
        """Show a line beside the run."""
        self.log.command(level, line)

    def set_output(self, name: str, value: str) -> None:
        """Set an output of the step, of one line; warn if it cannot be written."""
        if self.output is None:
            return
        try:
            with self.output.open("a", encoding="utf-8") as file:
                file.write(f"{name}={escape_unprintable(value)}\n")
        except OSError as error:
            self.annotate("warning", f"the step's output {name} cannot be written: {error.strerror}")

    def append_summary(self, markdown: str) -> None:
        """Append to the step's summary; warn if it cannot be written."""
        if self.summary is None:
            self.annotate("warning", "there is no step summary: GITHUB_STEP_SUMMARY is not set")
            return
        content = markdown.encode(errors="replace")
        try:
            with self.summary.open("ab") as file:
                room = MAX_SUMMARY_BYTES - file.tell()
                if room < min(len(content), len(_CUT)):
                    self.annotate("warning", "the step summary is full: GitHub shows nothing of a longer one")
                    return
                file.write(content if len(content) <= room else _cut(content, room))
        except OSError as error:
            self.annotate("warning", f"the step summary cannot be written: {error.strerror}")


def _cut(content: bytes, room: int) -> bytes:
    """Keep whole lines, or whole letters of the first line, and add that this is not all."""
    text = content[: room - len(_CUT)].decode(errors="ignore")
    lines, line_end, _ = text.rpartition("\n")
    return (lines + line_end or text).encode() + _CUT
