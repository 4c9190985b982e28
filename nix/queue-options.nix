# The options of services.nixcache-queue that the modules for NixOS, nix-darwin and home-manager share. What the values
# may be, `nixcache-oci queue run --help` says.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  proxy = config.services.nixcache-proxy;
in
{
  options.services.nixcache-queue = {
    enable = lib.mkEnableOption "the queue that publishes what Nix builds on this machine";

    package = mkOption {
      type = types.package;
      default = pkgs.nixcache-oci or (pkgs.callPackage ./package.nix { });
      defaultText = lib.literalMD "`pkgs.nixcache-oci` where the overlay is in use, else the same made from `pkgs`";
      description = "The package that has `bin/nixcache-oci`.";
    };

    repo = mkOption {
      type = types.nullOr types.str;
      default = proxy.repo;
      defaultText = lib.literalMD "`services.nixcache-proxy.repo`";
      example = "octocat/my-cache";
      description = "GitHub repository that the cache belongs to, or what stands for it in another registry.";
    };

    registry = mkOption {
      type = types.str;
      default = proxy.registry;
      defaultText = lib.literalMD "`services.nixcache-proxy.registry`";
      description = "Registry, `host[:port]`; or `oci:/path`, an OCI layout folder that the queue must be able to write.";
    };

    image = mkOption {
      type = types.str;
      default = proxy.image;
      defaultText = lib.literalMD "`services.nixcache-proxy.image`";
      description = "Last part of the repository's name in the registry.";
    };

    tokenFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/nix-cache-write-token";
      description = ''
        File with a token that may write packages, or `user:password`. It must not be in the Nix store.
      '';
    };

    signingKeyFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/my-cache-1.sec";
      description = ''
        File of the secret key to sign with. It must not be in the Nix store. Without one, only what is signed already
        is published, unless `extraFlags` has `--allow-unsigned`.
      '';
    };

    watch = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to publish whatever becomes valid in the store, however it came: built, substituted (unless an upstream
        signed it), copied, added, sources of flakes among it.
      '';
    };

    scope = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "queue/builders";
      description = "Within a scope, the next version of a package supersedes the last; `queue/<host name>` by default.";
    };

    wait = mkOption {
      type = types.ints.unsigned;
      default = 3;
      description = "Seconds without a new path after which a batch is published, at the latest after a minute.";
    };

    extraFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "--upstream-key-name" "my-company-1" ];
      description = "More flags for `nixcache-oci queue run`. Every user can read them: no passwords.";
    };

    extraSettings = mkOption {
      type = types.attrsOf (types.either types.str types.int);
      default = { };
      example = { HTTPS_PROXY = "http://proxy.example:3128"; };
      description = "More environment variables. Every user can read them: no passwords.";
    };
  };
}
