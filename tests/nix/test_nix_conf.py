"""nix.conf: what is added works, and what stands there stays."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nix_conf import (
    FALLBACK,
    SUBSTITUTERS,
    TRUSTED_PUBLIC_KEYS,
    Substituter,
    complete_conf,
    find_substituter,
    find_values,
    parse_conf,
    trusts_blindly,
)
from tests.support.programs import require_program

URL = "http://127.0.0.1:37515"
KEY = "my-cache-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
WANTED = Substituter(URL, (KEY,))

LINES = (
    *("", "# a comment, with = and include", "  # indented", "max-jobs = 4"),
    *("max-jobs   =\t7   # trailing", "substituters = https://a.example https://b.example"),
    *("substituters =", f"extra-substituters = {URL}"),
    *("extra-substituters = http://localhost:37515/?priority=10", f"binary-caches = {URL}"),
    *(f"trusted-public-keys = {KEY}", "extra-trusted-public-keys = other-1:BBBB", "fallback = true"),
    *("fallback = false", "build-fallback = true", "!include gone.conf", "keep-outputs = true"),
)
CONFS = st.builds(
    lambda lines, end, last: end.join(lines) + (end if last else ""),
    st.lists(st.sampled_from(LINES), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)


@given(CONFS)
def test_twice_is_once(text: str) -> None:
    """What was there is there, byte for byte; all that is wanted counts; and a second time adds nothing."""
    once = complete_conf(text, WANTED)
    assert once.startswith(text)
    assert complete_conf(once, WANTED) == once
    settings = parse_conf(once)
    assert find_substituter(find_values(settings, SUBSTITUTERS), URL) is not None
    assert KEY in find_values(settings, TRUSTED_PUBLIC_KEYS)
    assert [one.values for one in settings if one.name == FALLBACK][-1] == ("true",)
    added = [one for one in settings[len(parse_conf(text)) :] if one.name != FALLBACK]
    assert all(one.is_extra for one in added)


@given(CONFS)
def test_line_ends_stay(text: str) -> None:
    """A file of CRLF gets CRLF, and no other file does."""
    if "\n" in text:
        added = complete_conf(text, WANTED)[len(text) :].removeprefix("\n")
        assert added.count("\r\n") == (added.count("\n") if "\r\n" in text else 0)


def test_what_is_added() -> None:
    """The lines, and whose they are, apart from what is there; what a later plain line undoes comes again.

    Settings that were renamed are still read by Nix, and count as what they are called today.
    """
    assert complete_conf("", WANTED).splitlines()[1:] == list(WANTED.lines())
    assert complete_conf("max-jobs = 1", WANTED).startswith("max-jobs = 1\n\n# Added by nixcache-oci")
    text = f"extra-binary-caches = {URL}\nbinary-cache-public-keys = {KEY}\nbuild-fallback = true\n"
    assert complete_conf(text, WANTED) == text
    undone = f"{text}binary-caches = https://a.example\n"
    assert find_values(parse_conf(undone), SUBSTITUTERS) == ("https://a.example",)
    assert f"\nextra-substituters = {URL}\n" in complete_conf(undone, WANTED)[len(undone) :]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *(
            (f"max-jobs = 1\n{line}", "line 2")
            for line in ("fallback=true", "word", "include", "a : b", " http://c")
        ),
        (f"trusted-public-keys = {KEY.replace('AAAA', 'BBBB')}", "line 1: another key"),
        *(
            (text, r"line [12]: .*any user of this machine")
            for text in (
                "require-sigs = false",
                "require-sigs = true\nrequire-sigs = no",
                f"substituters = https://a.example {URL}?trusted=true",
                "extra-substituters = http://localhost:37515/?priority=1&trusted=1",
                f"binary-caches = {URL}?trusted=yes&trusted=false",
            )
        ),
    ],
)
def test_what_would_be_in_the_way_is_refused_by_its_line(text: str, reason: str) -> None:
    """What Nix refuses: what is added behind it would be read by nobody.

    Another key of the name: Nix takes the first. A port that needs no signature: any user may hold it while
    the proxy is down.
    """
    with pytest.raises(FormatError, match=reason):
        complete_conf(f"{text}\n", WANTED)


@pytest.mark.parametrize(
    "text",
    [
        "require-sigs = false\nrequire-sigs = yes",
        "substituters = http://127.0.0.1:1?trusted=true",
        f"substituters = {URL}?trusted=true\nsubstituters = https://a.example",
    ],
)
def test_lines_that_do_not_count(text: str) -> None:
    """What a later line takes back, and what another cache is trusted with, is not in the way."""
    assert complete_conf(f"{text}\n", WANTED).startswith(text)


@pytest.mark.parametrize("value", ["", "a#b:AAAA", "a:AAAA b:BBBB", "a:AAAA\nfallback = false"])
def test_values_that_nix_reads_otherwise(value: str) -> None:
    """A key comes from a stranger's table: it may forge neither a line nor a comment."""
    with pytest.raises(FormatError):
        Substituter(URL, (value,))


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        *(("http://localhost:37515", True), ("http://[::1]:37515/", True)),
        *(("http://127.0.0.1:37515?trusted=1", True), ("http://127.0.0.1:37516", False)),
        *(("https://127.0.0.1:37515", False), ("http://127.0.0.1:99999999", False)),
        ("http://[", False),
    ],
)
def test_spellings_of_a_substituter(other: str, *, is_same: bool) -> None:
    """Loopback has several names; parameters and a slash do not make another cache."""
    assert (find_substituter([other], URL) is not None) == is_same
    assert trusts_blindly(other) == ("trusted" in other)


def show_config(folder: Path) -> dict[str, str]:
    """What real Nix makes of a nix.conf."""
    command = [require_program("nix"), "--extra-experimental-features", "nix-command", "show-config"]
    environment = {"HOME": str(folder), "NIX_CONF_DIR": str(folder)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(line.split(" = ", 1) for line in result.stdout.splitlines() if " = " in line)


@pytest.mark.needs("nix")
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_nix_sees_nothing_else_change(tmp_path: Path, end: str) -> None:
    """Every other setting has the value that it had, and the lists keep what they held."""
    lines = (
        "max-jobs = 3 # three",
        "!include gone.conf",
        "include more.conf",
        "binary-caches = https://a.example",
        "extra-trusted-public-keys = other-1:BBBB",
        "keep-outputs = true",
        "build-fallback = false",
    )
    (tmp_path / "more.conf").write_text("cores = 5\n")
    conf = tmp_path / "nix.conf"
    conf.write_bytes(end.join(lines).encode())
    before = show_config(tmp_path)
    conf.write_bytes(complete_conf(conf.read_bytes().decode(), WANTED).encode())
    after = show_config(tmp_path)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {SUBSTITUTERS, TRUSTED_PUBLIC_KEYS, FALLBACK}
    assert after[SUBSTITUTERS] == f"https://a.example {URL}"
    assert after[TRUSTED_PUBLIC_KEYS] == f"{before[TRUSTED_PUBLIC_KEYS]} {KEY}"
    assert after[FALLBACK] == "true"
    assert (after["max-jobs"], after["cores"]) == ("3", "5")
