"""``python -m nixcache_oci``."""

import sys

from nixcache_oci.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
