import argparse
import base64
import dataclasses
import logging
import re
from pathlib import Path

import pytest

from nixcache_oci.errors import UsageError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.variants import NIXOS_KEY
from nixcache_oci.oci.reference import RegistryReference, fit_repository
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.settings import variables
from nixcache_oci.settings.file_config import MAX_UPSTREAM_FILE_BYTES, signing_keys, upstream_urls
from nixcache_oci.settings.proxy_config import proxy_config, trusted_keys
from nixcache_oci.settings.repository_config import (
    repository_config,
    repository_source,
    segment_options,
)
from nixcache_oci.settings.values import Values, Variable, add_flags, unknown_variables

_KEY = "cache-1:" + base64.b64encode(bytes(range(32))).decode()
_OTHER_KEY = "cache-2:" + base64.b64encode(bytes(range(1, 33))).decode()

_REPO_EXPECTED = "expected owner/name, such as octocat/my-cache"
_NO_REPOSITORY = "but not which repository in it: set NIXCACHE_REPO or --repo to owner/name"
_IGNORED = "is not a variable of nixcache-oci and is ignored"


def _say(*flags: str, **environment: str) -> Values:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, variables.ALL_VARIABLES)
    return Values(environment, parser.parse_args(flags))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_defaults(tmp_path: Path) -> None:
    """Nothing needs to be set: the embedded cache, on loopback, behind cache.nixos.org."""
    values = _say(NIX_CONF_DIR="/nowhere")
    assert proxy_config(values) == ProxyConfig(
        listen="127.0.0.1",
        port=37515,
        upstreams=("https://cache.nixos.org",),
        index_ttl_seconds=300.0,
        index_dir=tmp_path / "cache" / "nixcache-oci",
        pack_memory_bytes=2**28,
        priority=30,
        store_dir="/nix/store",
        upstream_nars="stream",
        hosts=frozenset(),
        trusted_keys=(NIXOS_KEY,),
    )
    assert repository_config(values) == tmp_path / "data" / "nixcache-oci" / "cache"
    assert values.get(variables.LOG_LEVEL) == logging.INFO
    assert values.get(variables.SIGNING_KEY_FILE) == ()


def test_environment() -> None:
    """Each variable reaches its field."""
    config = proxy_config(
        _say(
            NIX_CONF_DIR="/nowhere",
            NIXCACHE_LISTEN="[::1]",
            NIXCACHE_PORT="0",
            NIXCACHE_UPSTREAM="https://a.example http://b.example:8080/cache/",
            NIXCACHE_INDEX_TTL="1.5",
            NIXCACHE_INDEX_DIR="/var/lib/index",
            NIXCACHE_PACK_MEMORY="64",
            NIXCACHE_PRIORITY="41",
            NIXCACHE_STORE_DIR="/gnu/store",
            NIXCACHE_UPSTREAM_NARS="direct",
            NIXCACHE_HOSTS="Cache.lan, nas",
            NIXCACHE_PUBLIC_KEYS=f"{_KEY} {_OTHER_KEY}",
        )
    )
    assert config == ProxyConfig(
        listen="::1",
        port=0,
        upstreams=("https://a.example", "http://b.example:8080/cache/"),
        index_ttl_seconds=1.5,
        index_dir=Path("/var/lib/index"),
        pack_memory_bytes=2**26,
        priority=41,
        store_dir="/gnu/store",
        upstream_nars="direct",
        hosts=frozenset({"cache.lan", "nas"}),
        trusted_keys=(NIXOS_KEY,),
    )


def test_flags_win() -> None:
    """What is typed counts more than what was exported once."""
    values = _say("--port", "8080", "--index-ttl=60", NIXCACHE_PORT="1", NIXCACHE_PRIORITY="7")
    config = proxy_config(values)
    assert (config.port, config.index_ttl_seconds, config.priority) == (8080, 60.0, 7)


def test_a_list_flag_repeats_or_parts() -> None:
    """Both ways to give a list mean the same, and the environment's list is replaced, not extended."""
    values = _say(
        "--upstream=https://a",
        "--upstream=https://b https://c",
        "--signing-key-file=/k1:/k2",
        "--signing-key-file=/k3",
        NIXCACHE_UPSTREAM="https://z",
    )
    assert values.get(variables.UPSTREAM) == ("https://a", "https://b", "https://c")
    assert values.get(variables.SIGNING_KEY_FILE) == (Path("/k1"), Path("/k2"), Path("/k3"))


