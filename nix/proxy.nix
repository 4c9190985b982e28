# What the three modules make of the same options: the proxy's environment, what Nix is told, and what cannot be meant.
#
# holdsPort: whether the machine's service manager listens from boot on, so that no user can take the port first.
# managesNix: whether the machine's configuration writes nix.conf at all: `nix.enable`.
# nixConf: where the lines belong that somebody adds by hand.
# nixEnvironments: the sets of variables that Nix may be started with here.
# tokenPath: where the service reads the token file of one of `caches`, by its name and path.
{
  lib,
  cfg,
  holdsPort,
  managesNix,
  nixConf,
  nixEnvironments,
  tokenPath ? (_: file: file),
}:
let
  option = name: "services.nixcache-proxy.${name}";
  ownKeys = lib.unique (cfg.publicKeys ++ lib.optional (cfg.publicKey != null) cfg.publicKey);
  publicKeys = lib.unique (ownKeys ++ builtins.concatMap (cache: cache.publicKeys) (builtins.attrValues cfg.caches));
  keyNames = map (key: builtins.head (lib.splitString ":" key)) publicKeys;

  bracketed = address: if lib.hasInfix ":" address then "[${address}]" else address;
  # Where the proxy listens on every address, this machine asks it on loopback.
  askedAddress = { "0.0.0.0" = "127.0.0.1"; "::" = "::1"; }.${cfg.listenAddress} or cfg.listenAddress;

  # A URL has its user and password, or a token, before an @.
  hasUser = lib.hasInfix "@";
  # In a variable that may hold anything, also without a scheme: user:password@host.
  hasPassword = text: builtins.match ".*:.*@.*" text != null;
  # A token of GitHub, or a secret key of Nix.
  hasToken =
    text: builtins.match ".*(gh[a-z]_|github_pat_)[A-Za-z0-9_]{20}.*|.*:[A-Za-z0-9+/]{86}==.*" text != null;
  # By their names; the path of a file is none.
  namesSecret =
    name:
    let
      upper = lib.toUpper name;
      words = "TOKEN|PASSW|PASSPHRASE|SECRET|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SIGNING_?KEY|AUTH_CONFIG|AUTHORIZATION|COOKIE";
    in
    builtins.match ".*(${words}).*" upper != null && builtins.match ".*_(FILE|DIR|PATH)" upper == null;
  where = "which every user could read in the Nix store";

  # What is written as text into the unit, and where it belongs instead. A layout's folder may have an @ in its name.
  texts = {
    repo = {
      text = toString cfg.repo;
      instead = "tokenFile";
    };
    registry = {
      text = if lib.hasPrefix "oci:" cfg.registry then "" else cfg.registry;
      instead = "tokenFile";
    };
    upstreams = {
      text = toString cfg.upstreams;
      instead = "upstreamsFile";
    };
    allowedHosts = {
      text = toString cfg.allowedHosts;
      instead = "tokenFile";
    };
  };

  # Strings and lists of them are written alike in JSON and TOML.
  cachesFile = builtins.toFile "nixcache-caches.toml" (
    builtins.concatStringsSep "\n" (
      lib.mapAttrsToList (
        name: cache:
        "[[cache]]\n"
        + lib.optionalString (cache.repo != null) "repo = ${builtins.toJSON cache.repo}\n"
        + "registry = ${builtins.toJSON cache.registry}\n"
        + "image = ${builtins.toJSON cache.image}\n"
        + "public-keys = ${builtins.toJSON cache.publicKeys}\n"
        + "uploads = ${builtins.toJSON cache.uploads}\n"
        + lib.optionalString (cache.tokenFile != null) (
          "token-file = ${builtins.toJSON (tokenPath name (toString cache.tokenFile))}\n"
        )
      ) cfg.caches
    )
  );
  hasOwn = cfg.repo != null || lib.hasPrefix "oci:" cfg.registry;
  hasCaches = cfg.caches != { };
  needsRepo = cache: cache.repo == null && !lib.hasPrefix "oci:/" cache.registry;
  holdsSecret =
    cache:
    hasUser cache.registry && !lib.hasPrefix "oci:" cache.registry
    || hasToken "${cache.registry} ${toString cache.repo}";
  isInStore = cache: lib.hasPrefix builtins.storeDir (toString cache.tokenFile);
  hasNoKeys = cache: cache.publicKeys == [ ];
  failing = isWrong: builtins.filter (name: isWrong cfg.caches.${name}) (builtins.attrNames cfg.caches);
  ofCaches = names: toString (map (name: option "caches.${name}") names);

  # Each setting that has an option; null is not set.
  settings = {
    NIXCACHE_REPO = cfg.repo;
    # Without a repository, it would say that one of this registry is meant.
    NIXCACHE_REGISTRY = if hasOwn || !hasCaches then cfg.registry else null;
    NIXCACHE_IMAGE = cfg.image;
    NIXCACHE_CACHES_FILE = if hasCaches then cachesFile else null;
    NIXCACHE_ON_DEMAND = if cfg.onDemand == null then null else toString cfg.onDemand;
    NIXCACHE_PORT = toString cfg.port;
    NIXCACHE_LISTEN = cfg.listenAddress;
    NIXCACHE_UPSTREAM = toString cfg.upstreams;
    NIXCACHE_UPSTREAM_NARS = cfg.upstreamNars;
    NIXCACHE_AHEAD = if cfg.ahead then "yes" else "no";
    NIXCACHE_INDEX_TTL = toString cfg.indexTtl;
    NIXCACHE_PACK_MEMORY = toString cfg.packMemory;
    NIXCACHE_PRIORITY = toString cfg.priority;
    NIXCACHE_HOSTS = toString cfg.allowedHosts;
    NIXCACHE_PUBLIC_KEYS = toString ownKeys;
    NIXCACHE_LOG_LEVEL = cfg.logLevel;
  }
  // builtins.mapAttrs (_: value: if cfg.uploads then value else null) {
    NIXCACHE_UPLOADS = "1";
    NIXCACHE_UPLOAD_QUIET = toString cfg.uploadQuiet;
    NIXCACHE_UPLOAD_SPACE = cfg.uploadSpace;
    NIXCACHE_UPLOAD_SUBJECTS = builtins.concatStringsSep ";" cfg.uploadSubjects;
    NIXCACHE_UPLOAD_CERT_HEADER = cfg.uploadCertHeader;
  };
  # Each file with secrets, by its variable: the option that names it.
  files = {
    NIXCACHE_TOKEN_FILE = "tokenFile";
    NIXCACHE_UPSTREAM_FILE = "upstreamsFile";
    NIXCACHE_UPLOAD_TOKENS_FILE = "uploadTokensFile";
    NIXCACHE_SIGNING_KEY_FILE = "signingKeyFile";
    NIXCACHE_TLS_KEY = "tlsKey";
  };
  # The same of those that everybody may read.
  openFiles = {
    NIXCACHE_TLS_CERT = "tlsCertificate";
    NIXCACHE_TLS_CLIENT_CA = "tlsClientCA";
    NIXCACHE_OIDC_FILE = "oidcFile";
  };
  ofOptions = builtins.attrNames (settings // files // openFiles);
  given = builtins.attrNames cfg.extraSettings;
  among = names: builtins.filter (name: builtins.elem name names) given;
  secret = builtins.filter (
    name:
    let
      text = toString cfg.extraSettings.${name};
    in
    namesSecret name || hasPassword text || hasToken text
  ) given;
  unsigned = cfg.configureNix && !cfg.requireSignatures;

  # What Nix is told of every cache.
  manners =
    lib.optionalAttrs cfg.fallback { fallback = true; }
    // lib.optionalAttrs (cfg.narinfoCacheNegativeTtl != null) {
      narinfo-cache-negative-ttl = cfg.narinfoCacheNegativeTtl;
    };

  # An HTTP proxy would answer for the machine that it runs on. libcurl, which Nix downloads with, takes no HTTP_PROXY in
  # capitals, and compares an address with each word of no_proxy. Source: libcurl-env(3), CURLOPT_NOPROXY(3).
  isProxied =
    variables:
    let
      given = name: toString (variables.${name} or "");
      first = names: builtins.head (builtins.filter (text: text != "") (map given names) ++ [ "" ]);
      words = builtins.filter (word: builtins.isString word && word != "") (
        builtins.split "[,[:space:]]+" (first [ "no_proxy" "NO_PROXY" ])
      );
    in
    first [ "http_proxy" "all_proxy" "ALL_PROXY" ] != "" && !builtins.any covers words;
  covers =
    word:
    let
      network = builtins.match "([0-9.]+)/([12]?[0-9]|3[0-2])" word;
      bits = builtins.fromJSON (builtins.elemAt network 1);
      shift = builtins.foldl' (number: _: number * 2) 1 (builtins.genList (bit: bit) (32 - bits));
      isIn = address: address / shift == number (builtins.head network) / shift;
    in
    builtins.elem word [ "*" askedAddress (bracketed askedAddress) ]
    || lib.hasInfix ":" askedAddress && lib.hasInfix ":" word && lib.hasInfix "/" word
    || network != null && isVersion4 askedAddress && isVersion4 (builtins.head network) && isIn (number askedAddress);
  isVersion4 = address: builtins.match "((0|[1-9][0-9]*)\\.){3}(0|[1-9][0-9]*)" address != null;
  number =
    address:
    builtins.foldl' (sum: part: sum * 256 + builtins.fromJSON part) 0 (
      builtins.filter builtins.isString (builtins.split "[.]" address)
    );
