# home-manager: the queue as a service of one user, on Linux and macOS. It has no hook: Nix's daemon ignores that of
# a user; so the store is watched, whoever builds.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.nixcache-queue;
  queue = import ./queue.nix {
    inherit lib cfg pkgs;
    folder = "";
    hookIs = null;
  };
  inherit (pkgs.stdenv.hostPlatform) isLinux isDarwin;
  environment = {
    PATH = "/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/bin:/bin";
  }
  // queue.fileSettings
  // queue.environment;
  # As in home-module.nix.
  escapeSpecifiers = builtins.replaceStrings [ "%" ] [ "%%" ];
  assignment = name: value: builtins.toJSON "${name}=${escapeSpecifiers value}";
  word = text: escapeSpecifiers (builtins.replaceStrings [ "$" ] [ "$$" ] (builtins.toJSON text));
in
{
  imports = [ ./queue-options.nix ];

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        inherit (queue) assertions;
        home.packages = [ cfg.package ];
        services.nixcache-queue.watch = lib.mkDefault true;
      }

      (lib.mkIf isLinux {
        systemd.user.services.nixcache-queue = {
          Unit = {
            Description = "Publishes what becomes valid in the Nix store";
            StartLimitIntervalSec = 0;
          };
          Install.WantedBy = [ "default.target" ];
          Service = {
            ExecStart = builtins.concatStringsSep " " (map word queue.arguments);
            Restart = "always";
            RestartSec = "10s";
            TimeoutStopSec = "30s";
            Nice = 10;
            NoNewPrivileges = true;
            Environment = lib.mapAttrsToList assignment environment;
          };
        };
      })

      (lib.mkIf isDarwin {
        launchd.agents.nixcache-queue = {
          enable = true;
          config = {
            ProgramArguments = queue.arguments;
            EnvironmentVariables = {
              # As in darwin-module.nix.
              SSL_CERT_FILE = "/etc/ssl/certs/ca-certificates.crt";
            }
            // environment;
            RunAtLoad = true;
            KeepAlive = true;
            StandardErrorPath = "${config.home.homeDirectory}/Library/Logs/nixcache-queue.log";
          };
        };
      })
    ]
  );
}
