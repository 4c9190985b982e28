# Not part of this release: importing it says so, rather than configuring nothing.
_: throw "nixcache-oci: the NixOS module is not part of this release; see README.md for how to run the proxy"
