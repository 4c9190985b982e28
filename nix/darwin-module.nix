# nix-darwin: the proxy as a launchd daemon, and Nix told to use it.
{ config, lib, ... }:
let
  cfg = config.services.nixcache-proxy;
  proxy = import ./proxy.nix {
    inherit lib cfg;
    isService = true;
  };
  # Names of system accounts start with an underscore on macOS.
  user = "_nixcache-proxy";
  home = "/var/lib/nixcache-proxy";
in
{
  imports = [ ./options.nix ];

  options.services.nixcache-proxy.uid = lib.mkOption {
    type = lib.types.int;
    default = 587;
    description = ''
      Number of the user and of the group ${user}, who must be able to read `tokenFile`. macOS has no users that
      exist only while a service runs.
    '';
  };

  config = lib.mkIf cfg.enable {
    inherit (proxy) assertions warnings;

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
        StandardErrorPath = "${home}/proxy.log";
        EnvironmentVariables =
          {
            HOME = home;
            NIXCACHE_INDEX_DIR = "${home}/index";
            # launchd's environment has none of the variables by which Nix's OpenSSL finds certificates.
            SSL_CERT_FILE = "/etc/ssl/certs/ca-certificates.crt";
          }
          // lib.optionalAttrs (cfg.tokenFile != null) { NIXCACHE_TOKEN_FILE = toString cfg.tokenFile; }
          // proxy.environment;
      };
    };
  };
}