@pytest.mark.parametrize("variable", variables.ALL_VARIABLES, ids=lambda variable: str(variable.name))
def test_empty_is_unset(variable: Variable[object]) -> None:
    """An empty variable, as a unit file or workflow leaves it, means the default; for some, it means none."""
    empty = _say(**{variable.name: " "})
    is_none = variable in (variables.UPSTREAM, variables.ON_DEMAND)
    expected = () if is_none else _say().get(variable)
    assert empty.get(variable) == expected


def test_no_upstream() -> None:
    """An empty list switches upstreams off, by the flag too."""
    assert _say("--upstream", "", NIXCACHE_UPSTREAM="https://a").get(variables.UPSTREAM) == ()


def test_an_upstream_counts_once() -> None:
    """The same cache spelt twice is not asked twice; the order, which is a preference, stays."""
    values = _say(NIXCACHE_UPSTREAM="https://B.example/x/ https://a.example https://b.example/x")
    assert values.get(variables.UPSTREAM) == ("https://B.example/x/", "https://a.example")


def test_a_password_in_an_upstream_is_not_shown() -> None:
    """A private upstream's URL may hold a password, and a log or traceback may hold the settings."""
    config = proxy_config(_say(NIXCACHE_UPSTREAM="https://user:hunter2@cache.example"))
    assert config.upstreams == ("https://user:hunter2@cache.example",)
    assert "hunter2" not in repr(config)


def _write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "upstreams"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_upstreams_of_a_file(tmp_path: Path) -> None:
    """They come after those that are named openly; of a cache that is in both, the file has the password."""
    file = _write(tmp_path, "# private\n\n https://user:hunter2@b.example/x/ \r\nhttps://c.example\n")
    config = proxy_config(
        _say(NIXCACHE_UPSTREAM="https://b.example/x https://a.example", NIXCACHE_UPSTREAM_FILE=file)
    )
    assert config.upstreams == (
        "https://user:hunter2@b.example/x/",
        "https://a.example",
        "https://c.example",
    )
    assert "hunter2" not in repr(config)
    assert upstream_urls(_say("--upstream-file", file))[0] == "https://cache.nixos.org"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("https://a\nuser:hunter2\n", "line 2: expected"),
        ("https://a https://user:hunter2@b\n", "line 1: expected"),
        ("ftp://user:hunter2@b", "line 1: expected"),
        (b"https://user:hunter2@\xff", "not UTF-8 text"),
        ("https://user:hunter2@b\n" * 4000, f"longer than {MAX_UPSTREAM_FILE_BYTES} bytes"),
    ],
)
def test_a_file_of_upstreams_is_never_repeated(tmp_path: Path, content: str | bytes, reason: str) -> None:
    """What cannot be used is named by file and line: any part of a line may be a password."""
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        proxy_config(_say(NIXCACHE_UPSTREAM_FILE=_write(tmp_path, content)))
    assert str(caught.value).startswith(f"NIXCACHE_UPSTREAM_FILE: {tmp_path / 'upstreams'}: ")
    assert "hunter2" not in str(caught.value)


def test_a_file_of_upstreams_that_is_not_there(tmp_path: Path) -> None:
    """One line stops the start: without its upstreams, the cache would seem to lack what they have."""
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        proxy_config(_say(NIXCACHE_UPSTREAM_FILE=str(tmp_path / "gone")))


