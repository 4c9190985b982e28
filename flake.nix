{
  description = "Turns any GitHub repository into a Nix binary cache, stored in an OCI registry";

  # The package, the app, the modules and the checks are not part of this release; a checkout runs by `make setup`.
  outputs = _: { };
}
