# What this repository's binary cache holds: `nixcache-oci publish` builds all of it, and publishes what no upstream
# has. Replace the examples by your own.
{
  description = "What this repository's binary cache holds";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { nixpkgs, ... }:
    let
      # Each is built on a machine of its kind: publish builds what its own machine can.
      systems = [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" ];
      forEachSystem = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = forEachSystem (pkgs: {
        default = pkgs.writeShellScriptBin "hello-cache" "echo 'This came out of a registry.'";
      });

      # Everything that `nix develop` needs, so that nobody waits for it.
      devShells = forEachSystem (pkgs: {
        default = pkgs.mkShell { packages = [ pkgs.jq ]; };
      });

      # A whole machine, so that `nixos-rebuild switch` only downloads. It also uses the cache; add the nixcache-oci that
      # you trust to the inputs for that, as inputs.nixcache-oci.url =
      # "github:__PUT-THE-OWNER-OF-YOUR-NIXCACHE-OCI-HERE__/nixcache-oci":
      #
      # nixosConfigurations.web1 = nixpkgs.lib.nixosSystem {
      #   modules = [
      #     nixcache-oci.nixosModules.default
      #     ./web1.nix
      #     {
      #       services.nixcache-proxy = {
      #         enable = true;
      #         repo = "OWNER/NAME";
      #         publicKey = "NAME-1:…=";
      #       };
      #     }
      #   ];
      # };
    };
}
