"""Names what the tests of the modules share."""

from tests.support.nix_modules import modules

__all__ = ["modules"]
