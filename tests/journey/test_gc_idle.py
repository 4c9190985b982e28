"""A gc of a cache to which nobody has published, by the real program: what it costs."""

import json
from datetime import timedelta
from pathlib import Path

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.clients.repository import Repository
from tests.maintenance.model_publisher import Thing, push_things
from tests.support.journey import push_with, settings_of
from tests.support.nix import NixSandbox
from tests.support.publisher import Machine
from tests.support.registries import Ghcr

SEGMENTS = 60
IDLE_REQUESTS = 4  # tags, refused; token; tags; index


def test_an_idle_gc_costs_a_handful_of_requests(ghcr: Ghcr, nix: NixSandbox, tmp_path: Path) -> None:
    """Token, tags and index, however many condemned segments wait; and after a publish it reads all."""
    started = now() - timedelta(days=2)

    async def publish(repository: Repository) -> None:
        for number in range(SEGMENTS):
            thing = Thing(f"x-{number}")
            created = started + timedelta(seconds=number)
            record = PublishRecord(f"push/{number}", str(number), created, (("x", thing.path),))
            await push_things(repository, [thing], [record], created)

    push_with(ghcr, publish)
    machine = Machine(tmp_path / "machine", nix, settings_of(ghcr, tmp_path))
    arguments = ("gc", "--min-age-hours", "0", "--scope-ttl", "0")

    def collect(*more: str) -> tuple[str, int]:
        ghcr.server.reset_requests()
        ran = machine.run(*arguments, *more).check()
        return ran.stdout, len(ghcr.server.requests)

    assert "merge" in collect()[0]
    assert f"{SEGMENTS} segments" in collect()[0]
    told, requests = collect()
    assert told == "nothing to collect: nothing was published since the last gc\n"
    assert requests <= IDLE_REQUESTS
    document = json.loads(collect("--json")[0])
    assert (document["plan"], document["roots"], document["done"]["deleted"]) == ([], None, [])
    assert document["idleUntil"] > now().isoformat()
    for flag in ("--dry-run", "--force"):
        told, requests = collect(flag)
        assert f"{SEGMENTS} segments" in told
        assert requests > SEGMENTS

    async def publish_again(repository: Repository) -> None:
        await push_things(repository, [Thing("new")], [], now())

    push_with(ghcr, publish_again)
    told, requests = collect()
    assert f"{SEGMENTS} segments" in told
    assert requests > SEGMENTS
