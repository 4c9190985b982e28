"""What the verb gc prints."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.cli import gc
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.layout import Layout
from nixcache_oci.maintenance.gc.collect import Collected
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.publish import publish


def test_quiet_prints_results(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `-q` there is no plan, but for a dry run, of which it is the result."""
    asyncio.run(publish(Layout(layout), [store_object("one")]))
    assert main(["gc", "-q", "--force"]) == DONE
    assert capsys.readouterr() == ("0 segments written, 0 manifests deleted\n", "")
    assert main(["-q", "gc", "--dry-run"]) == DONE
    assert "1 segment " in capsys.readouterr().out


@pytest.mark.parametrize("is_refused", [False, True])
def test_what_waits_is_no_failure(
    layout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, is_refused: bool
) -> None:
    """A registry that keeps what former versions of the index list lets it go with them, without help."""
    asyncio.run(publish(Layout(layout), [store_object("one")]))
    one, two = Digest.of(b"one"), Digest.of(b"two")
    waiting = ((one, EPOCH), (two, EPOCH + timedelta(days=1)))
    collected = Collected(waiting=waiting, refused=((one, "why"),) if is_refused else ())

    async def collect(*_: object, **__: object) -> Collected:
        return collected

    monkeypatch.setattr(gc, "carry_out_gc", collect)
    status = FAILED if is_refused else DONE
    assert main(["gc", "-q", "--force"]) == status
    out, err = capsys.readouterr()
    assert "2 segments cannot be deleted yet: former versions" in out
    assert "after 1970-01-02T00:00:00Z" in out
    assert ("why" in err) == is_refused
    assert main(["gc", "--json", "--force"]) == status
    done = json.loads(capsys.readouterr().out)["done"]
    assert done["waiting"] == {str(one): "1970-01-01T00:00:00Z", str(two): "1970-01-02T00:00:00Z"}