@pytest.mark.parametrize("url", ["ftp://b", "https://a:99999", "https://a?priority=10", "cache.nixos.org"])
def test_what_is_no_upstream(url: str) -> None:
    """Each URL of the list is looked at, and the wrong one is named."""
    with pytest.raises(UsageError, match=rf"^NIXCACHE_UPSTREAM: upstream '{re.escape(url)}': "):
        proxy_config(_say(NIXCACHE_UPSTREAM=f"https://a {url}"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("PORT", "abc", "'abc': expected a port number from 0 to 65535"),
        ("PORT", "65536", "'65536': expected a port number from 0 to 65535"),
        ("PORT", "-1", "'-1': expected a port number from 0 to 65535"),
        ("PORT", "1_000", "'1_000': expected a port number from 0 to 65535"),
        ("PASS_ENV", "A B=C", "'A B=C': expected names of environment variables, separated by spaces"),
        (
            "PASS_ENV",
            "A GH_TOKEN",
            "'A GH_TOKEN': GH_TOKEN is this program's own, and builds could read it; leave it out",
        ),
        ("LISTEN", "localhost:80", "'localhost:80': expected an IP address or a host name, without a port"),
        ("LISTEN", "127.0.0.256", "'127.0.0.256': expected an IP address or a host name, without a port"),
        ("LISTEN", "[localhost]x", "'[localhost]x': expected an IP address or a host name, without a port"),
        ("INDEX_TTL", "0.5", "'0.5': expected a number of seconds, at least 1"),
        ("INDEX_TTL", "5m", "'5m': expected a number of seconds, at least 1"),
        ("INDEX_TTL", "nan", "'nan': expected a number of seconds, at least 1"),
        ("INDEX_TTL", "1e999", "'1e999': expected a number of seconds, at least 1"),
        ("PACK_MEMORY", "63", "'63': expected a number of MiB, at least 64"),
        ("PACK_MEMORY", "1G", "'1G': expected a number of MiB, at least 64"),
        ("PRIORITY", "-5", "'-5': expected a whole number, 0 or more"),
        (
            "STORE_DIR",
            "/nix/store/",
            "'/nix/store/': expected an absolute path without a trailing slash, such as /nix/store",
        ),
        (
            "STORE_DIR",
            "/nix/store\nX: 1",
            "'/nix/store\\nX: 1': expected an absolute path without a trailing slash, such as /nix/store",
        ),
        (
            "STORE_DIR",
            "/nix/../store",
            "'/nix/../store': expected an absolute path without a trailing slash, such as /nix/store",
        ),
        ("UPSTREAM_NARS", "proxy", "'proxy': expected stream or direct"),
        ("LOG_LEVEL", "loud", "'loud': expected one of debug, info, warning, error"),
        ("REPO", "a/..", f"'a/..': {_REPO_EXPECTED}"),
        ("REPO", "a/./b", f"'a/./b': {_REPO_EXPECTED}"),
        ("REPO", "a//b", f"'a//b': {_REPO_EXPECTED}"),
        ("REPO", "a/b c/d", f"'a/b c/d': {_REPO_EXPECTED}; only the proxy takes several"),
        ("REPO", "https://github.com/a/b/tree/main", f"'https://github.com/a/b/tree/main': {_REPO_EXPECTED}"),
        ("REPO", "https://gitlab.com/a/b", f"'https://gitlab.com/a/b': {_REPO_EXPECTED}"),
        (
            "HOSTS",
            "a b:80",
            "'a b:80': expected host names without port, separated by spaces; 'b:80' is not one",
        ),
        (
            "PUBLIC_KEYS",
            "cache-1",
            (
                ": expected public keys as name:base64 of 32 bytes, separated by spaces; "
                "a word without a colon is not one"
            ),
        ),
        (
            "PUBLIC_KEYS",
            f"{_KEY} {_KEY}",
            ": expected a different name for each key; 'cache-1' appears twice",
        ),
    ],
)
def test_what_cannot_be_parsed_stops_the_start(name: str, text: str, expected: str) -> None:
    """One line: which variable or flag, its text, what is expected."""
    variable = next(one for one in variables.ALL_VARIABLES if one.name == f"NIXCACHE_{name}")
    for values, origin in (
        (_say(**{variable.name: text}), variable.name),
        (_say(f"{variable.flag}={text}"), variable.flag),
    ):
        with pytest.raises(UsageError) as caught:
            values.get(variable)
        separator = "" if expected.startswith(":") else " "
        assert str(caught.value) == f"{origin}{separator}{expected}"


