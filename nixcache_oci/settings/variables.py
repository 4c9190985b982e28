"""Every setting: name, default, parser, meaning.

The environment, the flags and their help follow this list; a test keeps README's table equal to it.
"""

from typing import Final

from nixcache_oci.clients.local_store.child_environment import PASS_ENV_VARIABLE
from nixcache_oci.settings import parsers
from nixcache_oci.settings.values import Variable

REPO: Final = Variable(
    name="NIXCACHE_REPO",
    default="",
    parse=parsers.parse_repo,
    metavar="OWNER/NAME",
    help="GitHub repository that the cache belongs to; other registries take any number of parts",
    default_note="the embedded cache, unless NIXCACHE_REGISTRY is set",
)
REGISTRY: Final = Variable(
    name="NIXCACHE_REGISTRY",
    default="ghcr.io",
    parse=parsers.parse_registry,
    metavar="HOST[:PORT]",
    help="registry; loopback hosts and http://... speak plain HTTP; oci:/path is an OCI layout folder",
    hides_value=True,
)
IMAGE: Final = Variable(
    name="NIXCACHE_IMAGE",
    default="nix-cache",
    parse=parsers.parse_image,
    metavar="NAME",
    help="last part of the repository's name in the registry",
)
GITHUB_TOKEN: Final = Variable(
    name="GITHUB_TOKEN",
    default="",
    parse=parsers.parse_text,
    metavar="TOKEN",
    help="token for GitHub's registries, and for one on this machine",
    hides_value=True,
)
GH_TOKEN: Final = Variable(
    name="GH_TOKEN",
    default="",
    parse=parsers.parse_text,
    metavar="TOKEN",
    help="the same, if GITHUB_TOKEN is not set",
    hides_value=True,
)
TOKEN: Final = Variable(
    name="NIXCACHE_TOKEN",
    default="",
    parse=parsers.parse_text,
    metavar="TOKEN",
    help="token, or user:password, for any registry, if there is no token file",
    hides_value=True,
    is_environment_only=True,
)
TOKEN_FILE: Final = Variable(
    name="NIXCACHE_TOKEN_FILE",
    default="",
    parse=parsers.parse_path,
    metavar="FILE",
    help="file with a token, or user:password, for any registry",
    default_note="NIXCACHE_TOKEN, GITHUB_TOKEN, GH_TOKEN, logins of docker and podman, else anonymous",
)
PORT: Final = Variable(
    name="NIXCACHE_PORT",
    default="37515",
    parse=parsers.parse_port,
    metavar="PORT",
    help="port to listen on; 0 picks a free one and prints it",
)
LISTEN: Final = Variable(
    name="NIXCACHE_LISTEN",
    default="127.0.0.1",
    parse=parsers.parse_listen,
    metavar="ADDRESS",
    help="IP address or host name to listen on",
)
UPSTREAM: Final = Variable(
    name="NIXCACHE_UPSTREAM",
    default="https://cache.nixos.org",
    parse=parsers.parse_upstreams,
    metavar="URL",
    help="upstream caches to ask for what this cache lacks; empty for none",
    separator=" ",
    empty_is_value=True,
    hides_value=True,
)
UPSTREAM_FILE: Final = Variable(
    name="NIXCACHE_UPSTREAM_FILE",
    default="",
    parse=parsers.parse_path,
    metavar="FILE",
    help="file with more upstream caches, one URL per line, which may contain user:password",
)
INDEX_TTL: Final = Variable(
    name="NIXCACHE_INDEX_TTL",
    default="300",
    parse=parsers.parse_index_ttl,
    metavar="SECONDS",
    help="seconds between refreshes of the index",
)
INDEX_DIR: Final = Variable(
    name="NIXCACHE_INDEX_DIR",
    default="",
    parse=parsers.parse_path,
    metavar="FOLDER",
    help="folder for the last good index",
    default_note="$CACHE_DIRECTORY, else the user's cache folder",
)
PACK_MEMORY: Final = Variable(
    name="NIXCACHE_PACK_MEMORY",
    default="256",
    parse=parsers.parse_pack_memory,
    metavar="MIB",
    help="memory for packs while closures are fetched",
)
PRIORITY: Final = Variable(
    name="NIXCACHE_PRIORITY",
    default="30",
    parse=parsers.parse_priority,
    metavar="NUMBER",
    help="priority in nix-cache-info; lower is asked first, and cache.nixos.org has 40",
)
STORE_DIR: Final = Variable(
    name="NIXCACHE_STORE_DIR",
    default="/nix/store",
    parse=parsers.parse_store_dir,
    metavar="FOLDER",
    help="store folder in nix-cache-info",
)
UPSTREAM_NARS: Final = Variable(
    name="NIXCACHE_UPSTREAM_NARS",
    default="stream",
    parse=parsers.parse_upstream_nars,
    metavar="stream|direct",
    help="pass upstream NARs through the proxy, or hand out the upstream's own URL",
)
HOSTS: Final = Variable(
    name="NIXCACHE_HOSTS",
    default="",
    parse=parsers.parse_hosts,
    metavar="NAME",
    help="more host names that the proxy answers to, as on a LAN",
    separator=" ",
)
PUBLIC_KEYS: Final = Variable(
    name="NIXCACHE_PUBLIC_KEYS",
    default="",
    parse=parsers.parse_public_keys,
    metavar="NAME:BASE64",
    help="public keys that entries must be signed with",
    separator=" ",
    hides_value=True,
)
SIGNING_KEY_FILE: Final = Variable(
    name="NIXCACHE_SIGNING_KEY_FILE",
    default="",
    parse=parsers.parse_paths,
    metavar="FILE",
    help="file of a secret key (name:base64) to sign with",
    separator=parsers.PATH_SEPARATOR,
)
SIGNING_KEY: Final = Variable(
    name="NIX_SIGNING_KEY",
    default="",
    parse=parsers.parse_secret_key,
    metavar="NAME:BASE64",
    help="secret key to sign with, for CI",
    hides_value=True,
)
CONFIG_DIR: Final = Variable(
    name="NIXCACHE_CONFIG_DIR",
    default="config",
    parse=parsers.parse_text,
    metavar="FLAKE",
    help="flake to publish if the command line names none",
)
PASS_ENV: Final = Variable(
    name=PASS_ENV_VARIABLE,
    default="",
    parse=parsers.parse_pass_env,
    metavar="NAME",
    help="more environment variables to pass to Nix, such as SSH_AUTH_SOCK; builds can read them",
    separator=" ",
)
MAX_LAYERS: Final = Variable(
    name="NIXCACHE_MAX_LAYERS",
    default="2000",
    parse=parsers.parse_max_layers,
    metavar="NUMBER",
    help="most layers in a manifest; some registries take only 500",
)
MAX_BLOB_BYTES: Final = Variable(
    name="NIXCACHE_MAX_BLOB_BYTES",
    default="",
    parse=parsers.parse_max_blob_bytes,
    metavar="BYTES",
    help="largest blob that the registry takes",
    default_note="10 GB at ghcr.io, else no limit",
)
MERGE: Final = Variable(
    name="NIXCACHE_MERGE",
    default="yes",
    parse=parsers.parse_yes_or_no,
    metavar="yes|no",
    help="whether push and publish end by merging small segments",
    is_switch=True,
)
LOG_LEVEL: Final = Variable(
    name="NIXCACHE_LOG_LEVEL",
    default="info",
    parse=parsers.parse_log_level,
    metavar="|".join(parsers.LOG_LEVELS),
    help="what to log on standard error",
)

REPOSITORY_VARIABLES: Final[tuple[Variable[object], ...]] = (
    REPO,
    REGISTRY,
    IMAGE,
    TOKEN_FILE,
    TOKEN,
    GITHUB_TOKEN,
    GH_TOKEN,
)
PROXY_VARIABLES: Final[tuple[Variable[object], ...]] = (
    LISTEN,
    PORT,
    UPSTREAM,
    UPSTREAM_FILE,
    UPSTREAM_NARS,
    INDEX_TTL,
    INDEX_DIR,
    PACK_MEMORY,
    PRIORITY,
    STORE_DIR,
    HOSTS,
    PUBLIC_KEYS,
)
PUBLISH_VARIABLES: Final[tuple[Variable[object], ...]] = (
    SIGNING_KEY_FILE,
    SIGNING_KEY,
    PASS_ENV,
    MAX_LAYERS,
    MAX_BLOB_BYTES,
    INDEX_DIR,
)
ALL_VARIABLES: Final = tuple(
    dict.fromkeys((*REPOSITORY_VARIABLES, *PROXY_VARIABLES, *PUBLISH_VARIABLES, MERGE, CONFIG_DIR, LOG_LEVEL))
)
