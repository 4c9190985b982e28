"""What is fuzzed: each parser, and the rule that holds for whatever it is given.

Either it gives a value that survives being written and read again, or it raises the package's own error. A
check takes bytes, raises AssertionError where the rule is broken, and tells whether the input was accepted: a
fuzzer whose inputs are all refused at the first byte finds nothing.
"""

import argparse
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.nar_url import NarUrl, hashed_slice_of
from nixcache_oci.cache.record import Field, parse_record, record_fields
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.table import parse_head, parse_header, parse_table, render_table
from nixcache_oci.cache.table_search import (
    HashPartBytes,
    find_hash_part,
    row_key,
    scan,
    stanza_around,
)
from nixcache_oci.cache.timestamp import format_tag_time, format_time, parse_tag_time, parse_time
from nixcache_oci.cache.version1 import parse_version1
from nixcache_oci.clients.auth_file import Helper, search_auth_file
from nixcache_oci.clients.github.packages import parse_versions
from nixcache_oci.clients.http.errors import Failure, HttpError, parse_error
from nixcache_oci.clients.http.one_origin import join
from nixcache_oci.clients.http.ranges import read_extent
from nixcache_oci.clients.http.reply import BufferedReply
from nixcache_oci.clients.http.retry import find_asked_wait
from nixcache_oci.clients.http.url import find_next
from nixcache_oci.clients.registry.tags import parse_tags
from nixcache_oci.clients.upstream.address import NarMode, UrlSigner, nar_url, parse_upstream, rewrite
from nixcache_oci.clients.upstream.nar_stream import read_head
from nixcache_oci.errors import Error, FormatError, RegistryError, UpstreamError, UsageError
from nixcache_oci.nix import base32
from nixcache_oci.nix.content_address import ContentAddress, is_content_addressed
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import EntryName, Event, Symlink, encode
from nixcache_oci.nix.nar_reader import parse as parse_nar
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.nix_conf import Substituter, complete_conf, parse_conf
from nixcache_oci.nix.signature import PublicKey, SecretKey, Signature, fingerprint
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.oci import media_type
from nixcache_oci.oci.challenge import parse_challenges
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.document import parse_document
from nixcache_oci.oci.manifest import MAX_MANIFEST_BYTES, ImageIndex, Manifest, parse_media_type
from nixcache_oci.oci.reference import RegistryReference, parse_tag_or_digest
from nixcache_oci.proxy.front.request_head import HeadReader, Shape
from nixcache_oci.proxy.guard import is_allowed_host
from nixcache_oci.proxy.regression import Seen
from nixcache_oci.proxy.relay import UnsatisfiableRangeError, parse_range
from nixcache_oci.queue.spool import parse_event, render_events
from nixcache_oci.settings.values import Values
from nixcache_oci.settings.variables import ALL_VARIABLES

Check = Callable[[bytes], bool]
Value = TypeVar("Value")

_UPSTREAM: Final = parse_upstream("https://cache.example.org/base/")
_SIGNER: Final = UrlSigner(bytes(32))
_NOW: Final = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)
_LONGEST_ERROR: Final = 2000  # characters
_SIZE: Final = 1000  # bytes of what a Range asks for


@dataclass(frozen=True, slots=True)
class Target:
    """One parser.

    Attributes:
        name: of its folder in the corpus.
        check: holds the rule.
        errors: what it may raise, FormatError where nothing else is said.
    """

    name: str
    check: Check
    errors: tuple[type[Exception], ...] = (FormatError,)

    def holds(self, data: bytes) -> bool:
        """Tell whether the input was accepted; anything but the target's own errors comes through."""
        try:
            return self.check(data)
        except self.errors as error:
            said = str(error)
        assert "\n" not in said, f"an error of several lines: {said}"
        assert len(said) < _LONGEST_ERROR, f"an error that is endless: {said[:200]}"
        return False


def _text(data: bytes) -> str:
    """Read bytes as the HTTP library and the environment give them: what is not UTF-8 becomes surrogates."""
    return data.decode("utf-8", "surrogateescape")


