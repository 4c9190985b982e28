"""The storage origin behind GHCR's redirects: signed URLs, and never anybody's credentials."""

import re

from tests.support.ghcr_access import SignedUrls
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_store import GhcrStore
from tests.support.ghcr_wire import Answer, FilePart

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Storage:
    """Answers requests for blobs under signed URLs."""

    def __init__(self, manners: Manners, store: GhcrStore, urls: SignedUrls) -> None:
        self._manners = manners
        self._store = store
        self._urls = urls

    def answer(self, method: str, raw_path: str, range_header: str | None) -> Answer:
        if method != "GET":
            return _refusal(403, "AuthenticationFailed", "the signature does not allow this method")
        digest, reason = self._urls.check(raw_path)
        if digest is None:
            return _refusal(403, "AuthenticationFailed", reason)
        path = self._store.blob_path(digest)
        if not path.exists():
            return _refusal(404, "BlobNotFound", "the specified blob does not exist")
        headers = {"Content-Type": "application/octet-stream"}
        if self._manners.accept_ranges:
            headers["Accept-Ranges"] = "bytes"
        return self._cut(FilePart(path, 0, path.stat().st_size), headers, range_header)

    def _cut(self, whole: FilePart, headers: dict[str, str], range_header: str | None) -> Answer:
        match = _RANGE.fullmatch(range_header or "")
        if match is None or (not match[2] and self._manners.open_ranges == "ignore"):
            return Answer(200, headers, whole)
        size, start = whole.end, int(match[1])
        end = min(int(match[2]) + 1, size) if match[2] else size
        if start >= end or (not match[2] and self._manners.open_ranges == "refuse"):
            return Answer(416, {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return Answer(206, headers, FilePart(whole.path, start, end))


def _refusal(status: int, code: str, message: str) -> Answer:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml", "x-ms-error-code": code}, text.encode())
