"""What the verb gc prints."""

import asyncio
from pathlib import Path

import pytest

from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE
from nixcache_oci.clients.layout import Layout
from tests.support.objects import store_object
from tests.support.publish import publish


def test_quiet_prints_results(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `-q` there is no plan, but for a dry run, of which it is the result."""
    asyncio.run(publish(Layout(layout), [store_object("one")]))
    assert main(["gc", "-q", "--force"]) == DONE
    assert capsys.readouterr() == ("0 segments written, 0 manifests deleted\n", "")
    assert main(["-q", "gc", "--dry-run"]) == DONE
    assert "1 segment " in capsys.readouterr().out