def _words(parse: Callable[[str], object]) -> Check:
    """Make a check of a parser whose value is written by ``str()``, in one form that is read again."""

    def check(data: bytes) -> bool:
        value = parse(_text(data))
        assert parse(str(value)) == value
        return True

    return check


def _canonical(parse: Callable[[str], object]) -> Check:
    """Make a check of a parser of which each value has one spelling only."""

    def check(data: bytes) -> bool:
        assert str(parse(_text(data))) == _text(data)
        return True

    return check


def _documents(parse: Callable[[bytes], Value], render: Callable[[Value], bytes]) -> Check:
    """Make a check of a document that a rewrite carries over."""

    def check(data: bytes) -> bool:
        written = render(parse(data))
        assert render(parse(written)) == written
        return True

    return check


def _check_narinfo(data: bytes) -> bool:
    narinfo = NarInfo.parse(data)
    written = narinfo.render().encode()
    assert NarInfo.parse(written) == narinfo
    assert b"\n\n" not in written
    assert b"\r" not in written
    assert written.count(b"\nStorePath: ") == 0
    fingerprint(narinfo).encode()
    is_content_addressed(narinfo)
    hashed_slice_of(written)
    for mode in NarMode:
        rewritten = rewrite(narinfo, _UPSTREAM, mode, _SIGNER)
        assert NarInfo.parse(rewritten.render().encode()) == rewritten
    return True


def _check_base32(data: bytes) -> bool:
    text = _text(data)
    assert base32.encode(base32.decode(text)) == text
    return True


def _check_secret_key(data: bytes) -> bool:
    text = _text(data)
    key: SecretKey | None = None
    said = ""
    try:
        key = SecretKey.parse(text)
    except FormatError as error:
        said = str(error)
    name = text.strip().partition(":")[0] if "public half" in said else ""
    for word in re.findall(r"[0-9A-Za-z+/]{16,}", text.replace(name, "")):
        assert word not in said, "an error that tells the secret"
    if key is None:
        return False
    assert SecretKey.parse(key.render()) == key
    assert key.render().partition(":")[2] not in repr(key)
    return True


def _check_nar(data: bytes) -> bool:
    events: list[Event] = []
    for event in parse_nar(data[start : start + 7] for start in range(0, len(data), 7)):
        events.append(event)
        match event:
            case EntryName(name):
                assert name not in {b"", b".", b".."}
                assert not {ord("/"), 0} & set(name)
            case Symlink(target):
                assert target
                assert 0 not in target
    assert b"".join(encode(events)) == data
    assert list(parse_nar([data]))[:1] == events[:1]
    return True


def _check_table(data: bytes) -> bool:
    """Whoever reads a part of a table must see what a strict reader of the whole sees."""
    parts: list[object] = []
    for parse in (parse_head, parse_header, scan):
        try:
            parts.append(parse(data))
        except FormatError:
            parts.append(None)
    table = parse_table(data)
    assert None not in parts, "a table that is right as a whole, and not in its parts"
    written = render_table(table)
    assert parse_table(written) == table
    assert render_table(parse_table(written)) == written
    found = scan(data)
    assert len(found.keys) == len(table.narinfos)
    for narinfo in table.narinfos:
        hash_part = HashPartBytes(narinfo.store_path.hash_part.encode())
        row = find_hash_part(data, found.keys, found.positions, hash_part, row_key(hash_part))
        assert row is not None
        assert NarInfo.parse(stanza_around(data, found.positions[row])) == narinfo
    return True


def _check_scan(data: bytes) -> bool:
    """A hostile table is served from without being read as a whole: each stanza stands for itself."""
    found = scan(data)
    for position in found.positions:
        stanza = stanza_around(data, position)
        assert b"\n\n" not in stanza
        assert stanza in data
    return bool(found.positions)


