# An option that takes whatever is said.
{ lib }:
lib.mkOption {
  type = lib.types.anything;
  default = { };
}
