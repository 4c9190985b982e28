"""Whether a publish that sends nothing needs a record: only if that changes what gc counts.

Pure. Skipping must not change any decision of ``maintenance.gc.roots``, now or later; if in doubt, a record
is written. Source: design section 2, "Table", and section 5, promise 1.
"""

from collections.abc import Iterable, Sequence

from nixcache_oci.cache.record import PUSH_SCOPE_START, UNRECORDED, PublishRecord


def changes_nothing(record: PublishRecord, recorded: Iterable[PublishRecord]) -> bool:
    """Check whether gc counts the same without this record.

    If the newest run of a scope left several records, none is skipped: a run may have several jobs.

    Args:
        record: to be written.
        recorded: of all scopes.
    """
    scope = [one for one in recorded if one.scope == record.scope]
    if not scope:
        return False
    newest = max(one.time for one in scope)
    if newest > record.time or record.time - newest >= UNRECORDED:
        return False
    if _is_whole(record):
        last = _only([one for one in scope if one.time == newest])
        return (
            last is not None
            and _is_whole(last)
            and sum(one.run == last.run for one in scope) == 1
            and set(last.roots) == set(record.roots)
            and set(last.failed) == set(record.failed)
            and last.extra == record.extra
        )
    names = {name for name, _ in record.roots}
    return not record.failed and not record.extra and all(_is_current(record, name, scope) for name in names)


def _is_current(record: PublishRecord, name: str, scope: Sequence[PublishRecord]) -> bool:
    """Check whether the last record of a name says the same."""
    paths = {path for root, path in record.roots if root == name}
    named = [one for one in scope if name in one.failed or any(root == name for root, _ in one.roots)]
    newest = max((one.time for one in named), default=None)
    last = _only([one for one in named if one.time == newest])
    return (
        last is not None
        and sum(one.run == last.run for one in named) == 1
        and name not in last.failed
        and {path for root, path in last.roots if root == name} == paths
        and not any(_is_whole(one) and one.time >= last.time and one is not last for one in scope)
    )


def _is_whole(record: PublishRecord) -> bool:
    """Check whether it supersedes names that it lacks."""
    return not record.is_partial and not record.scope.startswith(PUSH_SCOPE_START)


def _only(records: Sequence[PublishRecord]) -> PublishRecord | None:
    return records[0] if len(records) == 1 else None