def _check_queue_event(data: bytes) -> bool:
    event = parse_event("1-2-0", data)
    again = b"".join(render_events(event.paths))
    assert parse_event("1-2-0", again).paths == event.paths
    return bool(event.paths or event.derivations)


def _check_record(data: bytes) -> bool:
    fields: list[Field] = []
    for line in _text(data).split("\n"):
        key, _, value = line.partition(": ")
        fields.append((key, value))
    record = parse_record(tuple(fields))
    assert parse_record(record_fields(record)) == record
    return True


def _check_nar_url(data: bytes) -> bool:
    text = _text(data)
    url = NarUrl.parse(text)
    assert str(url) == text
    if url.offset is not None and url.length is not None:
        assert 0 <= url.offset < url.offset + url.length <= 16 * 2**20
    found = hashed_slice_of(f"\nURL: {text}\nCompression: x\nFileHash: x\n".encode())
    assert (found is None) == (url.offset is None)
    return True


def _check_segment_tag(data: bytes) -> bool:
    tag = SegmentTag.parse(_text(data))
    assert tag is None or (str(tag), tag.listed) == (_text(data).lower(), _text(data))
    return tag is not None


def _check_time(data: bytes) -> bool:
    text = _text(data)
    if "-" in text:
        assert format_time(parse_time(text)) == text
    else:
        assert format_tag_time(parse_tag_time(text)) == text.lower()
    return True


def _check_descriptor(data: bytes) -> bool:
    descriptor = Descriptor.from_json(parse_document(data, "descriptor", MAX_MANIFEST_BYTES))
    assert Descriptor.from_json(descriptor.to_json()) == descriptor
    Segment.from_descriptor(descriptor)
    return True


def _check_manifest(data: bytes) -> bool:
    for stated in ("", media_type.IMAGE_INDEX, media_type.IMAGE_MANIFEST):
        with suppress(FormatError):
            parse_media_type(data, stated)
    manifest = Manifest.parse(data)
    written = manifest.render()
    assert Manifest.parse(written) == manifest
    try:
        ImageIndex.parse(data)
    except FormatError:
        return True
    raise AssertionError("both a manifest and an image index")


def _check_version1(data: bytes) -> bool:
    version1 = parse_version1(data)
    table = version1.to_table()
    text = render_table(table)
    assert b"".join(version1.text()) == text
    assert render_table(parse_table(text)) == text
    for narinfo in table.narinfos:
        NarUrl.parse(narinfo.url)
    return bool(table.narinfos)


def _check_listing(data: bytes) -> bool:
    listing = Listing.from_json(data)
    assert Listing.from_json(listing.to_json().encode()) == listing
    return True


def _check_seen(data: bytes) -> bool:
    seen = Seen.from_json(data)
    assert Seen.from_json(seen.to_json().encode()).to_json() == seen.to_json()
    seen.after_look((), (), _NOW)
    return True


def _check_challenge(data: bytes) -> bool:
    challenges = parse_challenges(_text(data).split("\n"))
    for challenge in challenges:
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)
    return bool(challenges)


def _check_reference(data: bytes) -> bool:
    reference = RegistryReference.of(_text(data), "owner/name", "image")
    assert RegistryReference.of(reference.base_url, "owner/name", "image") == reference
    url = URL(reference.base_url)
    assert url.user is None
    assert url.host
    assert url.path == "/"
    return True


def _check_repository(data: bytes) -> bool:
    reference = RegistryReference("ghcr.io", plain_http=False, repository=_text(data))
    url = URL(f"{reference.base_url}/v2/{reference.repository}/tags/list")
    assert url.raw_path == f"/v2/{_text(data)}/tags/list"
    return True


def _check_nix_conf(data: bytes) -> bool:
    text = _text(data)
    wanted = Substituter("http://127.0.0.1:37515", (f"test-1:{'A' * 43}=",))
    parse_conf(text)
    completed = complete_conf(text, wanted)
    assert completed.startswith(text)
    assert complete_conf(completed, wanted) == completed
    return True