def test_a_long_value_is_cut() -> None:
    """A file pasted into a variable does not fill the terminal."""
    with pytest.raises(UsageError) as caught:
        _say(NIXCACHE_PORT="9" * 100_000).get(variables.PORT)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "text", "secret"),
    [
        ("UPSTREAM", "https://user:hunter2@cache.example?x", "hunter2"),
        ("UPSTREAM", "ftp://user:hunter2@cache.example", "hunter2"),
        ("UPSTREAM", "https://a user:x/hunter2@cache.example", "hunter2"),
        ("REGISTRY", "https://user:hunter2@ghcr.io", "hunter2"),
        ("REGISTRY", "user:hunter2@ghcr.io", "hunter2"),
        ("PUBLIC_KEYS", "cache-1:" + base64.b64encode(bytes(range(64))).decode(), "AAECAwQF"),
        ("PUBLIC_KEYS", base64.b64encode(bytes(range(64))).decode(), "AAECAwQF"),
    ],
)
def test_errors_show_no_secret(name: str, text: str, secret: str) -> None:
    """A password in a URL, or a secret key where a public one belongs, is not repeated in the journal."""
    values = _say(**{f"NIXCACHE_{name}": text})
    with pytest.raises(UsageError) as caught:
        _ = repository_config(values), proxy_config(values), values.get(variables.PUBLIC_KEYS)
    assert secret not in str(caught.value)
    assert str(caught.value).startswith(f"NIXCACHE_{name}")


@pytest.mark.parametrize("variable", variables.ALL_VARIABLES, ids=lambda variable: str(variable.name))
def test_secrets_have_no_flag(variable: Variable[object]) -> None:
    """A token on the command line is visible to every user of the machine."""
    secrets = {variables.TOKEN, variables.GITHUB_TOKEN, variables.GH_TOKEN, variables.SIGNING_KEY}
    assert (variable.flag is None) == (variable in secrets)


def test_every_proxy_setting_is_in_the_table() -> None:
    """No field can be set in a way that the table, and so the help, does not tell."""
    in_table = {variable.name for variable in variables.PROXY_VARIABLES}
    spelling = {"upstreams": "UPSTREAM", "index_ttl_seconds": "INDEX_TTL", "pack_memory_bytes": "PACK_MEMORY"}
    # What Nix trusts, nix.conf says.
    fields = {field.name for field in dataclasses.fields(ProxyConfig)} - {"trusted_keys"}
    fields = fields - {"tls"} | {"tls_cert", "tls_key", "tls_client_ca", "public_keys"}
    fields |= {"caches_file", "on_demand"}
    # Where the upstreams stand does not matter to the proxy.
    assert in_table - {"NIXCACHE_UPSTREAM_FILE"} == {
        f"NIXCACHE_{spelling.get(field, field.upper())}" for field in fields
    }


@pytest.mark.parametrize(
    ("folders", "expected"),
    [("/var/cache/nixcache", "/var/cache/nixcache"), ("/var/cache/a:/var/cache/b", "/var/cache/a")],
)
def test_index_lies_in_the_cache_folder_of_the_service(folders: str, expected: str) -> None:
    """Under systemd the index lies where the unit allows writing; several folders are joined by colons."""
    assert proxy_config(_say(CACHE_DIRECTORY=folders)).index_dir == Path(expected)


@pytest.mark.parametrize(
    "repo",
    [
        *("Owner/Name", "https://github.com/Owner/Name", "https://github.com/owner/name.git", "owner/name/"),
        *("git@github.com:Owner/Name.git", "ssh://git@github.com/owner/name.git"),
    ],
)
def test_repo_in_every_spelling(repo: str) -> None:
    """Whatever a person copies from the browser or from git is the same repository, in lower case."""
    assert repository_config(_say(NIXCACHE_REPO=repo)) == RegistryReference.of(
        "ghcr.io", "owner/name", "nix-cache"
    )


