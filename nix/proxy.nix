# What the three modules make of the same options: the proxy's environment, what Nix is told, and what cannot be meant.
#
# isService: it runs as a user of its own, who has no embedded cache.
{
  lib,
  cfg,
  isService,
}:
let
  option = name: "services.nixcache-proxy.${name}";
  publicKeys = lib.unique (cfg.publicKeys ++ lib.optional (cfg.publicKey != null) cfg.publicKey);
  keyNames = map (key: builtins.head (lib.splitString ":" key)) publicKeys;

  bracketed = address: if lib.hasInfix ":" address then "[${address}]" else address;
  # Where the proxy listens on every address, this machine asks it on loopback.
  askedAddress = { "0.0.0.0" = "127.0.0.1"; "::" = "::1"; }.${cfg.listenAddress} or cfg.listenAddress;

  # Each setting that has an option; null is not set.
  settings = {
    NIXCACHE_REPO = cfg.repo;
    NIXCACHE_REGISTRY = cfg.registry;
    NIXCACHE_IMAGE = cfg.image;
    NIXCACHE_PORT = toString cfg.port;
    NIXCACHE_LISTEN = cfg.listenAddress;
    NIXCACHE_UPSTREAM = toString cfg.upstreams;
    NIXCACHE_UPSTREAM_NARS = cfg.upstreamNars;
    NIXCACHE_INDEX_TTL = toString cfg.indexTtl;
    NIXCACHE_PACK_MEMORY = toString cfg.packMemory;
    NIXCACHE_PRIORITY = toString cfg.priority;
    NIXCACHE_HOSTS = toString cfg.allowedHosts;
    NIXCACHE_PUBLIC_KEYS = toString publicKeys;
    NIXCACHE_LOG_LEVEL = cfg.logLevel;
  };
  ofOptions = builtins.attrNames settings ++ [ "NIXCACHE_TOKEN_FILE" ];
  secrets = [ "GITHUB_TOKEN" "GH_TOKEN" "NIXCACHE_TOKEN" "NIX_SIGNING_KEY" ];
  given = builtins.attrNames cfg.extraSettings;
  among = names: builtins.filter (name: builtins.elem name names) given;
in
rec {
  inherit publicKeys;

  isLayout = lib.hasPrefix "oci:" cfg.registry;
  isLoopback = lib.hasPrefix "127." cfg.listenAddress || cfg.listenAddress == "::1";
  listenStream = "${bracketed cfg.listenAddress}:${toString cfg.port}";
  command = "${cfg.package}/bin/nixcache-oci proxy";

  # `trusted` is a setting of this one substituter: require-sigs, which would be the other way, is one of all of them.
  substituter =
    "http://${bracketed askedAddress}:${toString cfg.port}"
    + lib.optionalString (!cfg.requireSignatures) "?trusted=true";

  # Settings of Nix that count for every cache; the machine's owner may say otherwise without a conflict.
  nixManners =
    lib.optionalAttrs cfg.fallback { fallback = lib.mkDefault true; }
    // lib.optionalAttrs (cfg.narinfoCacheNegativeTtl != null) {
      narinfo-cache-negative-ttl = lib.mkDefault cfg.narinfoCacheNegativeTtl;
    };

  # Those of a machine whose owner wants the cache.
  machineSettings = nixManners // {
    substituters = [ substituter ];
    # So that a user who is not trusted may name it, too.
    trusted-substituters = [ substituter ];
    trusted-public-keys = publicKeys;
  };

  environment =
    lib.filterAttrs (_: value: value != null) settings
    // builtins.mapAttrs (_: toString) cfg.extraSettings;

  # systemd.unit(5), "Specifiers": a URL with %2F would be another one otherwise.
  escapeSpecifiers = builtins.replaceStrings [ "%" ] [ "%%" ];

  assertions = [
    {
      assertion = cfg.repo != null || isLayout || (!isService && cfg.registry == "ghcr.io");
      message = "${option "repo"} is not set: set it to owner/name, or ${option "registry"} to oci:/path.";
    }
    {
      assertion = !isLayout || lib.hasPrefix "oci:/" cfg.registry;
      message = "${option "registry"}: the folder behind `oci:` must be an absolute path.";
    }
    {
      assertion = cfg.port != 0;
      message = "${option "port"} is 0, which picks a free one at each start: Nix could not know it.";
    }
    {
      assertion = cfg.requireSignatures -> !cfg.configureNix || publicKeys != [ ];
      message =
        "${option "requireSignatures"} is on and ${option "publicKeys"} is empty, so Nix would refuse "
        + "everything in the cache: set the key that it is signed with.";
    }
    {
      assertion = cfg.requireSignatures || publicKeys == [ ];
      message =
        "${option "publicKeys"} says which signatures count, and ${option "requireSignatures"} = false "
        + "that none is needed: remove one of them.";
    }
    {
      assertion = lib.unique keyNames == keyNames;
      message = "${option "publicKeys"} has two keys of one name; Nix tells keys apart by name.";
    }
    {
      assertion = cfg.tokenFile == null || !lib.hasPrefix builtins.storeDir (toString cfg.tokenFile);
      message =
        "${option "tokenFile"} lies in the Nix store, which every user can read: give the path of a file "
        + "elsewhere, as a string.";
    }
    {
      assertion = among ofOptions == [ ];
      message = "${option "extraSettings"} sets ${toString (among ofOptions)}, which has an option of its own.";
    }
    {
      assertion = among secrets == [ ];
      message =
        "${option "extraSettings"} sets ${toString (among secrets)}, which every user could read in the Nix store: "
        + "use ${option "tokenFile"}.";
    }
  ];

  warnings =
    lib.optional (cfg.configureNix && !cfg.requireSignatures) (
      "${option "requireSignatures"} is off: Nix takes whatever ${option "registry"} sends without a signature, so who "
      + "may write there can put programs onto this machine. Other caches are checked as before."
    )
    ++ lib.optional (cfg.configureNix && !cfg.requireSignatures && cfg.upstreams != [ ]) (
      "${option "upstreams"} are passed on without a check of their signatures, because "
      + "${option "requireSignatures"} is off: name them in nix.settings.substituters instead."
    );
}
