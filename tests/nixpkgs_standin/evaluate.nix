# One module with one configuration, under the stand-in's evalModules or under the real one.
#
# kind: of the options to set: nixos, darwin or home
# module: the file to test
# settings: a JSON file of services.nixcache-proxy
# package: a folder that stands for the package, with bin/nixcache-oci
# more: a further module
# lib: a folder of nixpkgs; null for the stand-in
{
  kind,
  module,
  settings,
  package,
  system,
  more ? null,
  lib ? null,
}:
let
  chosen = import (if lib == null then ./lib.nix else lib);
  standin = import ./pkgs.nix {
    inherit system;
    lib = import ./lib.nix;
  };
  inherit
    (chosen.evalModules {
      modules = [
        (./options + "/${kind}.nix")
        module
        {
          services.nixcache-proxy = builtins.fromJSON (builtins.readFile settings) // {
            package = standin.nix // {
              outPath = package;
            };
          };
        }
      ]
      ++ (if more == null then [ ] else [ more ]);
      specialArgs.pkgs = standin;
    })
    config
    ;
  failed = builtins.filter (one: !one.assertion) config.assertions;
in
{
  failed = map (one: one.message) failed;
  inherit (config) warnings;
  config =
    builtins.removeAttrs config [ "assertions" "warnings" ]
    // {
      # A package is not written as text: that would build its derivation.
      nix = config.nix // {
        package = config.nix.package.name or null;
      };
    };
}
