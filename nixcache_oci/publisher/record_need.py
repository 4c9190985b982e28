"""Whether a publish that sends nothing has to leave a record: only where that changes what gc counts.

Pure. What is skipped must not change any decision of ``maintenance.gc.roots``, now or later; where in doubt,
a record is written. Source: design section 2, "Table", and section 5, promise 1.
"""

from collections.abc import Iterable, Sequence

from nixcache_oci.cache.record import PUSH_SCOPE_START, UNRECORDED, PublishRecord


def changes_nothing(record: PublishRecord, recorded: Iterable[PublishRecord]) -> bool:
    """Tell whether gc counts the same without this record.

    The jobs of one run are told apart from one job by the runs before: where the newest run of a scope left
    several records, none is skipped.

    Args:
        record: what would be written.
        recorded: what publishes left, of all scopes.
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
    """Tell whether what was recorded last of a name is what this record says of it."""
    paths = {path for root, path in record.roots if root == name}
    told = [one for one in scope if name in one.failed or any(root == name for root, _ in one.roots)]
    newest = max((one.time for one in told), default=None)
    last = _only([one for one in told if one.time == newest])
    return (
        last is not None
        and sum(one.run == last.run for one in told) == 1
        and name not in last.failed
        and {path for root, path in last.roots if root == name} == paths
        and not any(_is_whole(one) and one.time >= last.time and one is not last for one in scope)
    )


def _is_whole(record: PublishRecord) -> bool:
    """Tell whether it displaces the names that it does not name."""
    return not record.is_partial and not record.scope.startswith(PUSH_SCOPE_START)


def _only(records: Sequence[PublishRecord]) -> PublishRecord | None:
    return records[0] if len(records) == 1 else None
