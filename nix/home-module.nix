# home-manager: the proxy as a service of one user, on Linux and macOS, and that user's Nix told to use it.
#
# The Nix daemon follows only users that it trusts: the machine's owner has to list the user in `trusted-users`, or the
# substituter in `trusted-substituters` and the key in `trusted-public-keys`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.nixcache-proxy;
  proxy = import ./proxy.nix {
    inherit lib cfg;
    managesNix = config.nix.enable;
    nixConf = "~/.config/nix/nix.conf";
    nixEnvironments = [ config.home.sessionVariables ];
    # A user's socket is there while the user is logged in; before and after, the port is free for every other user.
    holdsPort = false;
  };
  systemd = import ./systemd.nix {
    inherit (proxy) command keepsPort;
    inherit (cfg) packMemory uploads;
  };
  inherit (pkgs.stdenv.hostPlatform) isLinux isDarwin;
  environment = proxy.environment // proxy.fileSettings;
  # Quoted as in JSON, which systemd reads the same way: values have spaces.
  assignment = name: value: builtins.toJSON "${name}=${proxy.escapeSpecifiers value}";
in
{
  imports = [ ./options.nix ./queue-home.nix ];

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        inherit (proxy) assertions warnings;

        # As in nixos-module.nix.
        home.packages = [ cfg.package ];

        nix = lib.mkIf cfg.configureNix {
          # home-manager wants to know for which Nix it writes nix.conf. Weaker than any other word on it.
          package = lib.mkOverride 1400 pkgs.nix;
          settings = proxy.nixManners;
          # Beside what the machine's nix.conf lists, not instead of it. As settings, home-manager would write them before
          # a user's own `substituters`, sorted as they are by name, and Nix would forget them there.
          extraOptions = lib.mkAfter proxy.addingLines;
        };
      }

      (lib.mkIf isLinux {
        # As in nixos-module.nix: the port does not refuse while the service starts, or is restarted.
        systemd.user.sockets.nixcache-proxy = {
          Unit.Description = "Socket of the Nix binary cache in an OCI registry";
          Socket = {
            ListenStream = proxy.listenStream;
            FreeBind = !proxy.isLoopback;
          };
          Install.WantedBy = [ "sockets.target" ];
        };

        systemd.user.services.nixcache-proxy = {
          Unit = systemd.unitConfig // {
            Description = "Nix binary cache in an OCI registry";
            Requires = [ "nixcache-proxy.socket" ];
            After = [ "nixcache-proxy.socket" ];
          };
          Install.WantedBy = [ "default.target" ];
          # What needs privileges or a user namespace is left to nixos-module.nix: some systems keep those from users.
          Service = systemd.serviceConfig // {
            Environment = lib.mapAttrsToList assignment environment;
          };
        };
      })

      (lib.mkIf isDarwin {
        launchd.agents.nixcache-proxy = {
          enable = true;
          config = {
            ProgramArguments = [
              "/bin/sh"
              "-c"
              # The Nix store is a volume of its own, and may come after the login. Where nix-darwin does not make the
              # file of certificates, macOS has its own.
              (
                "/bin/wait4path /nix/store && { [ -e \"$SSL_CERT_FILE\" ] || SSL_CERT_FILE=/etc/ssl/cert.pem; } && "
                + "exec ${proxy.command}"
              )
            ];
            EnvironmentVariables = {
              # As in darwin-module.nix.
              SSL_CERT_FILE = "/etc/ssl/certs/ca-certificates.crt";
            }
            // environment;
            RunAtLoad = true;
            KeepAlive = true;
            # As in darwin-module.nix.
            SoftResourceLimits.NumberOfFiles = 65536;
            HardResourceLimits.NumberOfFiles = 65536;
            StandardErrorPath = "${config.home.homeDirectory}/Library/Logs/nixcache-proxy.log";
          };
        };
      })
    ]
  );
}
