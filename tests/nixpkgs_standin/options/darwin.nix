# What the nix-darwin module sets.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  any = import ./any.nix { inherit lib; };
in
{
  imports = [ ./machine.nix ];

  options = {
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
    environment.variables = any;
  };
}
