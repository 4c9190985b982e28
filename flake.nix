{
  description = "Turns any GitHub repository into a Nix binary cache, stored in an OCI registry";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { nixpkgs, ... }:
    let
      inherit (nixpkgs) lib;
      # Only those that nixpkgs still has.
      systems = builtins.filter (system: nixpkgs.legacyPackages ? ${system}) [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      forEachSystem = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      packageFor = pkgs: pkgs.callPackage ./nix/package.nix { };
    in
    {
      packages = forEachSystem (pkgs: rec {
        nixcache-oci = packageFor pkgs;
        default = nixcache-oci;
      });

      # `nix run .#cache-proxy` serves a cache; `nix run . -- VERB …` is the whole program.
      apps = forEachSystem (
        pkgs:
        let
          program = "${packageFor pkgs}/bin/nixcache-oci";
          meta.description = "A Nix binary cache that is kept in an OCI registry";
        in
        {
          default = {
            type = "app";
            inherit program meta;
          };
          cache-proxy = {
            type = "app";
            program = "${pkgs.writeShellScript "cache-proxy" ''exec ${program} proxy "$@"''}";
            meta.description = "Serve the cache to Nix on this machine";
          };
        }
      );

      overlays.default = final: prev: { nixcache-oci = packageFor final; };

      # By path, so that a module which is imported twice counts once.
      nixosModules.default.imports = [ ./nixos-module.nix ];
      darwinModules.default.imports = [ ./nix/darwin-module.nix ];
      homeModules.default.imports = [ ./nix/home-module.nix ];

      devShells = forEachSystem (pkgs: {
        default = import ./nix/shell.nix { inherit pkgs; };
      });

      checks = forEachSystem (pkgs: import ./nix/checks.nix { inherit pkgs; });

      templates.default = {
        path = ./nixcache_oci/starter;
        description = "A repository that becomes a Nix binary cache";
      };
    };
}
