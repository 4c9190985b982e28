# Python with the program, and with what its tests import. The linters of requirements.txt are not in it: they judge
# the code by one version, and nixpkgs has another.
{ pkgs }:
pkgs.python3.withPackages (
  packages: with packages; [
    (toPythonModule (pkgs.callPackage ./package.nix { python3Packages = packages; }))
    argparse-manpage
    cryptography
    hypothesis
    oras
    psutil
    pyjwt
    pytest
    pytest-asyncio
    pytest-timeout
    ruamel-yaml
    setuptools
    shtab
  ]
)
