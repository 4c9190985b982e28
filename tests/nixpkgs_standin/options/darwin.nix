# What the nix-darwin module sets.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  any = mkOption {
    type = types.anything;
    default = { };
  };
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
    nix.settings = any;
    users.users = any;
    users.groups = any;
    users.knownUsers = mkOption {
      type = types.listOf types.str;
      default = [ ];
    };
    users.knownGroups = mkOption {
      type = types.listOf types.str;
      default = [ ];
    };
    launchd.daemons = any;
  };
}
