"""Every setting: name, default, parser, meaning.

The environment, the flags and their help follow this list; a test keeps README's table equal to it.
"""

from typing import Final

from nixcache_oci.clients.local_store.environment import PASS_ENV_VARIABLE
from nixcache_oci.settings import parsers
from nixcache_oci.settings.values import Variable

REPO: Final = Variable(
    "NIXCACHE_REPO",
    parsers.parse_repo,
    "OWNER/NAME",
    "GitHub repository that the cache belongs to; other registries take any number of parts",
    default_note="the embedded cache, unless NIXCACHE_REGISTRY is set",
)
REPOS: Final = Variable(
    REPO.name,
    parsers.parse_repos,
    REPO.metavar,
    f"{REPO.help}; several are merged, and asked in this order",
    default_note=REPO.default_note,
    separator=" ",
)
CACHES_FILE: Final = Variable(
    "NIXCACHE_CACHES_FILE",
    parsers.parse_path,
    "FILE",
    "TOML file with more caches, each with its own registry, keys and token",
)
ON_DEMAND: Final = Variable(
    "NIXCACHE_ON_DEMAND",
    parsers.parse_patterns,
    "PATTERN",
    "caches that are opened, anonymously, when a request names them: host/repository, * for anything",
    default="ghcr.io/*",
    default_note="ghcr.io/* if only this machine can connect, else none",
    separator=" ",
    empty_is_value=True,
)
REGISTRY: Final = Variable(
    "NIXCACHE_REGISTRY",
    parsers.parse_registry,
    "HOST[:PORT]",
    "registry; loopback hosts and http://... speak plain HTTP; oci:/path is an OCI layout folder",
    default="ghcr.io",
    hides_value=True,
)
IMAGE: Final = Variable(
    "NIXCACHE_IMAGE",
    parsers.parse_image,
    "NAME",
    "last part of the repository's name in the registry; - for none",
    default="nix-cache",
)
GITHUB_TOKEN: Final = Variable(
    "GITHUB_TOKEN",
    str,
    "TOKEN",
    "token for GitHub's registries, and for one on this machine",
    hides_value=True,
)
GH_TOKEN: Final = Variable("GH_TOKEN", str, "TOKEN", "the same, if GITHUB_TOKEN is not set", hides_value=True)
TOKEN: Final = Variable(
    "NIXCACHE_TOKEN",
    str,
    "TOKEN",
    "token, or user:password, for any registry, if there is no token file",
    hides_value=True,
    is_environment_only=True,
)
TOKEN_FILE: Final = Variable(
    "NIXCACHE_TOKEN_FILE",
    parsers.parse_path,
    "FILE",
    "file with a token, or user:password, for any registry",
    default_note="NIXCACHE_TOKEN, GITHUB_TOKEN, GH_TOKEN, logins of docker and podman, else anonymous",
)
PORT: Final = Variable(
    "NIXCACHE_PORT",
    parsers.parse_port,
    "PORT",
    "port to listen on; 0 picks a free one and prints it",
    default="37515",
)
LISTEN: Final = Variable(
    "NIXCACHE_LISTEN",
    parsers.parse_listen,
    "ADDRESS",
    "IP address or host name to listen on",
    default="127.0.0.1",
)
UPSTREAM: Final = Variable(
    "NIXCACHE_UPSTREAM",
    parsers.parse_upstreams,
    "URL",
    "upstream caches to ask for what this cache lacks; empty for none",
    default="https://cache.nixos.org",
    separator=" ",
    empty_is_value=True,
    hides_value=True,
)
UPSTREAM_FILE: Final = Variable(
    "NIXCACHE_UPSTREAM_FILE",
    parsers.parse_path,
    "FILE",
    "file with more upstream caches, one URL per line, which may contain user:password",
)
INDEX_TTL: Final = Variable(
    "NIXCACHE_INDEX_TTL",
    parsers.parse_index_ttl,
    "SECONDS",
    "seconds between refreshes of the index",
    default="300",
)
INDEX_DIR: Final = Variable(
    "NIXCACHE_INDEX_DIR",
    parsers.parse_path,
    "FOLDER",
    "folder for the last good index",
    default_note="$CACHE_DIRECTORY, else the user's cache folder",
)
QUEUE_DIR: Final = Variable(
    "NIXCACHE_QUEUE_DIR",
    parsers.parse_path,
    "FOLDER",
    "folder of the queue of store paths to publish",
    default_note="$STATE_DIRECTORY, else /var/lib/nixcache-queue for root, else in the user's state folder",
)
PACK_MEMORY: Final = Variable(
    "NIXCACHE_PACK_MEMORY",
    parsers.parse_pack_memory,
    "MIB",
    "memory for packs while closures are fetched",
    default="256",
)
PRIORITY: Final = Variable(
    "NIXCACHE_PRIORITY",
    parsers.parse_priority,
    "NUMBER",
    "priority in nix-cache-info; lower is asked first, and cache.nixos.org has 40",
    default="30",
)
STORE_DIR: Final = Variable(
    "NIXCACHE_STORE_DIR",
    parsers.parse_store_dir,
    "FOLDER",
    "store folder in nix-cache-info",
    default="/nix/store",
)
UPSTREAM_NARS: Final = Variable(
    "NIXCACHE_UPSTREAM_NARS",
    parsers.parse_upstream_nars,
    "stream|direct",
    "pass upstream NARs through the proxy, or hand out the upstream's own URL",
    default="stream",
)
AHEAD: Final = Variable(
    name="NIXCACHE_AHEAD",
    default="yes",
    parse=parsers.parse_yes_or_no,
    metavar="yes|no",
    help="whether to fetch from upstreams what a client that substitutes will ask for next",
    is_switch=True,
)
HOSTS: Final = Variable(
    "NIXCACHE_HOSTS",
    parsers.parse_hosts,
    "NAME",
    "more host names that the proxy answers to, as on a LAN",
    separator=" ",
)
PUBLIC_KEYS: Final = Variable(
    "NIXCACHE_PUBLIC_KEYS",
    parsers.parse_public_keys,
    "NAME:BASE64",
    "public keys that entries must be signed with",
    separator=" ",
    hides_value=True,
)
TLS_CERT: Final = Variable(
    "NIXCACHE_TLS_CERT",
    parsers.parse_path,
    "FILE",
    "certificate to speak HTTPS with, and those that lead to its authority",
)
TLS_KEY: Final = Variable("NIXCACHE_TLS_KEY", parsers.parse_path, "FILE", "secret key of that certificate")
TLS_CLIENT_CA: Final = Variable(
    "NIXCACHE_TLS_CLIENT_CA",
    parsers.parse_path,
    "FILE",
    "authorities of client certificates, which clients need not have to read",
)
SIGNING_KEY_FILE: Final = Variable(
    "NIXCACHE_SIGNING_KEY_FILE",
    parsers.parse_paths,
    "FILE",
    "file of a secret key (name:base64) to sign with",
    separator=parsers.PATH_SEPARATOR,
)
SIGNING_KEY: Final = Variable(
    "NIX_SIGNING_KEY",
    parsers.parse_secret_key,
    "NAME:BASE64",
    "secret key to sign with, for CI",
    hides_value=True,
)
CONFIG_DIR: Final = Variable(
    "NIXCACHE_CONFIG_DIR", str, "FLAKE", "flake to publish if the command line names none", default="config"
)
PASS_ENV: Final = Variable(
    PASS_ENV_VARIABLE,
    parsers.parse_pass_env,
    "NAME",
    "more environment variables to pass to Nix, such as SSH_AUTH_SOCK; builds can read them",
    separator=" ",
)
MAX_LAYERS: Final = Variable(
    "NIXCACHE_MAX_LAYERS",
    parsers.parse_max_layers,
    "NUMBER",
    "most layers in a manifest; some registries take only 500",
    default_note="2000; 490 at Amazon's registries, 500 at codeberg.org",
)
MAX_BLOB_BYTES: Final = Variable(
    "NIXCACHE_MAX_BLOB_BYTES",
    parsers.parse_max_blob_bytes,
    "BYTES",
    "largest blob that the registry takes",
    default_note="what ghcr.io, quay.io, gitlab.com and Amazon's registries take, else no limit",
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
    "NIXCACHE_LOG_LEVEL",
    parsers.parse_log_level,
    "|".join(parsers.LOG_LEVELS),
    "what to log on standard error",
    default="info",
)

