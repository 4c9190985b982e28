# nix-darwin: the proxy as a launchd daemon, and Nix told to use it.
{ config, lib, ... }:
let
  cfg = config.services.nixcache-proxy;
  proxy = import ./proxy.nix {
    inherit lib cfg;
    # Versions of nix-darwin before 2025 always manage Nix.
    managesNix = config.nix.enable or true;
    nixConf = "the nix.conf that Nix reads (with Determinate Nix, /etc/nix/nix.custom.conf)";
    nixEnvironments = [
      (config.launchd.daemons.nix-daemon.serviceConfig.EnvironmentVariables or { })
      config.environment.variables
    ];
    # launchd starts the daemon at boot, and restarts it: meanwhile the port is free.
    holdsPort = false;
  };
  # Names of system accounts start with an underscore on macOS.
  user = "_nixcache-proxy";
  home = "/var/lib/nixcache-proxy";
in
{
  imports = [ ./options.nix ./queue-darwin.nix ];

  options.services.nixcache-proxy.uid = lib.mkOption {
    type = lib.types.int;
    default = 587;
    description = ''
      Number of the user and of the group ${user}, who must be able to read `tokenFile` and `upstreamsFile`. macOS
      has no users that exist only while a service runs.
    '';
  };

  config = lib.mkIf cfg.enable {
    inherit (proxy) assertions warnings;

    # As in nixos-module.nix.
    environment.systemPackages = [ cfg.package ];

    nix.settings = lib.mkIf cfg.configureNix proxy.machineSettings;

    users = {
      knownUsers = [ user ];
      knownGroups = [ user ];
      users.${user} = {
        inherit (cfg) uid;
        gid = cfg.uid;
        inherit home;
        createHome = true;
        shell = "/usr/bin/false";
        description = "Nix binary cache in an OCI registry";
      };
      groups.${user} = {
        gid = cfg.uid;
        description = "Nix binary cache in an OCI registry";
      };
    };

    launchd.daemons.nixcache-proxy = {
      # nix-darwin makes it wait for the Nix store's volume.
      inherit (proxy) command;
      serviceConfig = {
        # launchd opens no sockets for it; it is started at boot, and again whenever it ends.
        RunAtLoad = true;
        KeepAlive = true;
        UserName = user;
        GroupName = user;
        # Readable by nobody else: 077, in decimal as a property list has it.
        Umask = 63;
        # Nothing here bounds memory as systemd's MemoryMax does: macOS does not enforce launchd's ResidentSetSize. Of
        # files it allows 256 unless told.
        SoftResourceLimits.NumberOfFiles = 65536;
        HardResourceLimits.NumberOfFiles = 65536;
        StandardErrorPath = "${home}/proxy.log";
        EnvironmentVariables =
          {
            HOME = home;
            NIXCACHE_INDEX_DIR = "${home}/index";
            # launchd's environment has none of the variables by which Nix's OpenSSL finds certificates.
            SSL_CERT_FILE = "/etc/ssl/certs/ca-certificates.crt";
          }
          // proxy.fileSettings
          // proxy.environment;
      };
    };
  };
}
