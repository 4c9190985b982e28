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
    isService = true;
  };
in
{
  imports = [ ./nix/options.nix ];

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
    inherit (proxy) warnings;

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.port ];

    nix.settings = lib.mkIf cfg.configureNix (
      proxy.nixManners
      // {
        substituters = [ proxy.substituter ];
        # So that a user who is not trusted may name it, too.
        trusted-substituters = [ proxy.substituter ];
        trusted-public-keys = proxy.publicKeys;
      }
    );

    # The port never refuses, not while the service starts or is restarted: Nix takes a refusal for an error.
    systemd.sockets.nixcache-proxy = {
      description = "Socket of the Nix binary cache in an OCI registry";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ proxy.listenStream ];
      # Sockets are made before the network is up, and an address of the network is not there yet.
      socketConfig.FreeBind = !proxy.isLoopback;
    };

    systemd.services.nixcache-proxy = {
      description = "Nix binary cache in an OCI registry";
      # Not only when somebody asks: the index is fresh by then. It needs no network to start.
      wantedBy = [ "multi-user.target" ];
      requires = [ "nixcache-proxy.socket" ];
      after = [ "nixcache-proxy.socket" ];
      environment =
        builtins.mapAttrs (_: proxy.escapeSpecifiers) (config.networking.proxy.envVars // proxy.environment)
        // lib.optionalAttrs (cfg.tokenFile != null) { NIXCACHE_TOKEN_FILE = "%d/token"; };
      # What cannot start is given up soon, and its socket with it: Nix forgives a refusal that it can fall back from,
      # but would wait for minutes on a socket that nobody answers.
      unitConfig = {
        StartLimitIntervalSec = 60;
        StartLimitBurst = 5;
      };
      serviceConfig = {
        Type = "notify";
        ExecStart = proxy.command;
        Restart = "on-failure";
        RestartSec = "2s";
        # Wrong usage, as a setting that cannot be parsed: another try does not mend it.
        RestartPreventExitStatus = 2;
        # The start reads the last good index from disk, and waits for nothing else.
        TimeoutStartSec = "30s";
        # Running transfers are given up after three seconds; Nix resumes them.
        TimeoutStopSec = "10s";

        # The last good index, which is served at once after a start; nothing else is ever written.
        CacheDirectory = "nixcache-proxy";
        CacheDirectoryMode = "0700";
        # The manager reads the token as root; no other service of the same user could.
        LoadCredential = lib.optional (
          cfg.tokenFile != null
        ) "token:${proxy.escapeSpecifiers (toString cfg.tokenFile)}";

        # A user of its own that exists while the service runs, and owns nothing but its cache folder.
        DynamicUser = true;
        # Nothing needs a capability: the manager opens the port, also a low one.
        CapabilityBoundingSet = "";
        AmbientCapabilities = "";
        # No program it might be tricked to start gains what it has not.
        NoNewPrivileges = true;
        # Nobody else reads what it writes.
        UMask = "0077";
        # Users are seen as nobody, root among them: not even their names are needed.
        PrivateUsers = true;
        # It writes to its cache folder only.
        ProtectSystem = "strict";
        # An OCI layout may lie in a home, and is read only; else homes hold nothing for it.
        ProtectHome = if proxy.isLayout then "read-only" else true;
        # It leaves no files in /tmp, and trusts none there.
        PrivateTmp = true;
        # Mounts made here are seen nowhere else.
        PrivateMounts = true;
        # It reads and writes sockets and files, never hardware.
        PrivateDevices = true;
        DevicePolicy = "closed";
        # It sees itself among the processes, and nothing of the kernel's other files.
        ProtectProc = "invisible";
        ProcSubset = "pid";
        # It changes no kernel settings, loads no modules, reads no kernel log, sets no clock, name or control group.
        ProtectKernelTunables = true;
        ProtectKernelModules = true;
        ProtectKernelLogs = true;
        ProtectClock = true;
        ProtectHostname = true;
        ProtectControlGroups = true;
        # HTTP to clients, registry and upstreams; the manager is told over a local socket. No raw packets.
        RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" ];
        # It makes no containers, and no code on the fly: Python compiles to bytecode, not to machine code.
        RestrictNamespaces = true;
        MemoryDenyWriteExecute = true;
        # No other instruction set's system calls, of which filters know less.
        LockPersonality = true;
        SystemCallArchitectures = "native";
        # No real-time priority, by which it could starve the machine; no files that run as somebody else.
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        # Shared memory and keys of the kernel end with the service, and are no one else's.
        RemoveIPC = true;
        KeyringMode = "private";
        # What services do, less what needs privileges or claims resources; a refused call is an error, not a death.
        SystemCallFilter = [ "@system-service" "~@privileged @resources" ];
        SystemCallErrorNumber = "EPERM";
      };
    };
  };
}
