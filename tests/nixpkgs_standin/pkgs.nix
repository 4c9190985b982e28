{ lib, system }:
let
  # given: what it is made of; all of it is evaluated with the derivation, so that a name which is not there is found.
  derivationOf =
    name: given:
    derivation {
      inherit name system;
      builder = "/bin/sh";
      args = [ "-c" "exit 1" ];
      given = builtins.toJSON given;
    };

  # Whatever nixpkgs has, by name; what is asked for and not listed is an error, as a misspelt name would be.
  programs = lib.genAttrs [ "bubblewrap" "gnumake" "installShellFiles" "jq" "nginx" "nix" "skopeo" "systemd" ] (name: derivationOf name { });

  python3Packages =
    lib.genAttrs [
      "aiohttp"
      "argparse-manpage"
      "brotli"
      "cryptography"
      "hypothesis"
      "jinja2"
      "oras"
      "platformdirs"
      "prometheus-client"
      "psutil"
      "pycurl"
      "pyjwt"
      "pynacl"
      "pytest"
      "pytest-asyncio"
      "pytest-timeout"
      "rich"
      "ruamel-yaml"
      "setuptools"
      "shtab"
      "uvloop"
      "yarl"
      "zstandard"
    ] (name: derivationOf "python3-${name}" { })
    // {
      buildPythonApplication =
        {
          pname,
          version,
          pyproject,
          src,
          build-system,
          nativeBuildInputs,
          dependencies,
          postInstall,
          doCheck,
          pythonImportsCheck,
          meta,
        }:
        assert pyproject;
        derivationOf "${pname}-${version}" [ build-system nativeBuildInputs dependencies postInstall ]
        // {
          inputs = map (input: input.name) dependencies;
          tools = map (input: input.name) (build-system ++ nativeBuildInputs);
          inherit meta src pythonImportsCheck doCheck;
        };
      python = (derivationOf "python3" { }) // {
        sitePackages = "lib/python3.13/site-packages";
      };
      toPythonModule = package: package;
    };

  nixos =
    module:
    let
      evaluated = lib.evalModules {
        modules = [ ./options/nixos.nix module ];
        specialArgs = { inherit pkgs; };
      };
      failed = builtins.filter (one: !one.assertion) evaluated.config.assertions;
    in
    if failed != [ ] then
      throw "Failed assertions: ${toString (map (one: one.message) failed)}"
    else
      evaluated
      // {
        config = evaluated.config // {
          systemd = evaluated.config.systemd // {
            units = {
              "nixcache-proxy.service".text = builtins.toJSON evaluated.config.systemd.services;
              "nixcache-proxy.socket".text = builtins.toJSON evaluated.config.systemd.sockets;
            };
          };
        };
      };

  pkgs = programs // {
    inherit lib python3Packages nixos;
    callPackage =
      made: given:
      let
        make = if builtins.isFunction made then made else import made;
      in
      make (builtins.intersectAttrs (builtins.functionArgs make) pkgs // given);
    python3.withPackages = choose: derivationOf "python3-env" (choose python3Packages);
    mkShell = { packages }: derivationOf "nix-shell" packages;
    stdenv = {
      hostPlatform = {
        inherit system;
        isLinux = builtins.match ".*-linux" system != null;
        isDarwin = builtins.match ".*-darwin" system != null;
      };
      mkDerivation = arguments: derivationOf arguments.name arguments;
    };
    writeText = derivationOf;
    # A real file, so that a test can read it; what it names need not be built for that.
    writeShellScript = name: text: builtins.toFile name (builtins.unsafeDiscardStringContext text);
    writeShellScriptBin = derivationOf;
    # With its script, which a test can run.
    runCommand =
      name: environment: script:
      derivationOf name [ environment script ] // { inherit script; };
    testers.runNixOSTest =
      test:
      derivationOf "vm-test-run-${test.name}" (
        # Every machine is evaluated, for its assertions.
        lib.mapAttrsToList (_: machine: (nixos machine).config.systemd.units) test.nodes ++ [ test.testScript ]
      )
      // {
        inherit (test) testScript;
      };
  };
in
pkgs