UPLOADS: Final = Variable(
    "NIXCACHE_UPLOADS",
    parsers.parse_yes_or_no,
    "yes|no",
    "whether the proxy takes nix copy --to",
    default="no",
)
UPLOAD_TOKENS_FILE: Final = Variable(
    "NIXCACHE_UPLOAD_TOKENS_FILE",
    parsers.parse_path,
    "FILE",
    "file of who may upload, one name:token per line",
)
UPLOAD_SUBJECTS: Final = Variable(
    "NIXCACHE_UPLOAD_SUBJECTS",
    parsers.parse_subjects,
    "SUBJECT",
    "subjects of client certificates that may upload, such as CN=builder-*",
    separator=parsers.SUBJECT_SEPARATOR,
)
UPLOAD_CERT_HEADER: Final = Variable(
    "NIXCACHE_UPLOAD_CERT_HEADER",
    parsers.parse_header_name,
    "NAME",
    "header in which a web server on this machine hands over the subject of a client certificate",
)
OIDC_FILE: Final = Variable(
    "NIXCACHE_OIDC_FILE",
    parsers.parse_path,
    "FILE",
    "file of rules for JSON Web Tokens that let upload, such as those of CI",
)
UPLOAD_QUIET: Final = Variable(
    "NIXCACHE_UPLOAD_QUIET",
    parsers.parse_upload_quiet,
    "SECONDS",
    "seconds without a new upload before a batch is published",
    default="5",
)
UPLOAD_DIR: Final = Variable(
    "NIXCACHE_UPLOAD_DIR",
    parsers.parse_path,
    "FOLDER",
    "folder for uploads that are not published yet",
    default_note="$STATE_DIRECTORY, else the user's data folder",
)
UPLOAD_SPACE: Final = Variable(
    "NIXCACHE_UPLOAD_SPACE",
    parsers.parse_upload_space,
    "BYTES",
    "most bytes of uploads that are not published yet",
    default="20G",
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
    AHEAD,
    INDEX_TTL,
    INDEX_DIR,
    PACK_MEMORY,
    PRIORITY,
    STORE_DIR,
    HOSTS,
    PUBLIC_KEYS,
    CACHES_FILE,
    ON_DEMAND,
    TLS_CERT,
    TLS_KEY,
    TLS_CLIENT_CA,
)
UPLOAD_VARIABLES: Final[tuple[Variable[object], ...]] = (
    UPLOADS,
    UPLOAD_TOKENS_FILE,
    UPLOAD_SUBJECTS,
    UPLOAD_CERT_HEADER,
    OIDC_FILE,
    UPLOAD_QUIET,
    UPLOAD_DIR,
    UPLOAD_SPACE,
    SIGNING_KEY_FILE,
    SIGNING_KEY,
    MAX_LAYERS,
    MAX_BLOB_BYTES,
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
    dict.fromkeys(
        (
            *(*REPOSITORY_VARIABLES, *PROXY_VARIABLES, *UPLOAD_VARIABLES, *PUBLISH_VARIABLES),
            *(MERGE, CONFIG_DIR, QUEUE_DIR, LOG_LEVEL),
        )
    )
)
