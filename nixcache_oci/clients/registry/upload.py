"""Uploads of blobs: a session is opened, and one PUT sends everything and commits it.

A session that failed is not mended but left: GHCR may then say that the session is unknown, with the blob
there or without it. So a look at the blob comes first, and then a new session.

Source: OCI distribution specification, "Pushing a blob monolithically", POST then PUT.
"""

from http import HTTPStatus
from time import monotonic

from yarl import URL

from nixcache_oci.clients.registry.body import Body
from nixcache_oci.clients.registry.download import PRESENT
from nixcache_oci.clients.registry.redirect import join
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.clients.registry.trouble import TroubleError
from nixcache_oci.oci.digest import Digest

_OPENED = frozenset({HTTPStatus.ACCEPTED})
_COMMITTED = frozenset({HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})


async def push_blob(transport: Transport, base: str, digest: Digest, body: Body) -> None:
    """Store a blob.

    Args:
        transport: to the registry.
        base: URL of the repository, ``https://ghcr.io/v2/owner/name/nix-cache``.
        digest: of the bytes.
        body: the bytes, read anew for every try.

    Raises:
        RegistryError: the registry did not take it.
    """
    operation = f"push blob {digest}"
    opening = Call(operation, "POST", URL(f"{base}/blobs/uploads/", encoded=True), accepts=_OPENED)
    looking = Call(
        operation, "HEAD", URL(f"{base}/blobs/{digest}", encoded=True), follows=False, accepts=PRESENT
    )
    tries = transport.tries()
    while True:
        opened = await transport.fetch(opening)
        committing = opening
        started = monotonic()
        try:
            committing = _commit(opening, opened.headers.get("Location", ""), digest, body)
            await transport.fetch_once(committing)
        except TroubleError as trouble:
            end = await tries.wait(trouble, transmission=monotonic() - started)
            if (end is None or end.is_temporary) and await _is_there(transport, looking):
                return
            if end is not None:
                raise transport.explain(committing, trouble, end) from None  # the reason is in its text
        else:
            return


def _commit(opening: Call, location: str, digest: Digest, body: Body) -> Call:
    """Make the PUT for a session; what its Location says is kept byte for byte."""
    url = join(opening.url, location).with_fragment(None)
    separator = "&" if url.raw_query_string else "?"
    return Call(
        opening.operation,
        "PUT",
        URL(f"{url}{separator}digest=sha256%3A{digest.hex}", encoded=True),
        headers={"Content-Type": "application/octet-stream"},
        body=body,
        accepts=_COMMITTED,
        is_expected=True,  # a session that was opened exists: 404 means that it was lost
    )


async def _is_there(transport: Transport, looking: Call) -> bool:
    try:
        await transport.fetch_once(looking)
    except TroubleError:
        return False  # the next session, or the error of the last, will tell
    return True
