# The options that the modules for NixOS, nix-darwin and home-manager share. What each is called in the proxy's
# environment stands in proxy.nix; what the values may be, `nixcache-oci proxy --help` says.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  # A secret key is longer: pasted here by mistake, it would be in the Nix store, which every user can read.
  publicKey = types.strMatching "[^:[:space:]]+:[A-Za-z0-9+/]{43}=";
in
{
  options.services.nixcache-proxy = {
    enable = lib.mkEnableOption "the proxy that serves a Nix binary cache out of an OCI registry";

    package = mkOption {
      type = types.package;
      default = pkgs.nixcache-oci or (pkgs.callPackage ./package.nix { });
      defaultText = lib.literalMD "`pkgs.nixcache-oci` where the overlay is in use, else the same made from `pkgs`";
      description = "The package that has `bin/nixcache-oci`.";
    };

    repo = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "octocat/my-cache";
      description = ''
        GitHub repository that the cache belongs to, or what stands for it in another registry. Not needed where
        `registry` is an OCI layout folder.
      '';
    };

    registry = mkOption {
      type = types.str;
      default = "ghcr.io";
      example = "registry.example:5000";
      description = ''
        Registry, `host[:port]`. Loopback hosts and `http://…` are spoken to in plain HTTP. `oci:/path` is an OCI
        layout folder, which the proxy must be able to read.
      '';
    };

    image = mkOption {
      type = types.str;
      default = "nix-cache";
      description = "Last part of the repository's name in the registry.";
    };

    caches = mkOption {
      type = types.attrsOf (
        types.submodule {
          options = {
            repo = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "octocat/my-cache";
              description = "As `repo` of the proxy itself.";
            };
            registry = mkOption {
              type = types.str;
              default = "ghcr.io";
              description = "As `registry` of the proxy itself.";
            };
            image = mkOption {
              type = types.str;
              default = "nix-cache";
              description = "As `image` of the proxy itself.";
            };
            publicKeys = mkOption {
              type = types.listOf publicKey;
              default = [ ];
              description = "Keys that this cache's entries are signed with; Nix trusts them.";
            };
            tokenFile = mkOption {
              type = types.nullOr types.path;
              default = null;
              description = "As `tokenFile` of the proxy itself; it is used for this cache alone.";
            };
            uploads = mkOption {
              type = types.bool;
              default = false;
              description = "Whether uploads are taken for this cache, where they are on.";
            };
          };
        }
      );
      default = { };
      example = lib.literalExpression ''
        {
          tools = {
            repo = "team/tools";
            registry = "registry.example";
            publicKeys = [ "tools-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" ];
          };
        }
      '';
      description = ''
        More caches, which the proxy serves as one with that of `repo`: they are asked after it, in the order of their names
        here. Without `repo`, these are all.
      '';
    };

    onDemand = mkOption {
      type = types.nullOr (types.listOf types.str);
      default = null;
      example = [ "ghcr.io/octocat/*" ];
      description = ''
        Which caches are opened, anonymously, when somebody asks for `/owner/name/` or `/host/repository/`: patterns of
        `host/repository`, where `*` stands for anything. With null, `ghcr.io/*` where only this machine can connect, else none.
      '';
    };

    port = mkOption {
      type = types.port;
      default = 37515;
      description = "Port to listen on.";
    };

    listenAddress = mkOption {
      # systemd takes no names here, and brackets are added where they belong.
      type = types.strMatching "[0-9.]+|[0-9a-fA-F.]*:[0-9a-fA-F:.]*";
      default = "127.0.0.1";
      example = "::";
      description = "IP address to listen on, without brackets: `0.0.0.0` or `::` for all.";
    };

    allowedHosts = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "cache.lan" ];
      description = ''
        More names that clients may call the proxy by. It answers to loopback names, IP addresses and this
        machine's own name; anything else may be a web page that rebinds its name to this machine.
      '';
    };

    upstreams = mkOption {
      type = types.listOf types.str;
      default = lib.optional config.services.nixcache-proxy.requireSignatures "https://cache.nixos.org";
      defaultText = lib.literalExpression ''
        lib.optional config.services.nixcache-proxy.requireSignatures "https://cache.nixos.org"
      '';
      description = ''
        Caches that the proxy asks for what this one lacks. Without `requireSignatures` there are none by default:
        Nix then accepts whatever comes from the proxy, and is better off asking them itself.
      '';
    };

    upstreamsFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/nix-upstreams";
      description = ''
        File with more upstream caches, one URL per line, which may contain `user:password@`: every user can read
        `upstreams` itself. It is read when the service starts, and must not be in the Nix store.
      '';
    };

    upstreamNars = mkOption {
      type = types.enum [ "stream" "direct" ];
      default = "stream";
      description = "Whether NARs of upstream caches pass through the proxy, or come straight from the upstream.";
    };

    ahead = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether the proxy fetches from upstream caches what a client that substitutes will ask for next: small
        NARs, and narinfos of references.
      '';
    };

    priority = mkOption {
      type = types.ints.unsigned;
      default = 30;
      description = ''
        Lower is asked first, and cache.nixos.org has 40. Below 40, an outage of this cache does not fail a build on
        newer clients.
      '';
    };

    indexTtl = mkOption {
      type = types.ints.positive;
      default = 300;
      description = "Seconds between refreshes of the index, which run in the background.";
    };

    packMemory = mkOption {
      type = types.ints.between 64 1000000;
      default = 256;
      description = "MiB of memory for packs of small NARs while closures are fetched.";
    };

    publicKeys = mkOption {
      type = types.listOf publicKey;
      default = [ ];
      example = [ "my-cache-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" ];
      description = "Keys that the cache's entries are signed with. The proxy lists only these, and Nix trusts them.";
    };

    publicKey = mkOption {
      type = types.nullOr publicKey;
      default = null;
      description = "Added to `publicKeys`; for a cache with only one key.";
    };

    requireSignatures = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether Nix accepts only what a trusted key signed. If not, the proxy alone is marked as trusted
        (`?trusted=true`), and every other cache is checked as before; anyone who may write to the registry can then
        put programs on this machine. So can any local user who listens on the port while nobody else does: it is
        refused where no socket unit of the machine holds the port, and a port below 1024 is better, which only root
        can listen on.
      '';
    };

    tokenFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/nix-cache-token";
      description = ''
        File with a token that may read packages, or `user:password`, for a private cache. It must not be in the Nix
        store. On NixOS it is read when the service starts, elsewhere again whenever it changes.
      '';
    };

    uploads = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the proxy takes `nix copy --to`, and publishes what comes. `tokenFile` must then allow writing.
      '';
    };

    uploadTokensFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/upload-tokens";
      description = ''
        File of who may upload, one `name:token` per line. It is read when the service starts, and must not be in the
        Nix store.
      '';
    };

    uploadSubjects = mkOption {
      type = types.listOf (types.strMatching "[^;]+");
      default = [ ];
      example = [ "CN=builder-*" ];
      description = ''
        Subjects of client certificates that may upload, as RFC 2253 writes them. `tlsClientCA` or `uploadCertHeader`
        says who checks the certificates.
      '';
    };

    uploadCertHeader = mkOption {
      type = types.nullOr (types.strMatching "[A-Za-z][A-Za-z0-9-]*");
      default = null;
      example = "X-Client-Subject";
      description = ''
        Header in which a web server on this machine hands over the subject of a client certificate. It counts from
        every program of this machine.
      '';
    };

    oidcFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = lib.literalExpression "./upload-rules.toml";
      description = "File of rules for JSON Web Tokens that let upload, such as those of CI. It holds no secret.";
    };

    tlsCertificate = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/var/lib/acme/cache.lan/fullchain.pem";
      description = ''
        Certificate to speak HTTPS with, and those that lead to its authority. It is read when the service starts. Nix on
        this machine is not told of the proxy then: set `configureNix` to false, and name the cache as the certificate does.
      '';
    };

    tlsKey = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/var/lib/acme/cache.lan/key.pem";
      description = "Secret key of `tlsCertificate`. It must not be in the Nix store.";
    };

    tlsClientCA = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = lib.literalExpression "./builders-ca.pem";
      description = "Authorities of client certificates, which clients need not have to read.";
    };

    uploadQuiet = mkOption {
      type = types.ints.unsigned;
      default = 5;
      description = "Seconds without a new upload before a batch is published.";
    };

    uploadSpace = mkOption {
      type = types.strMatching "[0-9]+[kKMGT]?";
      default = "20G";
      description = "Most bytes of uploads that are not published yet; beyond, uploads are refused.";
    };

    signingKeyFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/my-cache-1.sec";
      description = ''
        File of the secret key that signs uploads; without one, clients must sign. It must not be in the Nix store.
      '';
    };

    logLevel = mkOption {
      type = types.enum [ "debug" "info" "warning" "error" ];
      default = "info";
      description = "What to log.";
    };

    extraSettings = mkOption {
      type = types.attrsOf (types.either types.str types.int);
      default = { };
      example = { HTTPS_PROXY = "http://proxy.example:3128"; };
      description = ''
        More environment variables for the proxy: settings without an option, or an HTTP proxy. Every user can
        read them: no passwords.
      '';
    };

    configureNix = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether Nix on this machine uses the proxy. If not, it only serves others, and `nix.settings` is left alone.
      '';
    };

    fallback = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether Nix builds what it could not download, instead of failing: a cache exists to save time, and
        its failures should cost no more than that. This applies to all caches.
      '';
    };

    narinfoCacheNegativeTtl = mkOption {
      type = types.nullOr types.ints.unsigned;
      default = 300;
      description = ''
        Seconds for which Nix remembers that a path is in none of its caches; null leaves Nix's own hour. What is
        published after such an answer stays invisible for that long. The default is that of `indexTtl`: asking
        again sooner finds nothing new, and asking the proxy costs no network. This applies to all caches.
      '';
    };
  };
}
