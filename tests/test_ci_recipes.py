"""The recipes for Forgejo's and GitLab's CI in docs/other-registries.md: their YAML, and what it tells us."""

import argparse
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from nixcache_oci.cli.main import load_verb
from nixcache_oci.clients.credentials import choose_variable
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.settings.repository_config import repository_config, segment_options
from nixcache_oci.settings.values import Values
from nixcache_oci.settings.variables import ALL_VARIABLES

_PAGE: Final = Path(__file__).parent.parent / "docs/other-registries.md"
_BLOCK: Final = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_EXPRESSION: Final = re.compile(r"\$\{\{ (\S+) \}\}")
_RUN: Final = 'nix run "$CACHE_PROGRAM" -- '

# What each CI knows: its manual's keys of a workflow or job, as far as they are of use here.
_FORGEJO_STEP: Final = {"run", "if", "uses", "with", "name", "env"}
_GITLAB_TOP: Final = {"stages", "default", "variables", "workflow"}
_GITLAB_JOB: Final = {"stage", "rules", "script", "variables", "image"}


def recipes() -> list[Mapping[str, Any]]:
    """Parse both; a key that is there twice is an error."""
    found = _BLOCK.findall(_PAGE.read_text(encoding="utf-8"))
    return [YAML(typ="safe", pure=True).load(text) for text in found]


def forgejo() -> Mapping[str, Any]:
    return recipes()[0]


def gitlab() -> Mapping[str, Any]:
    return recipes()[1]


def expand(environment: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Fill in what the CI knows, by the way in which each of them writes it."""
    return {
        name: Template(_EXPRESSION.sub(lambda match: known[match[1]], text)).substitute(known)
        for name, text in environment.items()
    }


def location_of(environment: dict[str, str]) -> tuple[RegistryReference, int | None]:
    """Find the repository that the program makes of an environment, and its largest blob."""
    values = Values(environment, argparse.Namespace())
    location = repository_config(values)
    assert isinstance(location, RegistryReference)
    return location, segment_options(values, location, None).max_blob_bytes


def scripts() -> Iterator[tuple[str, str]]:
    """Give each command, with the name of its CI."""
    for step in forgejo()["jobs"]["cache"]["steps"]:
        yield "forgejo", step["run"]
    for job in ("publish", "gc"):
        for line in gitlab()[job]["script"]:
            yield "gitlab", line


def test_there_are_two() -> None:
    """What is no recipe is not written as one."""
    assert len(recipes()) == 2


def test_forgejo() -> None:
    """A workflow as Forgejo's runner reads it; a job's own token cannot push, so a secret goes with it."""
    recipe = forgejo()
    assert recipe.keys() == {"on", "jobs"}
    assert recipe["on"].keys() == {"push", "schedule"}
    [job] = recipe["jobs"].values()
    assert job.keys() == {"runs-on", "container", "env", "steps"}
    assert all(step.keys() <= _FORGEJO_STEP for step in job["steps"])
    events = {step["if"].partition("== ")[2].strip("'") for step in job["steps"] if "if" in step}
    assert events == recipe["on"].keys()
    known = {
        "github.repository": "Owner/Name",
        "secrets.PACKAGES_TOKEN": "me:token",
        "secrets.NIX_SIGNING_KEY": "k-1:x",
    }
    environment = expand(job["env"], known)
    reference, _ = location_of(environment)
    assert str(reference) == "codeberg.org/owner/name/nix-cache"
    credentials = choose_variable(reference.host, environment)
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("me", "token")


def test_gitlab() -> None:
    """Jobs as GitLab reads them; the job's token pushes, and subgroups are part of the name."""
    recipe = gitlab()
    jobs = {name: job for name, job in recipe.items() if name not in _GITLAB_TOP}
    assert all(job.keys() <= _GITLAB_JOB for job in jobs.values())
    assert {job["stage"] for job in jobs.values()} <= set(recipe["stages"])
    known = {
        "CI_REGISTRY": "registry.gitlab.com",
        "CI_PROJECT_PATH": "Group/sub/app",
        "CI_JOB_TOKEN": "token",
    }
    environment = expand(recipe["variables"], known)
    reference, most = location_of(environment)
    assert str(reference) == "registry.gitlab.com/group/sub/app/nix-cache"
    assert most == 5 * 10**9
    credentials = choose_variable(reference.host, environment)
    assert credentials is not None
    assert (credentials.username, credentials.password) == ("gitlab-ci-token", "token")


@pytest.mark.parametrize(("name", "script"), list(scripts()))
def test_the_commands_are_ours(name: str, script: str) -> None:
    """Verbs and flags that there are; nothing but variables of the CI is filled in by its shell."""
    if not script.startswith(_RUN):
        assert name == "forgejo"
        assert script.startswith("git clone ")
        return
    verb, *rest = shlex.split(script.removeprefix(_RUN))
    parser = argparse.ArgumentParser(exit_on_error=False)
    load_verb(verb).add_arguments(parser)
    parser.parse_args(rest)


def test_settings_are_known() -> None:
    """A misspelt one would be ignored by all but a warning."""
    ours = {variable.name for variable in ALL_VARIABLES} | {"NIX_CONFIG", "CACHE_PROGRAM"}
    for environment in (forgejo()["jobs"]["cache"]["env"], gitlab()["variables"]):
        assert environment.keys() <= ours
