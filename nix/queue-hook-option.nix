# The option of machines, whose owner may set a hook for everybody's builds.
{ lib, ... }:
{
  options.services.nixcache-queue.hook = lib.mkOption {
    type = lib.types.bool;
    default = true;
    description = ''
      Whether Nix's `post-build-hook` queues what is built on this machine, for whoever. It takes some 4 ms a build, and
      never fails one. Nix runs only one hook: another that is set is refused, rather than replaced.
    '';
  };
}
