"""The program's entry: ``nixcache-oci``, or ``python -m nixcache_oci``."""

import signal
import sys


def main() -> int:
    """Run one command; Ctrl-C ends it without a traceback even while modules are loaded, and at its end."""
    # Python's own handler raises wherever it is. One that is set to ignore, as nohup does, stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nixcache_oci.cli.main import main as run  # noqa: PLC0415 -- takes a second on a slow machine

    return run()


if __name__ == "__main__":
    sys.exit(main())
