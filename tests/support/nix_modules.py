"""The modules for NixOS, nix-darwin and home-manager, evaluated; and the units that come out.

Without a network there is no nixpkgs: tests/nixpkgs_standin stands in for it. Where NIXPKGS_LIB names the
``lib`` folder of a checkout of nixpkgs, the same tests run under its ``evalModules``, too.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.nix import NixSandbox

TOP = Path(__file__).parents[2]
STANDIN = TOP / "tests/nixpkgs_standin"
UNIT = "nixcache-proxy"

KEY = "my-cache-1:" + "A" * 43 + "="
OTHER_KEY = "other-1:" + "B" * 42 + "A="
USABLE: Mapping[str, Any] = {"repo": "octocat/my-cache", "publicKey": KEY}
UNSIGNED: Mapping[str, Any] = {"repo": "octocat/my-cache", "requireSignatures": False}

MODULES = {
    "nixos": TOP / "nixos-module.nix",
    "darwin": TOP / "nix/darwin-module.nix",
    "home": TOP / "nix/home-module.nix",
}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a module made of its options.

    Attributes:
        config: of the whole machine, or home.
        failed: messages of the assertions that do not hold.
        warnings: as the user reads them.
    """

    config: dict[str, Any]
    failed: list[str]
    warnings: list[str]

    @property
    def nix_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.config["nix"]["settings"]
        return settings

    @property
    def service(self) -> dict[str, Any]:
        """The service on NixOS."""
        service: dict[str, Any] = self.config["systemd"]["services"][UNIT]
        return service

    @property
    def socket(self) -> dict[str, Any]:
        """The socket on NixOS."""
        socket: dict[str, Any] = self.config["systemd"]["sockets"][UNIT]
        return socket


class Modules:
    """Evaluates the modules.

    Args:
        nix: of the test; nothing is built.
        folder: for files.
        lib: of nixpkgs, or None for the stand-in's.
    """

    def __init__(self, nix: NixSandbox, folder: Path, lib: Path | None) -> None:
        self._nix = nix
        self._folder = folder
        self._lib = lib
        self.package = make_package(folder / "package")

    def evaluate(
        self, kind: str = "nixos", /, *, more: str = "{ }", system: str = "x86_64-linux", **settings: object
    ) -> Evaluated:
        """Evaluate one module.

        Args:
            kind: of machine: nixos, darwin or home.
            more: a further module, as Nix writes it.
            system: of the machine.
            settings: of services.nixcache-proxy, beside ``enable``."""
        file = self._folder / "settings.json"
        file.write_text(json.dumps({"enable": True, **settings}))
        expression = f"""import {STANDIN}/evaluate.nix {{
          kind = "{kind}"; module = {MODULES[kind]}; settings = {file}; package = "{self.package}";
          system = "{system}"; more = {more}; lib = {self._lib or "null"};
        }}"""
        flags = ("--eval", "--read-write-mode", "--strict", "--json", "-E")
        run = self._nix.run("nix-instantiate", *flags, expression).check()
        return Evaluated(**json.loads(run.stdout))


@pytest.fixture(params=["stand-in", "nixpkgs"] if "NIXPKGS_LIB" in os.environ else ["stand-in"])
def modules(request: pytest.FixtureRequest, nix: NixSandbox, tmp_path: Path) -> Modules:
    """The modules, under every ``evalModules`` that is here."""
    return Modules(nix, tmp_path, Path(os.environ["NIXPKGS_LIB"]) if request.param == "nixpkgs" else None)


def make_package(folder: Path) -> Path:
    """Make what stands for the package: a program of its name that runs this very code."""
    program = folder / "bin/nixcache-oci"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{TOP}" exec "{sys.executable}" -m nixcache_oci "$@"\n')
    program.chmod(0o755)
    return folder


def service_unit(service: Mapping[str, Any]) -> str:
    """Write a NixOS service as NixOS does."""
    environment = [json.dumps(f"{name}={value}") for name, value in service["environment"].items()]
    return _sections(
        Unit={
            "Description": service["description"],
            "Requires": " ".join(service["requires"]),
            "After": " ".join(service["after"]),
            **service["unitConfig"],
        },
        Service={"Environment": environment, **service["serviceConfig"]},
        Install={"WantedBy": " ".join(service["wantedBy"])},
    )


def socket_unit(socket: Mapping[str, Any]) -> str:
    """Write a NixOS socket as NixOS does."""
    return _sections(
        Unit={"Description": socket["description"]},
        Socket={"ListenStream": socket["listenStreams"], **socket["socketConfig"]},
        Install={"WantedBy": " ".join(socket["wantedBy"])},
    )


def home_unit(unit: Mapping[str, Mapping[str, Any]]) -> str:
    """Write a unit of home-manager, which has sections already."""
    return _sections(**unit)


def _sections(**sections: Mapping[str, Any]) -> str:
    lines: list[str] = []
    for section, entries in sections.items():
        lines.append(f"[{section}]")
        for name, value in entries.items():
            lines += [f"{name}={_text(one)}" for one in _values(value)]
    return "\n".join(lines) + "\n"


def _values(value: object) -> Iterable[object]:
    return value if isinstance(value, list) else [value]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def environment_of(evaluated: Evaluated, kind: str) -> dict[str, str]:
    """What the proxy gets from this kind of machine, with systemd's quoting undone."""
    if kind == "nixos":
        found: dict[str, str] = evaluated.service["environment"]
        return {name: value.replace("%%", "%") for name, value in found.items()}
    if kind == "darwin":
        daemon = evaluated.config["launchd"]["daemons"]["nixcache-proxy"]
        return dict(daemon["serviceConfig"]["EnvironmentVariables"])
    service = evaluated.config["systemd"]["user"]["services"]["nixcache-proxy"]["Service"]
    assignments = (one[1:-1].replace("%%", "%").partition("=") for one in service["Environment"])
    return {name: value for name, _, value in assignments}
