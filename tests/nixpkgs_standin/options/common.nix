# What the modules of every kind set.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options = {
    assertions = mkOption {
      type = types.listOf types.anything;
      default = [ ];
    };
    warnings = mkOption {
      type = types.listOf types.str;
      default = [ ];
    };
    nix.enable = mkOption {
      type = types.bool;
      default = true;
    };
    nix.settings = import ./any.nix { inherit lib; };
  };
}
