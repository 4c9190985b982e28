"""Every bound on what another side controls: what is bounded, how much, and what happens beyond it.

The table in docs/reliability.md is made of this, and the numbers are those that the code uses.
"""

from dataclasses import dataclass
from typing import Final

from nixcache_oci.cache import (
    catalog,
    former,
    index_folder,
    json_stream,
    listing,
    table,
    table_budget,
    table_file,
    table_inflation,
    table_search,
    version1,
)
from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.cli import log, publish, queue
from nixcache_oci.clients import layout_file
from nixcache_oci.clients.binary_cache import web
from nixcache_oci.clients.binary_cache.source import MAX_NARINFO_BYTES
from nixcache_oci.clients.github import packages
from nixcache_oci.clients.http import client, curl_generation, errors, reply, session
from nixcache_oci.clients.local_store import build, database, evaluator
from nixcache_oci.clients.registry import tags, transport
from nixcache_oci.clients.upstream import narinfo_store, peer
from nixcache_oci.maintenance.gc import collect, former_reader
from nixcache_oci.nix import narinfo, signature
from nixcache_oci.oci import document, manifest
from nixcache_oci.proxy import (
    lookup,
    nar_source,
    nar_streams,
    open_files,
    refresh_coalescer,
    regression,
    tls,
)
from nixcache_oci.proxy.ahead import narinfos, nars, wanted
from nixcache_oci.proxy.endpoints import uploads
from nixcache_oci.proxy.front import connections
from nixcache_oci.proxy.on_demand import caches as on_demand
from nixcache_oci.proxy.packs import prefetcher
from nixcache_oci.proxy.packs import wanted as pack_wanted
from nixcache_oci.proxy.page import jobs, path_facts, recorded
from nixcache_oci.proxy.uploads import intake, journal, nar_files, receiver, sent_before, spool
from nixcache_oci.proxy.writers import issuer_keys, oidc, sessions
from nixcache_oci.queue import folder, pace, runner
from nixcache_oci.queue import spool as queue_spool
from nixcache_oci.settings import variables

HEADING: Final = "## Bounds"
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB
_INTRODUCTION: Final = """What another side may make the programs hold, do or wait for. A bound is one for
all of it together unless it says otherwise. What goes beyond is named in one line of the log, once and not
each time, and the rest goes on with what it had. The numbers are the code's own; each row's test holds it,
and most of them try twice the bound."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One bound.

    Attributes:
        what: is bounded.
        limit: how much, with its unit.
        beyond: what happens then.
        test: holds it, ``tests/…py::test_…``.
    """

    what: str
    limit: str
    beyond: str
    test: str


def show_bytes(size: int) -> str:
    """Write a number of bytes in the largest unit that it is a whole number of."""
    for unit, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if size % unit == 0:
            return f"{size // unit:,} {name}"
    return f"{size:,} bytes"


def _seconds(seconds: float) -> str:
    return f"{seconds:g} s"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds < 48 * 3600 else f"{seconds / 86400:g} days"


_HOSTILE: Final = "tests/hostile/test_registry_bounds.py"
_FORMER: Final = "tests/maintenance/test_gc_former.py"
_TOTALS: Final = "tests/hostile/test_client_totals.py"
_ANSWERS: Final = "tests/hostile/test_client_answers.py"
_AHEAD: Final = "tests/proxy/ahead/test_nars.py"
_NARINFOS_AHEAD: Final = "tests/proxy/ahead/test_narinfos.py"
_ON_DEMAND: Final = "tests/proxy/test_on_demand.py"
_PAGE: Final = "tests/proxy/page/test_bounds.py"
_CROWDS: Final = "tests/hostile/test_bounds.py"
_UPLOADS: Final = "tests/hostile/test_uploads.py"
_SPOOL: Final = "tests/proxy/uploads/test_spool.py"
_OIDC: Final = "tests/proxy/writers/test_oidc.py"

