"""Every time limit of a reader, for the table in docs/reliability.md: what, how long, where, why."""

from typing import Final, NamedTuple


class TimeLimit(NamedTuple):
    """One row.

    Attributes:
        what: is waited for.
        seconds: as code says it, or a rule.
        module: where the constant stands, below ``nixcache_oci``.
        name: of the constant, parameter or both.
        reason: why it fits with the others and with Nix.
    """

    what: str
    seconds: str
    module: str
    name: str
    reason: str


TIME_LIMITS: Final = (
    TimeLimit("upstream: name look-up", "15", "clients/upstream/rules.py", "NAME_SECONDS",
              "a dead first nameserver costs 5 s, and the next one as much"),
    TimeLimit("upstream: TCP and TLS", "3", "clients/upstream/client.py", "connect_seconds",
              "a dead upstream costs it once, then the breaker is open"),
    TimeLimit("upstream: a narinfo, once connected", "10", "clients/upstream/client.py", "answer_seconds",
              "with name and connection 28 s at most: metadata is decided within 30 s"),
    TimeLimit("used connection without a head", "2", "clients/http/fresh.py", "SILENT_SECONDS",
              "a dead one costs 2 s once; below every other limit, so that a new one has its time"),
    TimeLimit("new connection without a head: registry metadata", "10", "clients/http/one_origin.py",
              "_DOCUMENT_TRIES", "a third of the 30 s: two more tries within them"),
    TimeLimit("new connection without a head: NARs, packs, upstreams", "30", "clients/http/fresh.py",
              "AGAIN_SECONDS", "slow is likelier than dead there; three requests at most"),
    TimeLimit("registry: TCP and TLS to one address / in all with the name", "10 / 30",
              "clients/http/client.py", "CONNECT_SECONDS", "several addresses, and a slow name look-up"),
    TimeLimit("registry: head of manifests, tags, tokens", "30", "clients/registry/client.py",
              "stall_seconds", "the whole patience of a reader"),
    TimeLimit("registry: head of a table", "30", "clients/resume.py", "TABLE_HEAD_SECONDS", "metadata, too"),
    TimeLimit("registry: head and first byte of a NAR or pack", "300", "clients/http/one_origin.py",
              "_BLOB_STALLS", "Nix waits 300 s: storage may have to fetch it first"),
    TimeLimit("upstream: head and first byte of a NAR", "300", "clients/upstream/client.py", "nar_seconds",
              "the same"),
    TimeLimit("each later wait for bytes", "30", "clients/upstream/client.py", "stall_seconds",
              "then resumed where it stopped; Nix sees a pause below its own 300 s"),
    TimeLimit("upstream: a small NAR that a client waits for", "5", "proxy/ahead/nars.py", "SLOW_SECONDS",
              "then nothing else is fetched ahead over so slow a line"),
    TimeLimit("upstream: the same, before it is streamed", "60", "proxy/ahead/nars.py", "GIVEN_UP_SECONDS",
              "bytes as they arrive, well before Nix's 300 s"),
    TimeLimit("upstream: nothing ahead after 429 or 5xx", "60, or what it asks for, up to 3600",
              "clients/upstream/peer.py", "AHEAD_PAUSE_SECONDS", "its clients' own requests go on"),
    TimeLimit("upstream: asked on for a signature that counts", "5", "clients/upstream/client.py",
              "ASK_ON_SECONDS", "below a narinfo's own; an upstream that hangs costs it once in 30 s"),
    TimeLimit("hit without a signature that counts", "2", "proxy/signature_union.py", "WAIT_SECONDS",
              "a hit is at hand; once in 30 s"),
    TimeLimit("breaker open", "30, doubling to 300", "clients/upstream/peer.py", "FIRST_PAUSE_SECONDS",
              "only for connections; Nix remembers each 404 for an hour"),
    TimeLimit("first index", "5, once", "proxy/live_index.py", "FIRST_INDEX_SECONDS",
              "before it every answer would be a 404"),
    TimeLimit("upload: until a NAR may arrive, beside 16 others", "240", "proxy/uploads/nar_files.py",
              "TURN_SECONDS", "Nix gives up after 300 s without an answer"),
    TimeLimit("upload: silence within a body", "300", "proxy/endpoints/uploads.py", "STALL_SECONDS",
              "as long as Nix itself waits"),
    TimeLimit("upload: keys of an issuer of tokens", "10", "proxy/writers/issuer_keys.py", "FETCH_SECONDS",
              "a login waits for it, at most once in 30 s"),
    TimeLimit("page: a search, or what is known of a path", "10", "proxy/page/jobs.py", "JOB_SECONDS",
              "a search in four million paths takes half of it"),
    TimeLimit("TLS handshake of a client", "10", "proxy/tls.py", "HANDSHAKE_SECONDS",
              "below a head's 30 s; it is not counted as a connection before"),
)  # fmt: skip

_INTRODUCTION: Final = """How long a reader waits for what, in seconds, and why the limits fit together and
with Nix, which waits 300 s for the first byte of a NAR and remembers a 404 for an hour."""


def render_time_limits() -> str:
    """Write the section of docs/reliability.md."""
    head = [
        "## Time limits",
        "",
        *_INTRODUCTION.splitlines(),
        "",
        "| what | seconds | why |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *(f"| {one.what} | {one.seconds} | {one.reason} |" for one in TIME_LIMITS), ""])
