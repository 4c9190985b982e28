"""Passwords that stand for a JSON Web Token while a job runs: Nix sends Basic only, and tokens expire soon.

They are kept in memory only: when the proxy starts anew, jobs log in again.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nixcache_oci.clients.bounded_cache import BoundedCache

JOB_SECONDS: Final = 6 * 3600.0
"""How long a job may run after its token has expired, as at GitHub; a token counts for no longer itself."""

MOST_SESSIONS: Final = 10_000
"""Beyond, the oldest ends."""

SESSION_PREFIX: Final = "session-"


@dataclass(frozen=True, slots=True)
class Session:
    """One login."""

    writer: str
    expires_at: float  # seconds since 1970


class Sessions:
    """All of them; ``clock`` gives the seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # By hash: a look-up takes as long for a password that is nearly right.
        self._sessions: BoundedCache[bytes, Session] = BoundedCache(MOST_SESSIONS)

    def begin(self, writer: str, token_expires_at: float) -> tuple[str, Session]:
        """Make a password for who showed a token, which expires at a time."""
        session = Session(writer, min(token_expires_at, self._clock() + JOB_SECONDS) + JOB_SECONDS)
        password = f"{SESSION_PREFIX}{secrets.token_urlsafe(32)}"
        self._sessions.put(_hash(password.encode()), session)
        return password, session

    def find(self, password: bytes) -> Session | None:
        """Find the session of a password, unless it has ended."""
        key = _hash(password)
        session = self._sessions.get(key)
        if session is not None and session.expires_at <= self._clock():
            self._sessions.forget(key)
            return None
        return session


def _hash(password: bytes) -> bytes:
    return hashlib.sha256(password).digest()
