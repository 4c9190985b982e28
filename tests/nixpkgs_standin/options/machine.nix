# What the modules of machines set, and those of users do not.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  imports = [ ./common.nix ];

  options.environment.systemPackages = mkOption {
    type = types.listOf types.package;
    default = [ ];
  };
}