in
rec {
  inherit publicKeys;

  isLayout = lib.hasPrefix "oci:" cfg.registry;
  readsLayouts = isLayout || failing (cache: lib.hasPrefix "oci:" cache.registry) != [ ];
  # Token files of `caches`, by name.
  cacheTokens = builtins.mapAttrs (_: cache: toString cache.tokenFile) (
    lib.filterAttrs (_: cache: cache.tokenFile != null) cfg.caches
  );
  isLoopback = lib.hasPrefix "127." cfg.listenAddress || cfg.listenAddress == "::1";
  asksLoopback = builtins.elem askedAddress [ "127.0.0.1" "::1" ];
  keepsPort = unsigned;
  hasPasswords = set: builtins.filter (name: hasPassword (toString set.${name})) (builtins.attrNames set);
  listenStream = "${bracketed cfg.listenAddress}:${toString cfg.port}";
  command = "${cfg.package}/bin/nixcache-oci proxy";

  # `trusted` is a setting of this one substituter: require-sigs, which would be the other way, is one of all of them.
  substituter =
    "http://${bracketed askedAddress}:${toString cfg.port}"
    + lib.optionalString (!cfg.requireSignatures) "?trusted=true";

  # Settings of Nix that count for every cache; the machine's owner may say otherwise without a conflict.
  nixManners = builtins.mapAttrs (_: lib.mkDefault) manners;

  # Lines of nix.conf that add the cache to whatever the lines before them list.
  addingLines =
    "extra-substituters = ${substituter}\n"
    + lib.optionalString (publicKeys != [ ]) "extra-trusted-public-keys = ${toString publicKeys}\n";

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

  # Paths of files, for a service that reads them itself.
  fileSettings = builtins.mapAttrs (_: toString) (
    lib.filterAttrs (_: file: file != null) (builtins.mapAttrs (_: name: cfg.${name}) (files // openFiles))
  );

  # systemd.unit(5), "Specifiers": a URL with %2F would be another one otherwise.
  escapeSpecifiers = builtins.replaceStrings [ "%" ] [ "%%" ];

  assertions = [
    {
      assertion = hasOwn || hasCaches;
      message =
        "${option "repo"} is not set: set it to owner/name, or ${option "registry"} to oci:/path, or name the caches in "
        + "${option "caches"}.";
    }
    {
      assertion = failing needsRepo == [ ];
      message = "${ofCaches (failing needsRepo)}: set repo to owner/name, or registry to oci:/path.";
    }
    {
      assertion =
        cfg.requireSignatures && cfg.configureNix
        -> failing hasNoKeys == [ ] && (hasOwn && hasCaches -> ownKeys != [ ]);
      message =
        "${option "requireSignatures"} is on, and no publicKeys are set for "
        + toString (
          map option (
            lib.optional (hasOwn && ownKeys == [ ]) "repo"
            ++ map (name: "caches.${name}") (failing hasNoKeys)
          )
        )
        + ": Nix would refuse everything in that cache.";
    }
    {
      assertion = failing holdsSecret == [ ];
      message =
        "${ofCaches (failing holdsSecret)} holds a user, "
        + "password or token, ${where}: use its tokenFile.";
    }
    {
      assertion = failing isInStore == [ ];
      message =
        "tokenFile of ${ofCaches (failing isInStore)} is in the Nix "
        + "store, which every user can read: give the path of a file elsewhere, as a string.";
    }
    {
      # Each becomes a part of the name of a credential.
      assertion = builtins.all (name: builtins.match "[A-Za-z0-9_-]+" name != null) (builtins.attrNames cfg.caches);
      message = "${option "caches"}: a name has letters, digits, dashes and underscores only.";
    }
    {
      assertion = !isLayout || lib.hasPrefix "oci:/" cfg.registry;
      message = "${option "registry"}: the folder behind `oci:` must be an absolute path.";
    }
    {
      assertion = cfg.uploads -> cfg.uploadTokensFile != null || cfg.uploadSubjects != [ ] || cfg.oidcFile != null;
      message =
        "${option "uploads"} is on, and nobody may upload: set ${option "uploadTokensFile"}, "
        + "${option "uploadSubjects"} or ${option "oidcFile"}.";
    }
    {
      assertion = (cfg.uploadSubjects != [ ]) == (cfg.tlsClientCA != null || cfg.uploadCertHeader != null);
      message =
        "${option "uploadSubjects"} says whose certificates let upload, and ${option "tlsClientCA"} or "
        + "${option "uploadCertHeader"} who checks them: set both, or none.";
    }
    {
      assertion = (cfg.tlsCertificate != null) == (cfg.tlsKey != null) && (cfg.tlsClientCA != null -> cfg.tlsKey != null);
      message = "${option "tlsCertificate"} and ${option "tlsKey"} are both needed for HTTPS, and one of them is not set.";
    }
    {
      assertion = cfg.tlsCertificate != null && cfg.tlsKey != null -> !cfg.configureNix;
      message =
        "${option "tlsCertificate"} is set, and Nix would ask ${askedAddress}, for which no authority gives a certificate: set "
        + "${option "configureNix"} to false, and name the cache in nix.settings.substituters as the certificate does.";
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
      assertion = unsigned -> holdsPort;
      message =
        "${option "requireSignatures"} is off, and nothing holds port ${toString cfg.port} while the proxy does not run: "
        + "any user of this machine could listen there, and hand Nix programs that nobody signed. Only the socket of the "
        + "NixOS module is there from boot on: sign the cache, and set ${option "publicKeys"}.";
    }
    {
      assertion = unsigned -> isLoopback || asksLoopback;
      message =
        "${option "requireSignatures"} is off, and Nix would ask ${askedAddress}, which may become another machine's "
        + "address: set ${option "listenAddress"} to 127.0.0.1, or to 0.0.0.0 for all.";
    }
    {
      assertion = among ofOptions == [ ];
      message = "${option "extraSettings"} sets ${toString (among ofOptions)}, which has an option of its own.";
    }
    {
      assertion = secret == [ ];
      message =
        "${option "extraSettings"} sets ${toString secret}, ${where}: use ${option "tokenFile"} or "
        + "${option "upstreamsFile"}; for an HTTP proxy's password, a file in systemd's EnvironmentFile.";
    }
  ]
  ++ map (name: {
    assertion = !(hasUser texts.${name}.text || hasToken texts.${name}.text);
    message = "${option name} holds a user, password or token, ${where}: use ${option texts.${name}.instead}.";
  }) (builtins.attrNames texts)
  ++ map (name: {
    assertion = cfg.${name} == null || !lib.hasPrefix builtins.storeDir (toString cfg.${name});
    message =
      "${option name} is in the Nix store, which every user can read: give the path of a file elsewhere, as a string.";
  }) (builtins.attrValues files);

  warnings =
    lib.optional unsigned (
      "${option "requireSignatures"} is off: Nix takes whatever ${option "registry"} sends without a signature, so who "
      + "may write there can put programs onto this machine. Other caches are checked as before."
    )
    ++ lib.optional (unsigned && cfg.port >= 1024) (
      "${option "requireSignatures"} is off, and any local user can do the same who listens on port "
      + "${toString cfg.port} while the socket nixcache-proxy is not up, as before it is first started: set "
      + "${option "port"} below 1024, where only root can listen."
    )
    ++ lib.optional (unsigned && (cfg.upstreams != [ ] || cfg.upstreamsFile != null)) (
      "${option "upstreams"} are passed on without a check of their signatures, because "
      + "${option "requireSignatures"} is off: name them in nix.settings.substituters instead."
    )
    ++ lib.optional (cfg.configureNix && !managesNix) (
      "nix.enable is off, so nothing here tells Nix of the proxy. Add these lines to ${nixConf}, and restart the Nix "
      + "daemon:\n${addingLines}"
      + builtins.concatStringsSep "" (lib.mapAttrsToList (name: value: "${name} = ${builtins.toJSON value}\n") manners)
      + "${option "configureNix"} = false ends this warning."
    )
    ++ lib.optional (cfg.configureNix && builtins.any isProxied nixEnvironments) (
      "an HTTP proxy is set for Nix, which would ask it for ${substituter}, and no_proxy does not have ${askedAddress}: "
      + "add that address to no_proxy, on NixOS to networking.proxy.noProxy."
    );
}
