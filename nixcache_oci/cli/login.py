"""The verb ``login``: puts what lets Nix upload into a netrc file, once the proxy has accepted it."""

import argparse
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from yarl import URL

from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.cli.compose import run_async, start_logging
from nixcache_oci.cli.console import complain, say
from nixcache_oci.cli.github_actions import GithubActions
from nixcache_oci.cli.nix_conf_file import find_nix_conf
from nixcache_oci.cli.verb import DONE
from nixcache_oci.clients.github.id_token import fetch_id_token
from nixcache_oci.clients.http.url import basic_authorization, parse_url
from nixcache_oci.clients.local_store.nix_settings import nix_conf_folder
from nixcache_oci.clients.netrc_file import LOGIN, is_password, write_entry
from nixcache_oci.clients.proxy_status import LoginAnswer, ProxyClient
from nixcache_oci.clients.rooted_path import read_small
from nixcache_oci.clients.upstream.netrc import find_nix_netrc
from nixcache_oci.errors import Error, UsageError
from nixcache_oci.oci.reference import is_loopback
from nixcache_oci.settings.values import Values

_MOST_TOKEN_BYTES: Final = 4096
_LATEST: Final = 253402300799  # the last second of the year 9999

DESCRIPTION = (
    "Let Nix on this machine upload to a proxy by nix copy --to. What the proxy accepts is put into a netrc "
    "file, which only its owner can read; its other entries are left alone. A refusal changes nothing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument("url", metavar="URL", help="address of the proxy, as nix copy --to takes it")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--token-file", metavar="FILE", type=Path, help="file with a token that may upload, on one line"
    )
    way.add_argument(
        "--oidc",
        metavar="AUDIENCE",
        help="in a job at GitHub Actions: exchange the job's own token, made for this audience, for a "
        "password that lasts as long as the job",
    )
    parser.add_argument(
        "--file",
        metavar="NETRC",
        type=Path,
        help="instead of the netrc file that Nix reads, or for users other than root ~/.config/nix/netrc",
    )


def run(values: Values) -> int:
    """Ask the proxy, and write the file."""
    start_logging(values)
    arguments, environment = values.flags, values.environment
    url = _parse_proxy(arguments.url)
    path, is_read = _find_netrc(arguments.file, environment)
    token = _read_token(arguments.token_file) if arguments.token_file is not None else None
    answer, password = run_async(_log_in(url, token, arguments.oidc or "", environment))
    write_entry(path, url.host or "", password)
    until = f", until {_show_time(answer.expires_at)}" if answer.expires_at is not None else ""
    say(f"{path}: {url} takes uploads as {answer.writer}{until}")
    if not is_read:
        complain(
            f"Nix does not read {path} by itself: call it with --netrc-file {path}, or add the line "
            f"netrc-file = {path} to {find_nix_conf(environment, is_root=os.geteuid() == 0)}"
        )
    return DONE


async def _log_in(
    url: URL, token: str | None, audience: str, environment: Mapping[str, str]
) -> tuple[LoginAnswer, str]:
    """Return what the proxy says of the password, and the password."""
    # parse_url has left it as it is to be sent.
    async with ProxyClient(str(url).rstrip("/")) as proxy:
        if token is None:
            exchanged = await proxy.log_in(f"Bearer {await fetch_id_token(environment, audience)}")
            if exchanged.password is None or not is_password(exchanged.password):
                raise Error(f"{url}: it gave no password: not a nixcache-oci proxy")
            token = exchanged.password
            if (github := GithubActions.from_environment(environment)) is not None:
                github.log.command("add-mask", token)
        return await proxy.log_in(basic_authorization(LOGIN, token)), token


def _parse_proxy(text: str) -> URL:
    try:
        url = parse_url(text)
        url.origin()
    except ValueError:
        url = URL()
    is_plain = url.scheme in {"http", "https"} and not url.raw_query_string and not url.raw_fragment
    if not url.host or not is_plain or url.raw_user is not None:
        raise UsageError("URL: expected http[s]://host[:port], without user and password")
    if url.scheme == "http" and not is_loopback(url.raw_authority):
        complain(f"warning: {url} is not https: whoever sees the network's traffic sees the password")
    return url


def _find_netrc(given: Path | None, environment: Mapping[str, str]) -> tuple[Path, bool]:
    """Return the file, and whether Nix reads it as it is set up."""
    of_nix = find_nix_netrc(environment).absolute()
    if given is not None:
        return given.absolute(), given.absolute() == of_nix
    if os.geteuid() == 0 or of_nix != (nix_conf_folder(environment) / "netrc").absolute():
        return of_nix, True
    return find_nix_conf(environment, is_root=False).with_name("netrc"), False


def _read_token(path: Path) -> str:
    try:
        content = read_small(path, _MOST_TOKEN_BYTES)
    except OSError as error:
        raise UsageError(f"--token-file: {path}: {error.strerror}") from None
    token = content.decode(errors="replace").strip()
    if len(content) > _MOST_TOKEN_BYTES or not is_password(token):
        raise UsageError(
            f'--token-file: {path}: expected one token on one line, of letters, digits and signs but \\ and "'
        )
    return token


def _show_time(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(min(max(seconds, 0), _LATEST), UTC))
