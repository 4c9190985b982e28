# What the modules make of the options of services.nixcache-queue.
#
# hookIs: what the setting post-build-hook became in the end; null where the module sets none.
{
  lib,
  cfg,
  pkgs,
  folder,
  hookIs,
}:
let
  option = name: "services.nixcache-queue.${name}";
  isLayout = lib.hasPrefix "oci:" cfg.registry;
  # As in a POSIX shell, and as systemd reads it: between single quotes.
  quoted = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'";
in
rec {
  hookText =
    builtins.replaceStrings [ "#!/bin/sh\n" "@events@" ] [ "" (quoted "${folder}/events") ] (
      builtins.readFile ../nixcache_oci/queue/post-build-hook.sh
    );
  # In the Nix store, and not in the queue's folder: the daemon runs it as root.
  hook = pkgs.writeShellScript "nixcache-queue-hook" hookText;

  flags =
    [ "--wait" (toString cfg.wait) ]
    ++ lib.optional cfg.watch "--watch"
    ++ (if cfg.scope == null then [ ] else [ "--scope" cfg.scope ])
    ++ cfg.extraFlags;
  arguments = [ "${cfg.package}/bin/nixcache-oci" "queue" "run" ] ++ flags;

  environment = lib.filterAttrs (_: value: value != null) {
    NIXCACHE_REPO = cfg.repo;
    NIXCACHE_REGISTRY = cfg.registry;
    NIXCACHE_IMAGE = cfg.image;
  }
  // builtins.mapAttrs (_: toString) cfg.extraSettings;

  # Paths of files with secrets, for a service that reads them itself.
  fileSettings = builtins.mapAttrs (_: toString) (
    lib.filterAttrs (_: file: file != null) {
      NIXCACHE_TOKEN_FILE = cfg.tokenFile;
      NIXCACHE_SIGNING_KEY_FILE = cfg.signingKeyFile;
    }
  );

  assertions = [
    {
      assertion = cfg.repo != null || isLayout;
      message = "${option "repo"} is not set: set it to owner/name, or ${option "registry"} to oci:/path.";
    }
    {
      assertion = hookIs == null || toString hookIs == toString hook;
      message =
        "nix.settings.post-build-hook is set to another hook, and Nix runs only one: let that one write events too "
        + "(docs/publishing.md), set ${option "hook"} = false and ${option "watch"} = true, or remove it.";
    }
  ]
  ++ map (name: {
    assertion = cfg.${name} == null || !lib.hasPrefix builtins.storeDir (toString cfg.${name});
    message =
      "${option name} is in the Nix store, which every user can read: give the path of a file elsewhere, as a string.";
  }) [ "tokenFile" "signingKeyFile" ];
}
