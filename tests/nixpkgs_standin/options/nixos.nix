# What the NixOS module sets, and what machines of the virtual test set beside it.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  any = import ./any.nix { inherit lib; };
in
{
  imports = [ ./machine.nix ];

  options = {
    networking = {
      firewall.allowedTCPPorts = mkOption {
        type = types.listOf types.port;
        default = [ ];
      };
      proxy.envVars = mkOption {
        type = types.attrsOf types.str;
        default = { };
      };
    };
    systemd.services = any;
    systemd.sockets = any;
    nix.envVars = any;
    nix.package = mkOption {
      type = types.package;
      default = pkgs.nix;
    };
    environment.variables = any;
    services.dockerRegistry = any;
    boot = any;
    system.stateVersion = mkOption {
      type = types.str;
      default = "26.11";
    };
  };

  # As NixOS has it, so that a test sees what becomes of both.
  config.nix.settings = {
    substituters = lib.mkAfter [ "https://cache.nixos.org/" ];
    trusted-public-keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
  };
}