def _check_byte_range(data: bytes) -> bool:
    accepted = False
    for size in (0, 1, _SIZE, 10**30):
        try:
            part = parse_range(_text(data), size)
        except UnsatisfiableRangeError:
            continue
        accepted |= part is not None
        if part is not None:
            assert 0 <= part.start < part.end <= size
            assert re.fullmatch(r"bytes [0-9]+-[0-9]+/[0-9]+", part.content_range)
    return accepted


def _check_settings(data: bytes) -> bool:
    """Whatever a variable holds, the start is stopped by one line or not at all."""
    accepted = False
    for variable in ALL_VARIABLES:
        values = Values({variable.name: _text(data)}, argparse.Namespace())
        said = ""
        try:
            values.get(variable)
            accepted |= variable.name not in {"NIXCACHE_TOKEN_FILE", "GITHUB_TOKEN", "GH_TOKEN"}
        except UsageError as error:
            said = str(error)
        assert "\n" not in said, f"{variable.name}: {said}"
    return accepted


def _check_host(data: bytes) -> bool:
    host = _text(data)
    if not is_allowed_host(host, frozenset({"builder.lan"})):
        return False
    name = URL(f"http://{host.rstrip(':')}/").host or ""
    assert name.rstrip(".").endswith(("localhost", "builder.lan")) or re.fullmatch(r"[0-9a-f.:]+", name)
    return True


def _check_head(data: bytes) -> bool:
    """What is taken for well-formed is so in the eyes of the simplest reader, and ends where it seems to."""
    end = data.find(b"\r\n\r\n") + 4
    if end < len(b"\r\n\r\n"):
        return False
    reader = HeadReader(lambda host: host == "localhost")
    shape, hash_part = reader.shape(data, 0, end), reader.wanted_narinfo(data, 0, end)
    below = reader.wanted_below_prefix(data, 0, end)
    assert (hash_part is None and below is None) or shape is Shape.PLAIN
    if shape is Shape.OTHER:
        return False
    lines = data[:end].decode("ascii").split("\r\n")
    assert not any(ord(letter) < ord(" ") for line in lines for letter in line.replace("\t", ""))
    assert re.fullmatch(r"(GET|HEAD) /\S* HTTP/1\.1", lines[0])
    fields = [line.partition(":") for line in lines[1:-2]]
    assert all(name and separator and name == name.strip() for name, separator, _ in fields)
    names = [name.lower() for name, _, _ in fields]
    assert not {"content-length", "transfer-encoding", "upgrade", "expect"} & set(names)
    if shape is Shape.PLAIN:
        assert names.count("host") == 1
        assert [value.strip() for name, _, value in fields if name.lower() == "host"] == ["localhost"]
    if hash_part is not None:
        assert lines[0].split(" ", 1)[1] == f"/{HashPart(hash_part.decode())}.narinfo HTTP/1.1"
    if below is not None:
        prefix, wanted = below
        path = wanted if isinstance(wanted, NarUrl) else f"{HashPart(wanted.decode())}.narinfo"
        assert lines[0].split(" ", 1)[1] == f"/{prefix.decode()}/{path} HTTP/1.1"
    return True


def _check_tags(data: bytes) -> bool:
    for tag in parse_tags(data):
        parsed = SegmentTag.parse(tag)
        assert parsed is None or str(parsed) == tag.lower()
    return True


def _check_link(data: bytes) -> bool:
    target = find_next(_text(data).split("\n"))
    if target is None:
        return False
    assert join(URL("https://ghcr.io/v2/o/n/tags/list"), target).scheme in {"http", "https"}
    return True


def _check_registry_error(data: bytes) -> bool:
    code, message = parse_error(data)
    assert code.isascii()
    assert message.isprintable()
    wait = find_asked_wait(Failure(429, {"retry-after": _text(data)}, data), _NOW)
    assert wait is None or wait >= 0
    headers = CIMultiDictProxy(CIMultiDict({"Location": _text(data), "Retry-After": _text(data)}))
    assert "\n" not in BufferedReply(307, headers, data).error().reason
    return bool(code or message or wait is not None)