@pytest.mark.parametrize(
    ("repo", "image", "expected"),
    [
        ("owner/name", "cache", "owner/name/cache"),
        ("owner", "cache", "owner/cache"),
        *(("owner/name", "-", "owner/name"), ("o/a--b", "c__d", "o/a--b/c__d")),
        ("A/b/C/d", "cache", "a/b/c/d/cache"),
        ("group/sub.group/project", "a/b", "group/sub.group/project/a/b"),
    ],
)
def test_other_registries_have_names_of_any_depth(repo: str, image: str, expected: str) -> None:
    """Some take two names only, and some have groups within groups; none of it belongs to GitHub."""
    location = repository_config(
        _say(NIXCACHE_REGISTRY="r.example", NIXCACHE_REPO=repo, NIXCACHE_IMAGE=image)
    )
    assert isinstance(location, RegistryReference)
    assert location.repository == expected


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("ghcr.io", (2000, 10 * 10**9)),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", (490, 52_000 * 2**20)),
        ("public.ecr.aws", (490, 10 * 10**9)),
        ("quay.io", (2000, 20 * 10**9)),
        ("registry.gitlab.com", (2000, 5 * 10**9)),
        ("codeberg.org", (500, None)),
        ("registry.example", (2000, None)),
    ],
)
def test_known_limits_are_kept(registry: str, expected: tuple[int, int | None]) -> None:
    """A manifest or blob over them would be refused when all the others were sent; a setting counts more."""
    where = {"NIXCACHE_REGISTRY": registry, "NIXCACHE_REPO": "o/n"}
    for settings, limits in (
        ({}, expected),
        ({"NIXCACHE_MAX_LAYERS": "70", "NIXCACHE_MAX_BLOB_BYTES": "1M"}, (70, 10**6)),
    ):
        values = _say(**where, **settings)
        options = segment_options(values, repository_config(values), None)
        assert (options.max_layers, options.max_blob_bytes) == limits


@pytest.mark.parametrize("name", [".github", ".dotfiles", "name-", "_x", "-", "a..b", "a._b"])
def test_every_repository_at_github_has_a_place(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """GitHub takes names that registries refuse; where their cache is kept is said, and what to set else."""
    values = _say(NIXCACHE_REPO=f"Owner/{name}")
    location = repository_config(values)
    assert isinstance(location, RegistryReference)
    assert location.repository == f"{fit_repository(f'owner/{name}')}/nix-cache"
    assert f"kept at {location}; NIXCACHE_REPO or NIXCACHE_IMAGE" in caplog.text
    assert repository_source(location, f"owner/{name}", values) == f"https://github.com/owner/{name}"


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        ("my-cache", _REPO_EXPECTED),
        ("a/b/c", _REPO_EXPECTED),
        ("owner-/name", "GitHub's registry accepts no owner named owner-"),
    ],
)
def test_a_repository_at_github_has_an_owner_and_a_name(repo: str, expected: str) -> None:
    """A typing mistake must not make a package that belongs to no repository, or to another's owner."""
    with pytest.raises(UsageError, match=f"^NIXCACHE_REPO '{repo}': {expected}"):
        repository_config(_say(NIXCACHE_REPO=repo))


def test_another_registry() -> None:
    """Registry and image are the user's choice."""
    values = _say("--repo=o/n", "--image=Other", NIXCACHE_REGISTRY="127.0.0.1:5000")
    reference = RegistryReference.of("127.0.0.1:5000", "o/n", "other")
    assert repository_config(values) == reference


@pytest.mark.parametrize("repo", ["", "owner/name"])
def test_a_layout_folder(repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OCI layout needs no repository's name, and a workflow that always sets one does not disturb it."""
    monkeypatch.chdir(tmp_path)
    for spelling in (f"oci:{tmp_path}/layout", "oci:layout"):
        values = _say(NIXCACHE_REGISTRY=spelling, NIXCACHE_REPO=repo)
        assert repository_config(values) == tmp_path / "layout"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"NIXCACHE_REGISTRY": "ghcr.io"},
            f"NIXCACHE_REGISTRY names a registry, {_NO_REPOSITORY}",
        ),
        ({"NIXCACHE_REGISTRY": "oci:"}, "NIXCACHE_REGISTRY: expected the path of a folder behind oci:"),
    ],
)
def test_half_a_repository(environment: dict[str, str], expected: str) -> None:
    """A registry alone is not silently taken for the embedded cache."""
    with pytest.raises(UsageError) as caught:
        repository_config(_say(**environment))
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("REGISTRY", "ghcr.io/owner"),
        ("REGISTRY", "ftp://ghcr.io"),
        ("REGISTRY", "ho st"),
        ("REPO", "-o/n"),
        ("IMAGE", "a b"),
        ("IMAGE", "a" * 254),
    ],
)
def test_names_that_no_registry_takes(name: str, text: str) -> None:
    """Refused at the start, and not as a puzzling answer of the registry."""
    environment = {"NIXCACHE_REPO": "o/n", f"NIXCACHE_{name}": text}
    with pytest.raises(UsageError, match=rf"^(NIXCACHE_REPO and )?NIXCACHE_{name}\b"):
        repository_config(_say(**environment))


