# NixOS: the proxy as a service, and Nix told to use it.
#
#   services.nixcache-proxy = {
#     enable = true;
#     repo = "owner/name";
#     publicKey = "my-cache-1:…=";
#   };
{ config, lib, ... }:
let
  cfg = config.services.nixcache-proxy;
  proxy = import ./nix/proxy.nix {
    inherit lib cfg;
    holdsPort = true;
    managesNix = config.nix.enable;
    nixConf = "the nix.conf that Nix reads (with Determinate Nix, /etc/nix/nix.custom.conf)";
    # The daemon has the first two, and what root and users start without it the third.
    nixEnvironments = [
      (config.networking.proxy.envVars // config.nix.envVars or { })
      config.environment.variables
    ];
    # As %d below, which no file may have.
    tokenPath = name: _: "/run/credentials/nixcache-proxy.service/token-${name}";
  };
  hardening = import ./nix/hardening.nix;
  systemd = import ./nix/systemd.nix {
    inherit (proxy) command keepsPort;
    inherit (cfg) packMemory uploads;
  };
  # Of the machine: NixOS writes it where every user can read it, and so does the unit.
  passwords = proxy.hasPasswords config.networking.proxy.envVars;
  # What each file is called among the service's credentials.
  credentials = {
    NIXCACHE_TOKEN_FILE = "token";
    NIXCACHE_UPSTREAM_FILE = "upstreams";
    NIXCACHE_UPLOAD_TOKENS_FILE = "upload-tokens";
    NIXCACHE_SIGNING_KEY_FILE = "signing-key";
    NIXCACHE_OIDC_FILE = "oidc";
    NIXCACHE_TLS_CERT = "tls-certificate";
    NIXCACHE_TLS_KEY = "tls-key";
    NIXCACHE_TLS_CLIENT_CA = "tls-client-ca";
  };
in
{
  imports = [ ./nix/options.nix ./nix/queue-nixos.nix ];

  options.services.nixcache-proxy.openFirewall = lib.mkOption {
    type = lib.types.bool;
    default = false;
    description = ''
      Whether the firewall lets others reach the port. Whoever does can read the whole cache, also one whose
      registry asks for a token.
    '';
  };

  config = lib.mkIf cfg.enable {
    assertions = proxy.assertions ++ [
      {
        assertion = !cfg.openFirewall || !proxy.isLoopback;
        message =
          "services.nixcache-proxy.openFirewall is on, but nobody else can reach ${cfg.listenAddress}: set "
          + "services.nixcache-proxy.listenAddress.";
      }
    ];
    warnings =
      proxy.warnings
      ++ lib.optional (passwords != [ ]) (
        "networking.proxy sets ${toString passwords} with a password, which every user can read in the Nix store; the unit "
        + "nixcache-proxy has it, too."
      );

    # For `nixcache-oci doctor`, and whoever publishes from here.
    environment.systemPackages = [ cfg.package ];

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.port ];

    nix.settings = lib.mkIf cfg.configureNix proxy.machineSettings;

    # The port does not refuse while the service starts, or is restarted: Nix takes a refusal for an error. Only a switch
    # to a configuration in which the units differ closes it, for the moment that the old ones stop and the new start.
    systemd.sockets.nixcache-proxy = {
      description = "Socket of the Nix binary cache in an OCI registry";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ proxy.listenStream ];
      # Sockets are made before the network is up, and an address of the network is not there yet.
      socketConfig = systemd.socketConfig // {
        FreeBind = !proxy.isLoopback;
      };
    };

    systemd.services.nixcache-proxy = {
      description = "Nix binary cache in an OCI registry";
      # Not only when somebody asks: the index is fresh by then. It needs no network to start.
      wantedBy = [ "multi-user.target" ];
      requires = [ "nixcache-proxy.socket" ];
      after = [ "nixcache-proxy.socket" ];
      environment =
        builtins.mapAttrs (_: proxy.escapeSpecifiers) (config.networking.proxy.envVars // proxy.environment)
        // builtins.mapAttrs (variable: _: "%d/${credentials.${variable}}") proxy.fileSettings;
      inherit (systemd) unitConfig;
      serviceConfig = systemd.serviceConfig // hardening.withPrivileges // {
        # The manager reads them as root; no other service of the same user could.
        LoadCredential =
          lib.mapAttrsToList (
            variable: file: "${credentials.${variable}}:${proxy.escapeSpecifiers file}"
          ) proxy.fileSettings
          ++ lib.mapAttrsToList (name: file: "token-${name}:${proxy.escapeSpecifiers file}") proxy.cacheTokens;

        # Users are seen as nobody, root among them: not even their names are needed.
        PrivateUsers = true;
        # An OCI layout may be in a home, and is read only; else homes hold nothing for it.
        ProtectHome = if proxy.readsLayouts then "read-only" else true;
        # It sees itself among the processes, and nothing of the kernel's other files.
        ProtectProc = "invisible";
        ProcSubset = "pid";
      };
    };
  };
}
