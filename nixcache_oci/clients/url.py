"""Reading a stranger's URL."""

from yarl import URL


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """Read a URL.

    Args:
        text: whatever somebody sent or set.
        encoded: whether to keep it as it is, byte for byte.

    Raises:
        ValueError: it is none.
    """
    try:
        return URL(text, encoded=encoded)
    except IndexError:  # yarl 1.25 looks for the first letter of an empty host: http://[::1]@/
        raise ValueError("no host behind user and password") from None