BOUNDS: Final[dict[str, tuple[Bound, ...]]] = {
    "What a registry lists": (
        Bound("segments of a cache", f"{listing.MAX_SEGMENTS:,}, the newest",
              "the others are left out", f"{_HOSTILE}::test_segments"),
        Bound("segments that only their tags name",
              f"{listing.MAX_SEGMENTS:,}, and {show_bytes(listing.MAX_UNLISTED_BYTES)} of manifests",
              "the newest are read; gc writes nothing", f"{_HOSTILE}::test_tags_that_no_index_lists"),
        Bound("a manifest or an index",
              f"{show_bytes(manifest.MAX_MANIFEST_BYTES)}, "
              f"a segment's {show_bytes(manifest.MAX_WRITTEN_MANIFEST_BYTES)}",
              "not read", "tests/hostile/test_registry_data.py::test_a_manifest_of_100_000_layers"),
        Bound("values of one JSON document", f"{document.MAX_VALUES:,}",
              "it is malformed", f"{_HOSTILE}::test_indexes_of_many_small_values"),
        Bound("one table, inflated",
              f"{show_bytes(table.MAX_TABLE_BYTES)}, and {table_inflation._MAX_RATIO} times what was sent",
              "it is damaged", f"{_HOSTILE}::test_tables_that_inflate_to_much_more"),
        Bound("all tables, on disk", show_bytes(table_budget.MAX_ALL_TABLES_BYTES),
              "the newest that fit are served", f"{_HOSTILE}::test_all_tables_together"),
        Bound("narinfos", f"{table_budget.MAX_ENTRIES:,}",
              "the newest that fit are served", f"{_HOSTILE}::test_all_entries_together"),
        Bound("a table's header",
              f"{show_bytes(table.MAX_HEADER_BYTES)}, {table_file._MAX_RECORDED_KEYS} keys",
              "it is damaged; other keys are not seen", f"{_HOSTILE}::test_headers"),
        Bound("variants of one path that are compared", f"{catalog.MAX_VARIANTS}",
              "the others do not count", f"{_HOSTILE}::test_tables_that_all_list_one_path"),
        Bound("a narinfo", f"{show_bytes(table_search.MAX_STANZA_BYTES)}, {narinfo.MAX_LINES} lines",
              "a miss", f"{_HOSTILE}::test_signatures_and_references"),
        Bound("signatures of one key that are verified, a narinfo", f"{signature.TRIES_PER_KEY}",
              "it counts as unsigned",
              "tests/nix/test_signature.py::test_few_signatures_of_a_key_are_verified"),
        Bound("a version 1 document",
              f"{show_bytes(version1.MAX_DOCUMENT_BYTES)}, "
              f"{version1.MAX_ENTRIES:,} entries, {json_stream.MAX_VALUE_CHARACTERS:,} characters an entry",
              "it is damaged", f"{_HOSTILE}::test_documents_of_version_1"),
        Bound("segments that are missing, remembered",
              f"{regression.MAX_MISSING}, and {show_bytes(regression._MAX_BYTES)} of file",
              "counted no further", f"{_HOSTILE}::test_segments_that_change_at_each_look"),
        Bound("the saved index", f"{show_bytes(index_folder._MAX_LISTING_BYTES)}",
              "fetched anew", "tests/cache/test_index_folder.py::test_saved_files_have_limits"),
        Bound("former versions and segments that an index remembers", f"{former.MAX_FORMER:,}, the newest",
              "the others stay in the registry", "tests/cache/test_former.py::test_the_newest_are_kept"),
        Bound("remembered manifests that are kept for the whole grace", f"{former_reader.MOST_YOUNG:,}",
              "the oldest are deleted after gc's minimal age",
              f"{_FORMER}::test_too_many_versions_go_before_the_grace"),
        Bound("versions of the index with a tag, kept for the whole grace", f"{former_reader.MOST_TAGGED}",
              "older ones go after the minimal age",
              "tests/maintenance/test_index_versions.py::test_tags_of_versions_stay_few"),
        Bound("tags of others, in a cache that remembers", f"{former_reader.MOST_OTHER_TAGS}",
              "nothing remembered is deleted; a warning", f"{_FORMER}::test_many_tags_of_others_keep_all"),
        Bound("remembered manifests that are gone", f"{collect._MOST_FORGOTTEN}",
              "the index is written without them", f"{_FORMER}::test_what_is_gone_is_forgotten_in_time"),
        Bound("rest of gc that an index asks for", "the grace",
              "everything is read",
              "tests/maintenance/test_gc_idle.py::test_no_note_holds_longer_than_the_grace"),
        Bound("a pack", show_bytes(MAX_PACK_BYTES),
              "not read", "tests/hostile/test_registry_data.py::test_slices_that_lie_nowhere"),
    ),
    "What a server answers": (
        Bound("interim answers (1xx) before an answer", f"{session.MOST_INTERIM_ANSWERS}",
              "the connection is cut",
              "tests/hostile/test_floods.py::test_a_flood_before_an_answer_stops_nobody"),
        Bound("all heads of an answer", show_bytes(session.MOST_HEAD_BYTES),
              "the connection is cut",
              "tests/clients/test_http_head.py::test_what_comes_before_a_head_is_bounded"),
        Bound("time to a final head, redirects included",
              "30 s; narinfos of an upstream 10 s once connected, NARs 300 s",
              "it counts as no answer",
              "tests/clients/test_http_head.py::test_a_registrys_head_may_not_drip"),
        Bound("rate of manifests, lists and tokens, at least",
              f"{show_bytes(reply.DOCUMENT_BYTES_PER_SECOND)} a second of each 30 s",
              "it counts as no answer",
              "tests/clients/test_http_minimum_rate.py::test_a_registrys_document_may_not_drip"),
        Bound("rate of tables, packs and NARs, at least",
              f"{show_bytes(reply.STREAM_BYTES_PER_SECOND)} a second of each 30 s",
              f"resumed; given up after {reply.RESUMED_WINDOWS} such times",
              "tests/clients/test_http_minimum_rate.py::test_a_registrys_blob_may_not_drip"),
        Bound("framing without content: chunk sizes, extensions, trailers",
              "30 s; before a NAR's first byte 300 s",
              "it stalled", "tests/clients/test_http_minimum_rate.py::test_framing_is_no_progress"),
        Bound("the URL of a narinfo", f"{narinfo.MAX_URL_CHARACTERS:,} characters",
              "it is malformed", "tests/nix/test_narinfo.py::test_urls_end"),
        Bound("redirects", f"{client.MOST_REDIRECTS}",
              "refused", "tests/clients/test_upstream_redirect.py::test_redirects_end"),
        Bound("a token service's answer", show_bytes(transport._TOKEN_LIMIT),
              "it holds no token", f"{_TOTALS}::test_a_token_is_bounded"),
        Bound("tags",
              f"{tags._MOST_TAGS:,}, {show_bytes(tags._MOST_BYTES)}, "
              f"{tags._MOST_PAGES:,} pages, {tags._MOST_SECONDS} s",
              "an error; what was there is served on", f"{_TOTALS}::test_a_list_of_tags_is_bounded_in_total"),
        Bound("versions of a package at GitHub",
              f"{packages._MOST_VERSIONS:,}, {show_bytes(packages._MOST_BYTES)}, "
              f"{packages._MOST_PAGES:,} pages",
              "gc ends, and deletes nothing", f"{_TOTALS}::test_a_list_of_versions_is_bounded_in_total"),
        Bound("NARs fetched ahead of clients from one upstream",
              f"{nars.MOST_AT_ONCE} at once, clients' requests included; "
              f"{show_bytes(wanted.MAX_NAR_BYTES)} each; a quarter of the packs' memory",
              "left to clients", f"{_AHEAD}::test_few_are_fetched_at_once"),
        Bound("bytes of a NAR fetched ahead", "its FileSize",
              "dropped; the client's own request is passed on", f"{_AHEAD}::test_wrong_bytes_never_serve"),
        Bound("narinfos looked up ahead of clients",
              f"{narinfos.MOST_AT_ONCE} at once, {narinfos.MOST_REFERENCES:,} references of one, "
              f"{narinfos.MOST_WAITING:,} wait",
              "left to clients", f"{_NARINFOS_AHEAD}::test_references_without_end_are_bounded"),
        Bound("narinfos of upstreams that are kept",
              f"{show_bytes(narinfo_store.MAX_BYTES)}, {show_bytes(narinfo_store.MAX_NARINFO_BYTES)} each, "
              f"for {narinfo_store.KEPT_SECONDS / 86_400:.0f} days; three times as much on disk",
              "the least recently used are forgotten",
              "tests/clients/test_upstream_kept.py::test_narinfos_are_bounded_in_bytes"),
        Bound("narinfos whose NARs may be fetched ahead",
              f"{wanted.MOST_WANTED:,}, {wanted.MOST_REFERENCES:,} references, "
              f"for {_seconds(wanted.KEPT_SECONDS)}",
              "the oldest are forgotten; references do not count for the order",
              "tests/proxy/ahead/test_wanted.py::test_what_is_remembered_is_bounded"),
        Bound("pause that an upstream asks for before anything is fetched ahead again",
              _seconds(peer.MOST_AHEAD_PAUSE_SECONDS),
              "that long",
              "tests/clients/test_upstream_find.py::test_nothing_is_fetched_ahead_after_a_refusal"),
        Bound("narinfos of an import from the web", show_bytes(web._MOST_TOTAL_BYTES),
              "the import ends", f"{_TOTALS}::test_imported_narinfos_are_bounded_in_total"),
        Bound("what an error repeats of an answer", f"{errors._MOST_CHARACTERS} characters, escaped",
              "cut", f"{_ANSWERS}::test_an_answer_that_makes_no_sense_is_the_clients_own_error"),
    ),
    "What clients of the proxy do": (
        Bound("caches that are opened because a request names them",
              f"{on_demand.MOST_OPEN}; paused after {_seconds(on_demand.PAUSE_SECONDS)} without use, closed "
              f"after {_seconds(on_demand.CLOSE_SECONDS)}",
              "the least recently used is closed; if all are in use, 404",
              f"{_ON_DEMAND}::test_few_are_open_and_the_least_recently_used_goes"),
        Bound("what is read of one of these",
              f"{on_demand.MOST_ENTRIES:,} narinfos, {show_bytes(on_demand.MOST_TABLE_BYTES)} of tables",
              "the newest segments that fit are read, and what is left out is said",
              f"{_ON_DEMAND}::test_a_large_cache_is_read_in_part"),
        Bound("narinfos of all of these", f"{on_demand.MOST_ALL_ENTRIES:,}",
              "the least recently used caches are closed",
              f"{_ON_DEMAND}::test_all_narinfos_together_are_bounded"),
        Bound("these caches whose tables are read at a time", f"{on_demand.MOST_READ_AT_ONCE}",
              "they wait", f"{_ON_DEMAND}::test_few_caches_are_read_at_a_time"),
        Bound("time to read one of them", _seconds(on_demand.READ_SECONDS),
              "it has failed, and is not asked again for a while",
              f"{_ON_DEMAND}::test_a_slow_registry_gives_its_turn_back"),
        Bound("their indexes on disk", show_bytes(on_demand.MOST_DISK_BYTES),
              "the oldest go, before more is read", f"{_ON_DEMAND}::test_the_disk_is_bounded"),
        Bound("folders of these indexes", f"{on_demand.MOST_FOLDERS:,}",
              "the oldest go", f"{_ON_DEMAND}::test_folders_are_bounded_in_number"),
        Bound("prefixes that lead to no cache, remembered",
              f"{on_demand.MOST_ABSENT:,}, for {_seconds(on_demand.ABSENT_SECONDS)}",
              "404 without asking; older ones are asked for again",
              f"{_ON_DEMAND}::test_what_is_no_cache_is_not_asked_again_for_a_minute"),
        Bound("connections", f"{open_files.MOST_CONNECTIONS:,}, fewer where few files may be open",
              "the oldest idle ones are closed",
              "tests/proxy/front/test_connections.py::test_the_oldest_idle_connection_makes_room"),
        Bound("time for a request's head", _seconds(connections.HEAD_SECONDS),
              "cut", f"{_CROWDS}::test_half_heads"),
        Bound("time in which a client takes no byte", _seconds(connections.STALL_SECONDS),
              "cut", "tests/proxy/front/test_connections.py::test_who_takes_nothing_for_minutes_is_cut"),
        Bound("NARs that stream, and HEADs of upstreams' NARs",
              f"{nar_streams.MOST_STREAMS}; {nar_streams.MOST_WAITING:,} wait, "
              f"for {_seconds(nar_streams.WAIT_SECONDS)}",
              "404, upon which Nix goes elsewhere", f"{_CROWDS}::test_readers_of_nothing"),
        Bound("pages that are searched for or written", f"one at a time, for {_seconds(jobs.JOB_SECONDS)}; "
              f"{jobs.MOST_WAITING - 1} wait",
              "503", f"{_PAGE}::test_pages_wait_for_their_turn_up_to_a_number"),
        Bound("what a page lists",
              f"{path_facts.MOST_SHOWN} store paths or keepers; five times as many roots",
              "the rest is left out, which the page says",
              "tests/proxy/page/test_page.py::test_long_lists_are_cut"),
        Bound("paths of a closure that a page follows", f"{path_facts.MOST_FOLLOWED:,}",
              "sizes are shown as at least that",
              "tests/cache/test_closure.py::test_a_closure_is_followed_up_to_a_limit"),
        Bound("records that a page reads of a cache",
              f"{recorded.MOST_RECORDED:,} roots and failures, of {recorded.MOST_CACHES} caches at a time; "
              "a pin counts as 20",
              "the newest tables' are read, which the page says",
              f"{_PAGE}::test_records_are_read_up_to_a_number"),
        Bound("answers that nobody reads", show_bytes(connections.MOST_UNREAD_BYTES),
              "who has read nothing for longest is cut", f"{_CROWDS}::test_small_nars_that_nobody_reads"),
        Bound("requests and bodies sent ahead",
              f"{show_bytes(connections.MOST_HELD_BYTES)}, "
              f"{show_bytes(connections.MOST_HELD_OF_ONE_BYTES)} a client",
              "cut", f"{_CROWDS}::test_bodies_and_requests_ahead"),
        Bound("blobs looked for that nobody knows of", f"{nar_source.MOST_UNKNOWN} at once",
              f"they wait; after two answers, what is not there is 404 for {nar_source._MISSING_SECONDS:g} s",
              "tests/proxy/test_nar_source.py::test_few_unknown_digests_are_asked_for_at_once"),
        Bound("NARs fetched ahead that a client did not ask for",
              f"{wanted.FIRST_UNREAD}, and two more for each that it used",
              "left to the client", f"{_AHEAD}::test_unread_nars_are_bounded_in_number"),
        Bound("narinfos looked up ahead that a client did not ask for",
              f"{narinfos.FIRST_UNREAD}, and two more for each that it used",
              "left to the client", f"{_NARINFOS_AHEAD}::test_a_client_that_uses_little_gets_little"),
        Bound("clients that NARs are fetched ahead of", f"{wanted.MOST_CLIENTS}",
              "the oldest is forgotten", "tests/proxy/ahead/test_wanted.py::test_clients_are_bounded"),
        Bound("narinfos that one upstream is asked for at once", f"{peer.MOST_LOOK_UPS}",
              "they wait",
              "tests/clients/test_upstream_find.py::test_one_upstream_is_asked_for_few_narinfos_at_once"),
        Bound("connections to one upstream over TLS, for narinfos and what is fetched ahead",
              f"{curl_generation.MOST_CONNECTIONS}, with {curl_generation.MOST_STREAMS} requests each by "
              f"HTTP/2; {curl_generation.MOST_IDLE} of all upstreams stay open",
              "they wait", "tests/clients/test_http_shared.py::test_bursts_share_connections"),
        Bound("look-ups at upstreams", f"128 at once, {lookup.MOST_LOOK_UPS:,} with those that wait",
              "404, counted as unknown", f"{_CROWDS}::test_look_ups_at_upstreams_are_joined"),
        Bound("NARs of packs that wait to be fetched ahead",
              f"{prefetcher._MOST_WANTED:,}; {prefetcher._MOST_WANTED_AT_REST:,} while nothing is on its way",
              "fetched when they are asked for",
              "tests/proxy/packs/test_nars.py::test_no_more_wait_than_are_of_use"),
        Bound("parts of a pack that are wanted one after the other", f"{pack_wanted._MAX_BATCHES} times",
              "it comes whole",
              "tests/proxy/packs/test_ranges.py::test_a_pack_that_is_wanted_bit_by_bit_comes_whole"),
        Bound("refreshes that are asked for",
              f"{refresh_coalescer.MOST_IN_A_ROW} in {_seconds(refresh_coalescer.WINDOW_SECONDS)}",
              "who asks shares the next one", f"{_CROWDS}::test_refreshes_are_joined"),
        Bound("lines of one kind in the log",
              f"{log.MOST_LINES_OF_A_KIND} in {_seconds(log.KIND_SECONDS)}, "
              f"{log.MOST_VALUE_CHARACTERS} characters a field",
              "counted in one line; cut", f"{_CROWDS}::test_a_flood_in_the_log"),
    ),
    "What uploaders send": (
        Bound("NARs that are not published yet", f"{variables.UPLOAD_SPACE.name}, 20 GB",
              "413", f"{_UPLOADS}::test_a_full_spool_refuses_until_it_is_published"),
        Bound("paths that are not published yet", f"{spool.MOST_PATHS:,}",
              "413", f"{_SPOOL}::test_paths_are_bounded"),
        Bound("NARs without a narinfo",
              f"{spool.MOST_ORPHANS:,}, for {_hours(spool.ORPHAN_SECONDS)}",
              "the oldest are dropped", f"{_SPOOL}::test_orphans_are_bounded"),
        Bound("NARs in memory, each below " + show_bytes(spool.SMALL_NAR_BYTES),
              show_bytes(spool.MOST_MEMORY_BYTES), "they wait for their narinfo in files",
              f"{_SPOOL}::test_memory_is_bounded"),
        Bound("what one path that stays keeps of published ones", show_bytes(journal.FILE_BYTES),
              "counted as space", "tests/proxy/uploads/test_journal.py::"
              "test_a_file_goes_when_nothing_in_it_is_needed"),
        Bound("NARs that arrive at once, into files", f"{nar_files.MOST_AT_ONCE}",
              f"they wait, for {_seconds(nar_files.TURN_SECONDS)}; 403",
              f"{_SPOOL}::test_too_many_at_once_wait_and_are_refused"),
        Bound("what a NAR unpacks to",
              f"{show_bytes(intake.FREE_NAR_BYTES)}, and {intake.MOST_RATIO:,} times what was sent",
              "400", f"{_UPLOADS}::test_nars_that_are_wrong"),
        Bound("a narinfo", show_bytes(MAX_NARINFO_BYTES), "413",
              f"{_UPLOADS}::test_narinfos_that_are_wrong"),
        Bound("signatures of a path", f"{receiver.MOST_SIGNATURES}", "400",
              f"{_UPLOADS}::test_signatures_are_bounded"),
        Bound("a file that is not kept, such as a log", show_bytes(uploads.MOST_DROPPED_BYTES),
              "413", f"{_UPLOADS}::test_other_bodies_are_bounded"),
        Bound("a mass query", show_bytes(uploads.MOST_QUERY_BYTES),
              "413", f"{_UPLOADS}::test_other_bodies_are_bounded"),
        Bound("silence within a body", _seconds(uploads.STALL_SECONDS), "400",
              "tests/proxy/uploads/test_bodies.py::test_a_body_that_stalls_is_refused"),
        Bound("old URLs of NARs that went into packs",
              f"{sent_before.MOST_KEPT:,}, for {_hours(sent_before.KEPT_SECONDS)}", "404",
              "tests/proxy/uploads/test_sent_before.py::test_the_oldest_are_forgotten"),
        Bound("a TLS handshake", _seconds(tls.HANDSHAKE_SECONDS), "cut; others connect meanwhile",
              "tests/hostile/test_writers.py::test_handshakes_that_never_end_hold_up_nobody"),
        Bound("a JSON Web Token", show_bytes(oidc.MOST_TOKEN_BYTES), "403",
              f"{_OIDC}::test_wrong_tokens_are_told_what_they_miss"),
        Bound("passwords of jobs",
              f"{sessions.MOST_SESSIONS:,}, until {_hours(sessions.JOB_SECONDS)} after their token, "
              f"which counts for {_hours(sessions.JOB_SECONDS)}",
              "the oldest ends", f"{_OIDC}::test_sessions_end"),
        Bound("keys of an issuer",
              f"{issuer_keys.MOST_KEYS}, in {show_bytes(issuer_keys.MOST_BYTES)}",
              "the first count; fetching fails", f"{_OIDC}::test_keys_of_an_issuer_are_bounded"),
        Bound("fetches of an issuer's keys", f"one in {_seconds(issuer_keys.AGAIN_SECONDS)}",
              "unknown keys are 403", f"{_OIDC}::test_a_flood_of_unknown_keys_asks_once"),
        Bound("keys that cannot be fetched anew", _hours(issuer_keys.STALE_SECONDS),
              "403", f"{_OIDC}::test_keys_outlive_an_outage_of_their_issuer"),
    ),
    "What is in an OCI layout": (
        Bound("`index.json`, and each manifest", show_bytes(manifest.MAX_MANIFEST_BYTES),
              "an error", "tests/clients/test_layout_odd_files.py::test_huge_sparse_files_are_not_read"),
        Bound("files that are hashed before a part is sent",
              f"{layout_file.MAX_CHECKS}, with those that wait",
              "404", "tests/clients/test_layout_check.py::test_checks_are_bounded"),
    ),
    "What is in the queue's folder, and in Nix's database": (
        Bound("an event", show_bytes(queue_spool.MAX_EVENT_BYTES),
              "dropped", "tests/queue/test_spool.py::test_an_event_is_bounded"),
        Bound("events that are read, and not done with", f"{queue_spool.MAX_EVENTS:,}",
              "the others wait in the folder", "tests/queue/test_spool.py::test_reading_is_bounded"),
        Bound("paths of a batch", f"{pace.Pace().most_paths:,}, and what one event names beyond them",
              "the others are of the next one", "tests/queue/test_spool.py::test_reading_is_bounded"),
        Bound("time until a batch is published",
              f"{_seconds(pace.Pace().longest)} after its first path; "
              f"{_seconds(pace.MAX_WAIT)} between two tries",
              "due, however many paths come", "tests/queue/test_pace.py::test_a_batch_is_due"),
        Bound("lines about what is dropped", f"{runner.MAX_TOLD} a look, of each kind",
              "counted in one line", "tests/journey/test_queue.py::test_events_of_anybody_stop_nothing"),
        Bound("rows of Nix's database", f"{database.MOST_ROWS:,} at once",
              "queued, then the next are read",
              "tests/queue/test_watching.py::test_a_look_takes_no_more_rows_than_its_bound"),
        Bound("a database that is locked, or changes while it is read",
              f"{database._TRIES} tries of {_seconds(database._BUSY_SECONDS)}",
              "said; the next look tries again",
              "tests/clients/test_store_database.py::test_a_database_that_stays_locked_is_given_up"),
        Bound("what the last run left about itself", show_bytes(folder._MAX_STATE_BYTES),
              "as if there were none", "tests/queue/test_folder.py::test_a_state_that_cannot_be_read"),
        Bound("`queue drain`", f"{queue._USUAL_TIMEOUT} s, or `--timeout` up to {queue._MAX_TIMEOUT:,}",
              "exit status 1; what is left stays queued",
              "tests/journey/test_queue.py::test_a_failed_batch_stays_and_says_why"),
    ),
    "What a flake says": (
        Bound("an attribute's name", f"{evaluator.MOST_NAME_BYTES:,} bytes",
              "that output fails", "tests/clients/test_evaluate.py::test_long_names"),
        Bound("sets within a set that is looked through",
              f"{evaluator.MOST_LEVELS} levels, {evaluator.MOST_NESTED:,} attributes",
              "one failure that names the limit",
              "tests/clients/test_evaluate_paths.py::test_sets_without_end"),
        Bound("calls of Nix for one build, where it stops at a failure", f"{build.MOST_CALLS:,}",
              "the rest is named as not tried",
              "tests/clients/test_build.py::test_a_nix_that_always_fails_is_given_up"),
        Bound("lines about outputs that are left out, or fail", f"{publish.MOST_REASONS} each",
              "counted in one line", "tests/journey/test_publish.py::test_what_is_left_out_is_said"),
    ),
}  # fmt: skip


def render_bounds() -> str:
    """Write the section, one table for each side."""
    lines = [HEADING, "", *_INTRODUCTION.splitlines(), ""]
    for side, bounds in BOUNDS.items():
        lines += [f"### {side}", "", "| what | bound | beyond it | test |", "|---|---|---|---|"]
        lines += [f"| {one.what} | {one.limit} | {one.beyond} | `{one.test}` |" for one in bounds]
        lines.append("")
    return "\n".join(lines)
