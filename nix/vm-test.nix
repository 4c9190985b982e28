# Two machines: a registry that somebody publishes to, and a NixOS with the module. Signatures are on.
{ pkgs }:
let
  package = pkgs.callPackage ./package.nix { };
  # A throw-away pair: the client has to know the public half before anything runs.
  publicKey = "vm-test-1:K8lvDOTanKkX5P5qVMDMFOVT0nyX9/mY6Tqb41ZL8b0=";
  secretKey = pkgs.writeText "vm-test-1.sec" "vm-test-1:92RUKewqjCvM401AiqAwVu76XyJmvJxBDNhFPeIJ3WIryW8M5NqcqRfk/mpUwMwU5VPSfJf3+ZjpOpvjVkvxvQ==";
  expression = pkgs.writeText "object.nix" ''
    { name }:
    derivation {
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-c" "echo $name > $out" ];
    }
  '';
  # The public caches cannot be reached from here, and finding that out should not take long.
  impatience.nix.settings.connect-timeout = 1;
in
{
  name = "nixcache-oci";

  nodes = {
    registry = {
      imports = [ impatience ];
      environment.systemPackages = [ package ];
      services.dockerRegistry = {
        enable = true;
        listenAddress = "0.0.0.0";
        port = 5000;
        openFirewall = true;
      };
    };

    client = {
      imports = [
        ../nixos-module.nix
        impatience
      ];
      services.nixcache-proxy = {
        enable = true;
        inherit package publicKey;
        registry = "http://registry:5000";
        repo = "octocat/my-cache";
        upstreams = [ ];
      };
    };
  };

  testScript = ''
    PROXY = "http://127.0.0.1:37515"
    TO_REGISTRY = "NIXCACHE_REGISTRY=http://localhost:5000 NIXCACHE_REPO=octocat/my-cache"
    SIGNED = "NIXCACHE_SIGNING_KEY_FILE=${secretKey}"


    def build(name: str) -> str:
        return registry.succeed(f"nix-build --no-out-link --argstr name {name} ${expression}").strip()


    def publish(name: str, environment: str, flags: str = "") -> str:
        path = build(name)
        registry.succeed(f"{TO_REGISTRY} {environment} nixcache-oci push {path} {flags}")
        return path


    def narinfo(path: str) -> str:
        return f"curl --fail --silent {PROXY}/{path.removeprefix('/nix/store/')[:32]}.narinfo"


    start_all()
    registry.wait_for_unit("docker-registry.service")
    registry.wait_for_open_port(5000)
    client.wait_for_unit("nixcache-proxy.service")
    client.succeed("systemd-analyze security --threshold=20 nixcache-proxy.service")

    with subtest("Nix takes what the key signed, and nothing else"):
        first = publish("first", SIGNED)
        unsigned = publish("unsigned", "", "--allow-unsigned")
        client.succeed(f"curl --fail --silent -X POST {PROXY}/_refresh")
        client.succeed(f"nix-store --realise {first}")
        assert client.succeed(f"cat {first}") == "first\n"
        client.fail(f"nix-store --realise {unsigned}")

    with subtest("without its registry the proxy goes on, also after a restart, and Nix gets an answer"):
        second = publish("second", SIGNED)
        client.succeed(f"curl --fail --silent -X POST {PROXY}/_refresh")
        registry.systemctl("stop docker-registry.service")
        client.succeed(narinfo(second))
        client.succeed("systemctl restart nixcache-proxy.service")
        client.succeed(narinfo(second))
        client.fail(f"timeout 60 nix-store --realise {second}")

    with subtest("with its registry back, it serves everything again"):
        registry.systemctl("start docker-registry.service")
        registry.wait_for_open_port(5000)
        client.wait_until_succeeds(f"nix-store --realise {second}")
  '';
}