def _check_extent(data: bytes) -> bool:
    headers = CIMultiDict({"Content-Range": _text(data), "Content-Length": _text(data)})
    accepted = False
    for status, start, end in ((200, 0, None), (206, 10, 20), (206, 0, 10)):
        try:
            extent = read_extent(status, headers, start, end)
        except FormatError:
            pass
        else:
            assert extent.skip >= 0
            assert start == extent.start <= extent.end <= extent.size
            accepted = True
        try:
            head = read_head(_UPSTREAM, status, headers, start, end)
        except UpstreamError:
            continue
        assert head.end is None or 0 <= head.start <= head.end
        accepted = True
    return accepted


def _check_versions(data: bytes) -> bool:
    return all(version.number > 0 for version in parse_versions(data))


def _check_docker_config(data: bytes) -> bool:
    found = search_auth_file(_text(data), "config.json", "ghcr.io", "octocat/hello/nix-cache")
    assert all(isinstance(one, Helper) or one.password not in repr(one) for one in found)
    return bool(found)


def _check_upstream(data: bytes) -> bool:
    upstream = parse_upstream(_text(data))
    assert parse_upstream(str(upstream)).base == upstream.base
    assert upstream.base.user is None
    assert upstream.base.scheme in {"http", "https"}
    return True


def _check_upstream_path(data: bytes) -> bool:
    path, _, query = _text(data).partition("?")
    url = nar_url(_UPSTREAM, path, query)
    assert str(url).startswith(str(_UPSTREAM.base))
    assert not {"..", "."} & {segment.partition(";")[0] for segment in url.path.split("/")}
    return True


TARGETS: Final = (
    Target("narinfo", _check_narinfo),
    Target("store-path", _canonical(StorePath.parse)),
    Target("hash-part", _canonical(HashPart.parse)),
    Target("base32", _check_base32),
    Target("nix-hash", _words(NixHash.parse)),
    Target("content-address", _words(ContentAddress.parse)),
    Target("signature", _words(Signature.parse)),
    Target("public-key", _words(PublicKey.parse)),
    Target("secret-key", _check_secret_key),
    Target("nar", _check_nar),
    Target("table", _check_table),
    Target("table-scan", _check_scan),
    Target("record", _check_record),
    Target("queue-event", _check_queue_event),
    Target("nar-url", _check_nar_url),
    Target("segment-tag", _check_segment_tag),
    Target("timestamp", _check_time),
    Target("cache-index", _documents(CacheIndex.parse, CacheIndex.render)),
    Target("image-index", _documents(ImageIndex.parse, ImageIndex.render)),
    Target("manifest", _check_manifest),
    Target("segment-manifest", lambda data: bool(Segment.from_manifest(data))),
    Target("descriptor", _check_descriptor),
    Target("version1", _check_version1),
    Target("saved-listing", _check_listing),
    Target("regression", _check_seen),
    Target("digest", _canonical(Digest.parse)),
    Target("tag-or-digest", _canonical(parse_tag_or_digest)),
    Target("reference", _check_reference),
    Target("repository", _check_repository),
    Target(
        "challenge", _check_challenge, ()
    ),  # the header comes from a stranger: any text gives some, or none
    Target("tags", _check_tags),
    Target("link", _check_link, (FormatError, HttpError)),
    Target("registry-error", _check_registry_error),
    Target("content-range", _check_extent, (FormatError, RegistryError, HttpError)),
    Target("package-versions", _check_versions),
    Target("docker-config", _check_docker_config, (UsageError,)),
    Target("upstream", _check_upstream, (UsageError,)),
    Target("upstream-path", _check_upstream_path),
    Target("nix-conf", _check_nix_conf),
    Target("settings", _check_settings, (Error,)),
    Target("host", _check_host),
    Target("byte-range", _check_byte_range),
    Target("request-head", _check_head),
)
