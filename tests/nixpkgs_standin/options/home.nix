# What the home-manager module sets and reads.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  any = import ./any.nix { inherit lib; };
in
{
  imports = [ ./common.nix ];

  options = {
    home.homeDirectory = mkOption {
      type = types.str;
      default = "/home/octocat";
    };
    nix.package = mkOption {
      type = types.nullOr types.package;
      default = null;
    };
    nix.extraOptions = mkOption {
      type = types.lines;
      default = "";
    };
    home.packages = mkOption {
      type = types.listOf types.package;
      default = [ ];
    };
    home.sessionVariables = any;
    systemd.user.services = any;
    systemd.user.sockets = any;
    launchd.agents = any;
  };
}
