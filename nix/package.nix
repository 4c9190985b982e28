# The program. Name, version and dependencies are those of pyproject.toml, so that they are said once; nixpkgs calls
# each dependency as PyPI does. Needs nixpkgs of 25.11 or later, for what pyproject.toml asks of setuptools and aiohttp.
{ python3Packages, installShellFiles }:
let
  inherit (builtins.fromTOML (builtins.readFile ../pyproject.toml)) project;
  nameOf = requirement: builtins.head (builtins.match "([A-Za-z0-9-]+).*" requirement);
  top = toString ../.;
  isSource =
    path: _:
    let
      name = builtins.substring (builtins.stringLength top + 1) (-1) path;
    in
    builtins.elem name [ "LICENSE" "README.md" "pyproject.toml" "nixcache_oci" ]
    || builtins.match "nixcache_oci/.*" name != null && builtins.match ".*__pycache__.*" name == null;
in
python3Packages.buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;
  # Only what is built: a change to tests or documents does not make the program anew.
  src = builtins.path {
    name = "${project.name}-source";
    path = ../.;
    filter = isSource;
  };
  build-system = map (name: python3Packages.${name}) ([ "setuptools" ] ++ map nameOf project.optional-dependencies.completion);
  nativeBuildInputs = [ installShellFiles ];
  dependencies = map (requirement: python3Packages.${nameOf requirement}) project.dependencies;
  # Made by the program, which is not wrapped yet.
  postInstall = ''
    own() { PYTHONPATH="$out/${python3Packages.python.sitePackages}:$PYTHONPATH" python -m nixcache_oci "$@"; }
    own man > nixcache-oci.1
    installManPage nixcache-oci.1
    installShellCompletion --cmd nixcache-oci \
      --bash <(own completion bash) --zsh <(own completion zsh) --fish <(own completion fish)
  '';
  # The tests are a check of the flake: they take longer than the build, and start real servers.
  doCheck = false;
  pythonImportsCheck = [ "nixcache_oci.cli.proxy" "nixcache_oci.cli.publish" ];
  meta = {
    inherit (project) description;
    mainProgram = project.name;
  };
}
