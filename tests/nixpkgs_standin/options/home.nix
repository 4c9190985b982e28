# What the home-manager module sets and reads.
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
    home.homeDirectory = mkOption {
      type = types.str;
      default = "/home/octocat";
    };
    nix.package = mkOption {
      type = types.nullOr types.package;
      default = null;
    };
    nix.settings = any;
    systemd.user.services = any;
    systemd.user.sockets = any;
    launchd.agents = any;
  };
}
