# For working on this project: `python -m pytest` and `python -m nixcache_oci` right away, `make test` for everything.
{ pkgs }:
pkgs.mkShell {
  packages = [
    (import ./test-python.nix { inherit pkgs; })
    pkgs.gnumake
    pkgs.nginx
    pkgs.nix
    pkgs.skopeo
  ];
}
