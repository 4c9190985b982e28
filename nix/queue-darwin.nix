# nix-darwin: the queue as a launchd daemon, and Nix told to fill it. As root, as Nix's daemon runs the hook.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.nixcache-queue;
  folder = "/var/lib/nixcache-queue";
  queue = import ./queue.nix {
    inherit lib cfg pkgs folder;
    hookIs = if cfg.hook then config.nix.settings.post-build-hook or null else null;
  };
in
{
  imports = [ ./queue-options.nix ./queue-hook-option.nix ];

  config = lib.mkIf cfg.enable {
    inherit (queue) assertions;
    warnings = lib.optional (cfg.hook && !(config.nix.enable or true)) (
      "nix.enable is off, so nothing here sets the hook. Add this line to the nix.conf that Nix reads, and restart the Nix "
      + "daemon:\npost-build-hook = ${queue.hook}\nservices.nixcache-queue.hook = false ends this warning."
    );

    environment.systemPackages = [ cfg.package ];

    # As in queue-nixos.nix.
    nix.settings = lib.mkIf cfg.hook { post-build-hook = lib.mkDefault (toString queue.hook); };

    launchd.daemons.nixcache-queue.serviceConfig = {
      ProgramArguments = queue.arguments;
      RunAtLoad = true;
      KeepAlive = true;
      # Below other services: builds and whoever waits for them matter more.
      Nice = 10;
      StandardErrorPath = "/var/log/nixcache-queue.log";
      EnvironmentVariables = {
        HOME = "/var/root";
        PATH = "/nix/var/nix/profiles/default/bin:/run/current-system/sw/bin:/usr/bin:/bin";
        NIXCACHE_QUEUE_DIR = folder;
        NIXCACHE_INDEX_DIR = "${folder}/index";
        # As in darwin-module.nix.
        SSL_CERT_FILE = "/etc/ssl/certs/ca-certificates.crt";
      }
      // queue.fileSettings
      // queue.environment;
    };
  };
}
