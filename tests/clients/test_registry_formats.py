"""The pure parts of the registry client: what strangers' headers and documents are taken for."""

from contextlib import nullcontext, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.http.errors import Failure, HttpError, parse_error
from nixcache_oci.clients.http.one_origin import is_redirect, join
from nixcache_oci.clients.http.ranges import Extent, read_extent, read_size, render_range
from nixcache_oci.clients.http.retry import GiveUp
from nixcache_oci.clients.http.url import find_next
from nixcache_oci.clients.registry.errors import Explainer
from nixcache_oci.clients.registry.tags import parse_tags
from nixcache_oci.errors import FormatError, NotFoundError

_ANY_HEADERS = st.dictionaries(
    st.sampled_from(["Content-Length", "Content-Range"]),
    st.one_of(
        st.text(max_size=30),
        st.builds("bytes {}-{}/{}".format, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)),
        st.builds("bytes */{}".format, st.integers(0, 99)),
        st.integers(0, 99).map(str),
    ),
)


# Parts of blobs


_PART = {"Content-Length": "4", "Content-Range": "bytes 3-6/10"}


@pytest.mark.parametrize(
    ("status", "headers", "asked", "expected"),
    [
        (200, {"Content-Length": "10"}, (0, None), Extent(10, 0, 0, 10)),
        (200, {"Content-Length": "0"}, (0, None), Extent(0, 0, 0, 0)),
        (206, _PART, (3, 7), Extent(10, 0, 3, 7)),
        (200, {"Content-Length": "10"}, (3, 7), Extent(10, 3, 3, 7)),
        (200, {}, (0, None), None),
        (200, {"Content-Length": "-1"}, (0, None), None),
        (200, {"Content-Length": "1e3"}, (0, None), None),
        (200, {"Content-Length": "5"}, (3, 7), None),
        (
            *(200, {"Content-Length": "10000000000"}, (5 * 10**9, 5 * 10**9 + 1)),
            Extent(10 * 10**9, 5 * 10**9, 5 * 10**9, 5 * 10**9 + 1),
        ),
        (206, {**_PART, "Content-Range": "bytes 4-7/10"}, (3, 7), None),
        (206, {**_PART, "Content-Length": "5"}, (3, 7), None),
        (206, {**_PART, "Content-Range": "bytes 3-6/6"}, (3, 7), None),
        (206, {**_PART, "Content-Range": "bytes 0-3/4"}, (0, None), None),
    ],
)
def test_an_answer_holds_what_was_asked(
    status: int, headers: dict[str, str], asked: tuple[int, int | None], expected: Extent | None
) -> None:
    """A part may come alone or, as from Gitea and Cloudflare's registry, inside the whole, however large."""
    with nullcontext() if expected else pytest.raises(FormatError):
        assert read_extent(status, headers, *asked) == expected


@given(st.sampled_from([200, 206]), _ANY_HEADERS, st.integers(0, 99), st.integers(1, 99))
def test_any_headers_give_the_part_or_an_error(
    status: int, headers: dict[str, str], start: int, length: int
) -> None:
    """What is accepted is exactly what was asked for, and lies inside the blob."""
    try:
        extent = read_extent(status, headers, start, start + length)
    except FormatError:
        return
    assert (extent.start, extent.end) == (start, start + length)
    assert extent.end <= extent.size


@given(st.sampled_from([200, 206, 416]), _ANY_HEADERS)
def test_any_headers_give_a_size_or_an_error(status: int, headers: dict[str, str]) -> None:
    """A size is never made up."""
    with suppress(FormatError):
        assert read_size(status, headers) >= 0


@pytest.mark.parametrize(
    ("status", "headers", "size"),
    [
        (206, {"Content-Range": "bytes 0-0/12", "Content-Length": "1"}, 12),
        (200, {"Content-Length": "12"}, 12),
        (416, {"Content-Range": "bytes */0"}, 0),
    ],
)
def test_the_first_byte_tells_the_size(status: int, headers: dict[str, str], size: int) -> None:
    """By a range, whose last byte is named as HTTP counts; without ranges, and for an empty blob."""
    assert render_range(0, 1) == "bytes=0-0"
    assert read_size(status, headers) == size


# Lists of tags


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        *(([], None), ([""], None)),
        (['</v2/x/tags/list?last=b&n=2>; rel="next"'], "/v2/x/tags/list?last=b&n=2"),
        *((["</a>;rel=next"], "/a"), (['</a>; REL="prev next"'], "/a")),
        (['</a>; rel="prev", </b,c;d>; title="x, y"; rel="next"'], "/b,c;d"),
        *((['</a>; rel="prev"', "</b>; rel=next"], "/b"), (['</next>; rel="prev"'], None)),
        (["<>; rel=next"], ""),
        *((["/b?n=2; rel=next"], "/b?n=2"), (['</a>; rel="prev", http://x/b; rel=next'], "http://x/b")),
    ],
)
def test_the_next_page_is_found(headers: list[str], target: str | None) -> None:
    """Links come in one header or several, quoted or not, with or without brackets."""
    assert find_next(headers) == target


