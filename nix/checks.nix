# What `nix flake check` builds, for one system.
{ pkgs }:
let
  inherit (pkgs) lib;
  package = pkgs.callPackage ./package.nix { };
in
{
  inherit package;

  # Tests that need a program which is not here are skipped by name: Nix inside of a build of Nix is no real one.
  tests = pkgs.stdenv.mkDerivation {
    name = "nixcache-oci-tests";
    src = ../.;
    nativeBuildInputs = [
      (import ./test-python.nix { inherit pkgs; })
      pkgs.nginx
      pkgs.skopeo
    ];
    # Servers on loopback, in macOS's sandbox.
    __darwinAllowLocalNetworking = true;
    dontConfigure = true;
    buildPhase = ''
      runHook preBuild
      HOME=$(mktemp -d) python -m pytest -p no:cacheprovider
      runHook postBuild
    '';
    installPhase = "touch $out";
  };
}
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
  # The units as NixOS writes them, and what systemd thinks of their hardening: a tenth of what it prints, so below 2.
  units =
    let
      machine = pkgs.nixos {
        imports = [ ../nixos-module.nix ];
        boot.isContainer = true;
        system.stateVersion = lib.trivial.release;
        services.nixcache-proxy = {
          enable = true;
          repo = "octocat/my-cache";
          publicKey = "my-cache-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        };
      };
      unit = name: pkgs.writeText name machine.config.systemd.units.${name}.text;
    in
    pkgs.runCommand "nixcache-proxy-units"
      {
        nativeBuildInputs = [
          pkgs.bubblewrap
          pkgs.systemd
        ];
      }
      ''
        mkdir $out
        cp ${unit "nixcache-proxy.socket"} $out/nixcache-proxy.socket
        cp ${unit "nixcache-proxy.service"} $out/nixcache-proxy.service
        # systemd-analyze needs /run/systemd, which a build cannot make: all else here, and that folder beside it.
        binds=()
        for folder in /*; do
          [ "$folder" = /run ] || binds+=(--dev-bind "$folder" "$folder")
        done
        bwrap "''${binds[@]}" --dir /run/systemd \
          systemd-analyze security --offline=true --threshold=20 $out/nixcache-proxy.service
      '';

  vm = pkgs.testers.runNixOSTest (import ./vm-test.nix { inherit pkgs; });
}
