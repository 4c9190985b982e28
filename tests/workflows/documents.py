"""The YAML files that GitHub reads: which there are, and what is in them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from ruamel.yaml import YAML

from nixcache_oci.cli.starter import PLACEHOLDER

TOP: Final = Path(__file__).parents[2]
TEMPLATE: Final = TOP / "nixcache_oci/starter"
ACTIONS: Final = tuple(sorted((TOP / "workflows").glob("*/action.yml")))
WORKFLOWS: Final = tuple(sorted((TOP / ".github/workflows").glob("*.yml")))
TEMPLATE_WORKFLOWS: Final = tuple(sorted((TEMPLATE / ".github/workflows").glob("*.yml")))
EVERY_FILE: Final = (*ACTIONS, *WORKFLOWS, *TEMPLATE_WORKFLOWS)

# How the template, and any other repository, names what lies in this one.
HERE: Final = f"{PLACEHOLDER}/"

Document: TypeAlias = Mapping[str, Any]


def read(path: Path) -> Document:
    """Parse a file; a key that is there twice is an error."""
    return cast("Document", YAML(typ="safe", pure=True).load(path))


def name_of(path: Path) -> str:
    """Tell a test's name."""
    return str(path.relative_to(TOP))


def steps_of(document: Document) -> Iterator[Document]:
    """Give the steps of an action, or of all jobs of a workflow."""
    if "runs" in document:
        yield from document["runs"].get("steps", [])  # an action in JavaScript has none
    for job in document.get("jobs", {}).values():
        yield from job["steps"]
