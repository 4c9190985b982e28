"""A verified stream: no wrong byte reaches a client as a whole answer.

The bytes are hashed while they pass, and the last piece is held back until the hash agrees. Source: design
section 3, promise 3.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from nixcache_oci.errors import DigestError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.quarantine import Quarantine

# Below this, handing a piece to a thread costs more than hashing it.
_WORTH_A_THREAD_BYTES: Final = 64 * 1024


async def verified(
    chunks: AsyncIterator[bytes], digest: Digest, quarantine: Quarantine
) -> AsyncGenerator[bytes, None]:
    """Pass pieces on, the last one only once all of them hash to the digest; holds at most two of them.

    Raises:
        DigestError: they do not; at least one byte was not passed on, and the blob is in quarantine.
    """
    hasher = hashlib.sha256()
    loop = asyncio.get_running_loop()
    held = b""
    async for chunk in chunks:
        if not chunk:
            continue
        if len(chunk) < _WORTH_A_THREAD_BYTES:
            hasher.update(chunk)
            if held:
                yield held
        else:
            # Hash this piece while the one before it is on its way to the client.
            hashing = loop.run_in_executor(None, hasher.update, chunk)
            try:
                if held:
                    yield held
            finally:
                await hashing
        held = chunk
    actual = Digest(hasher.hexdigest())
    if actual != digest:
        quarantine.add(digest)
        raise DigestError(f"{digest}: the bytes received have digest {actual}")
    if held:
        yield held