# Errors


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no\\n  \\u0007way"}]}', ("DENIED", "no way")),
        (b'{"errors":[{"code":"denied"}]}', ("DENIED", "")),
        *((b'{"errors":[{"code":"<b>","message":7}]}', ("", "")), (b'{"errors":{}}', ("", ""))),
        (b'{"message":"slow down","code":"NAME_UNKNOWN"}', ("", "slow down")),
        (b'{"errors":[{"code":"DENIED"}],"message":"else"}', ("DENIED", "")),
        (b'{"errors":[{"code":"X","message":"no","detail":"bad\\n type"}]}', ("X", "no: bad type")),
        (b'{"errors":[{"code":"X","message":"no","detail":{"message":"bad"}}]}', ("X", "no: bad")),
        (b'{"errors":[{"code":"X","message":"no","detail":{"digest":"sha256:1"}}]}', ("X", "no: sha256:1")),
        (b'{"errors":[{"code":"X","message":"no","detail":"no"}]}', ("X", "no")),
        (b'{"errors":[{"code":"X","message":"no","detail":[{"Action":"pull"}]}]}', ("X", "no")),
        *((b'{"errors":["x"]}', ("", "")), (b"[" * 100_000, ("", "")), (b"\xff", ("", ""))),
    ],
)
def test_an_error_document_is_read_as_far_as_it_goes(body: bytes, expected: tuple[str, str]) -> None:
    """Its text ends up in one line for people, so it is made fit for one."""
    assert parse_error(body) == expected


@given(st.lists(st.text(st.sampled_from('<>;=", relnxt/'), max_size=40)))
def test_any_link_header_is_read_or_refused(headers: list[str]) -> None:
    """A page that is there is never left out: text that speaks of a next one is read or refused."""
    with suppress(FormatError):
        find_next(headers)


@given(
    st.one_of(st.binary(), st.text(st.sampled_from('[]a",{}')).map(lambda text: b'{"tags":' + text.encode()))
)
def test_any_page_is_read_or_refused(body: bytes) -> None:
    """Junk never becomes a tag; as an error document it is survived: the failure is bad enough."""
    parse_error(body)
    with suppress(FormatError):
        assert all(isinstance(tag, str) for tag in parse_tags(body))


@pytest.mark.parametrize(
    ("trouble", "may_be_absent", "is_absent"),
    [
        (HttpError(Failure(404), "", code="NAME_UNKNOWN"), True, True),
        (HttpError(Failure(404), "", code="NAME_UNKNOWN"), False, False),
        (HttpError(Failure(404), "", code="UNSUPPORTED"), True, False),
        (HttpError(Failure(404), ""), True, False),
        (HttpError(Failure(403), "", code="NAME_UNKNOWN"), True, False),
        (HttpError(Failure(404, is_elsewhere=True), "", code="BLOB_UNKNOWN"), True, False),
        (HttpError(Failure(404), "", code="NAME_UNKNOWN", is_about_token=True), True, False),
    ],
)
def test_absence_needs_the_registrys_own_word(
    trouble: HttpError, *, may_be_absent: bool, is_absent: bool
) -> None:
    """A writer takes NotFoundError for an empty cache: no other failure may become one."""
    explainer = Explainer("ghcr.io", "ghcr.io/o/n", push=False, plain_http=False, source=lambda: None)
    error = explainer.explain("get", trouble, GiveUp(is_temporary=False), may_be_absent=may_be_absent)
    assert isinstance(error, NotFoundError) == is_absent


# Redirects


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://s.example/b%2Fc?sig=a%2Bb%2f%3D+~&x", "https://s.example/b%2Fc?sig=a%2Bb%2f%3D+~&x"),
        ("/up%2Bload?state=%2B", "https://r.example:8443/up%2Bload?state=%2B"),
        ("?q=1", "https://r.example:8443/v2/a?q=1"),
        ("//other.example/x", "https://other.example/x"),
    ],
)
def test_a_location_is_kept_byte_for_byte(location: str, expected: str) -> None:
    """A signature over the URL breaks when one character is encoded otherwise."""
    assert str(join(URL("https://r.example:8443/v2/a"), location)) == expected


@given(st.text(max_size=30))
def test_any_location_is_read_or_refused(location: str) -> None:
    """It comes from a stranger."""
    try:
        target = join(URL("https://r.example/v2/a"), location)
    except HttpError:
        return
    assert target.scheme in {"http", "https"}
    assert target.host


@pytest.mark.parametrize(
    ("method", "statuses"),
    [("GET", {301, 302, 303, 307, 308}), ("HEAD", {301, 302, 303, 307, 308}), ("PUT", {307, 308})],
)
def test_a_body_is_only_sent_on_where_the_method_stays(method: str, statuses: set[int]) -> None:
    """301 to 303 would turn a PUT into a GET, which is no upload."""
    assert {status for status in range(200, 600) if is_redirect(method, status)} == statuses


def test_a_memo_forgets_the_oldest() -> None:
    """What is remembered stays small, however long the proxy runs."""
    memo: BoundedCache[str, int] = BoundedCache(2)
    for number, key in enumerate("abac"):
        memo.put(key, number)
    assert ("b" in memo, memo.get("a"), memo.get("c"), len(memo)) == (False, 2, 3, 2)