def test_a_token_file_given_as_a_flag_wins() -> None:
    """What looks credentials up in the environment finds the flag's value there."""
    values = _say("--token-file=/run/token", NIXCACHE_TOKEN_FILE="/other", PATH="/bin", GH_TOKEN=" ")
    assert values.merged_environment(variables.REPOSITORY_VARIABLES) == {
        "NIXCACHE_TOKEN_FILE": "/run/token",
        "PATH": "/bin",
        "GH_TOKEN": " ",
    }


def test_unknown_variables_are_warned_of() -> None:
    """A misspelt variable does not fail in silence; one of a related tool only says that it is not read."""
    environment = {
        "NIXCACHE_INDEX_TLL": "5",
        "NIXCACHE_WORKER": "/etc",
        "NIXCACHE_PORT": "1",
        "NIX_SIGNING_KEY": "x",
    }
    assert unknown_variables(environment, variables.ALL_VARIABLES) == (
        f"NIXCACHE_INDEX_TLL {_IGNORED}: did you mean NIXCACHE_INDEX_TTL?",
        f"NIXCACHE_WORKER {_IGNORED}",
    )


def test_flags_are_not_abbreviated_or_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    """A flag that does not exist is refused: an abbreviation may mean another one in the next version."""
    with pytest.raises(SystemExit):
        _say("--index", "5")
    assert "unrecognized arguments: --index 5" in capsys.readouterr().err


def test_the_keys_that_nix_trusts_here_count(tmp_path: Path) -> None:
    """As Nix reads them, defaults and additions among them; what cannot be read says nothing."""
    one, two = (str(SecretKey.generate(name).public_key) for name in ("one-1", "two-1"))
    environment = {"NIX_CONF_DIR": str(tmp_path)}
    conf = tmp_path / "nix.conf"
    assert trusted_keys(environment) == (NIXOS_KEY,)
    conf.write_text(f"extra-trusted-public-keys = {one} no-key\n")
    assert list(map(str, trusted_keys(environment))) == [str(NIXOS_KEY), one]
    conf.write_text(f"trusted-public-keys = {one}\n")
    assert list(map(str, trusted_keys(environment))) == [one]
    more = environment | {"NIX_CONFIG": f"extra-trusted-public-keys = {two}"}
    assert list(map(str, trusted_keys(more))) == [one, two]
    conf.write_text("a=b\n")
    assert list(map(str, trusted_keys(more))) == [str(NIXOS_KEY), two]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf%s\r\n",
        b"NIX_SIGNING_KEY=%s\n",
        b'"%s"',
    ],
)
def test_a_key_file_is_read_however_it_was_saved(tmp_path: Path, content: bytes) -> None:
    """Also where a shell saves what is redirected to a file in UTF-16."""
    key = SecretKey.generate("my-cache-1")
    for number, saved in enumerate((content % key.render().encode(), key.render().encode("utf-16"))):
        path = tmp_path / str(number)
        path.write_bytes(saved)
        assert signing_keys(_say(NIXCACHE_SIGNING_KEY_FILE=str(path))) == (key,)
    assert signing_keys(_say(NIX_SIGNING_KEY=f"\ufeff{key.render()}")) == (key,)


@pytest.mark.parametrize("text", [f"\ufeff{_KEY}", f'"{_KEY} {_OTHER_KEY}"', f"NIXCACHE_PUBLIC_KEYS={_KEY}"])
def test_public_keys_are_read_as_they_were_copied(text: str) -> None:
    """A key that is refused by all for a mark that nobody sees is hard to find."""
    keys = _say(NIXCACHE_PUBLIC_KEYS=text).get(variables.PUBLIC_KEYS)
    assert next(str(key) for key in keys) == _KEY
