# NixOS: the queue as a service, and Nix told to fill it.
#
#   services.nixcache-queue = {
#     enable = true;
#     repo = "owner/name";
#     tokenFile = "/run/secrets/token";
#     signingKeyFile = "/run/secrets/my-cache-1.sec";
#   };
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.nixcache-queue;
  folder = "/var/lib/nixcache-queue";
  hardening = import ./hardening.nix;
  queue = import ./queue.nix {
    inherit lib cfg pkgs folder;
    hookIs = if cfg.hook then config.nix.settings.post-build-hook or null else null;
  };
  escapeSpecifiers = builtins.replaceStrings [ "%" ] [ "%%" ];
  # systemd.service(5), "Command lines": a quoted word, in which $ and % are doubled.
  word = text: escapeSpecifiers (builtins.replaceStrings [ "$" ] [ "$$" ] (builtins.toJSON text));
  credential = name: file: lib.optional (file != null) "${name}:${escapeSpecifiers (toString file)}";
in
{
  imports = [ ./queue-options.nix ./queue-hook-option.nix ];

  config = lib.mkIf cfg.enable {
    inherit (queue) assertions;
    warnings = lib.optional (cfg.hook && !config.nix.enable) (
      "nix.enable is off, so nothing here sets the hook. Add this line to the nix.conf that Nix reads, and restart the Nix "
      + "daemon:\npost-build-hook = ${queue.hook}\nservices.nixcache-queue.hook = false ends this warning."
    );

    environment.systemPackages = [ cfg.package ];

    # Weaker than another that is set, so that the assertion can say what to do.
    nix.settings = lib.mkIf cfg.hook { post-build-hook = lib.mkDefault (toString queue.hook); };

    systemd.services.nixcache-queue = {
      description = "Publishes what Nix builds";
      wantedBy = [ "multi-user.target" ];
      requires = [ ];
      # It starts without a network, too: what fails is tried again.
      after = [ "network.target" ];
      path = [ config.nix.package ];
      environment =
        builtins.mapAttrs (_: escapeSpecifiers) (config.networking.proxy.envVars // queue.environment)
        // {
          HOME = folder;
          NIX_REMOTE = "daemon";
        }
        // lib.optionalAttrs (cfg.tokenFile != null) { NIXCACHE_TOKEN_FILE = "%d/token"; }
        // lib.optionalAttrs (cfg.signingKeyFile != null) { NIXCACHE_SIGNING_KEY_FILE = "%d/key"; };
      unitConfig = { StartLimitIntervalSec = 0; };
      serviceConfig = hardening.withoutPrivileges // hardening.withPrivileges // {
        ExecStart = builtins.concatStringsSep " " (map word queue.arguments);
        Restart = "always";
        RestartSec = "10s";
        # A publish that is ended loses nothing: what is queued stays, and what was sent is found.
        TimeoutStopSec = "30s";
        # The manager reads them as root; no other service of the same user could.
        LoadCredential = credential "token" cfg.tokenFile ++ credential "key" cfg.signingKeyFile;
        # Events, links for the garbage collector, and how far the store was watched; the daemon's hook, which runs as
        # root, writes here, too. What it queues others may know: store paths are no secret.
        StateDirectory = "nixcache-queue";
        StateDirectoryMode = "0755";
        CacheDirectory = "nixcache-queue";
        CacheDirectoryMode = "0700";
        # Below other services: builds and whoever waits for them matter more.
        Nice = 10;

        ProtectHome = true;
        # `queue status` of any user may count what is queued.
        UMask = "0022";
        # Nix's own programs claim resources.
        SystemCallFilter = [ "@system-service" "~@privileged" ];
      }
      // lib.optionalAttrs (lib.hasPrefix "oci:" cfg.registry) {
        ReadWritePaths = [ (escapeSpecifiers (builtins.substring 4 (-1) cfg.registry)) ];
      };
    };
  };
}
