"""What ``publish``, ``push`` and ``import`` print with ``--json``; see docs/json.md. No I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nixcache_oci.cli.list import failed_json
from nixcache_oci.cli.publish_summary import OutputRow
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.publish_plan import PublishPlan


@dataclass(frozen=True, slots=True)
class PublishDocument:
    """What a publish came to.

    Attributes:
        cache: the repository.
        is_dry_run: whether nothing was to be sent.
        public_keys: that it is signed by.
        plan: None where the cache could not be read, and that is no failure.
        published: None where nothing was to be sent.
        left_out: why something that was asked for is not published, by what names it.
        outputs: what was built, and what was not.
        seconds: that all of it took.
    """

    cache: str
    is_dry_run: bool
    public_keys: Iterable[str]
    plan: PublishPlan | None
    published: Published | None
    left_out: Mapping[str, str]
    outputs: Iterable[OutputRow]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Tell all of it; sizes are bytes."""
        plan, published = self.plan or PublishPlan(), self.published or Published()
        paths = {info.store_path.base_name: str(info.store_path) for info in plan.listed}
        relisted = {info.store_path for info, _ in plan.relist}
        failed = {paths.get(name, name): why for name, why in {**self.left_out, **published.failed}.items()}
        return {
            "cache": self.cache,
            "dryRun": self.is_dry_run,
            "plan": None if self.plan is None else _plan_json(plan),
            "pushed": [
                {"path": str(one.store_path), "narSize": one.nar_size, "fileSize": one.file_size}
                for one in published.listed
                if one.store_path not in relisted
            ],
            "signed": [str(one.store_path) for one in published.listed if one.store_path in relisted],
            "failed": failed_json(failed),
            "outputs": [
                {"attr": one.attr, "paths": list(one.paths), "reason": one.reason} for one in self.outputs
            ],
            "written": [str(segment.tag) for segment in published.segments],
            "indexConfirmed": published.is_index_confirmed,
            "publicKeys": list(self.public_keys),
            "seconds": round(self.seconds, 3),
        }


def _plan_json(plan: PublishPlan) -> dict[str, object]:
    return {
        "upstream": len(plan.upstream),
        "cached": len(plan.cached),
        "sign": [str(info.store_path) for info, _ in plan.relist],
        "push": [{"path": str(info.store_path), "narSize": info.nar_size} for info in plan.push],
    }
