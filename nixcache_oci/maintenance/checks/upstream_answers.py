"""Checks that the upstream caches answer."""

import asyncio
import shlex
from collections.abc import Sequence
from typing import Final

from nixcache_oci.clients.upstream.address import Upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import UpstreamError
from nixcache_oci.maintenance.checks.finding import Finding, good, warning
from nixcache_oci.nix.store_path import HashPart

UPSTREAM: Final = "upstream"

_SECONDS: Final = 15  # in addition to the limits of every look-up
_NOBODYS_HASH_PART: Final = HashPart("0" * 32)


async def check_upstreams(upstreams: Sequence[Upstream]) -> list[Finding]:
    """Ask each for a path that does not exist, as the proxy would: a miss is an answer."""
    if not upstreams:
        return [good(UPSTREAM, "none is set")]
    return list(await asyncio.gather(*map(_check, upstreams)))


async def _check(upstream: Upstream) -> Finding:
    asked = Upstreams([upstream])
    try:
        async with asyncio.timeout(_SECONDS):
            await asked.find(_NOBODYS_HASH_PART)
    except UpstreamError as error:
        reason = str(error).removeprefix(f"upstream {upstream}: ")
    except TimeoutError:
        reason = f"no answer within {_SECONDS} s"
    else:
        return good(UPSTREAM, f"{upstream} answers")
    finally:
        await asked.close()
    remedy = (
        f"see what it says: curl {shlex.quote(str(upstream.at('nix-cache-info')))}; while it is down, Nix "
        "builds what only it has. If it is gone for good, remove it from NIXCACHE_UPSTREAM or its file"
    )
    return warning(UPSTREAM, f"{upstream} does not answer: {reason}", remedy)
