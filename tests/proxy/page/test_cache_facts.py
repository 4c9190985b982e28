"""The lines that a page offers to be copied."""

import json

import pytest

from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.proxy.page.cache_facts import CacheFacts, conf_lines, flake_lines
from tests.support.nix import NixSandbox

URL = "http://127.0.0.1:37515/owner/name"
# A key's name may be any word.
NAMES = ["cache-1", 'a"b', "a\\", "${abort}", "$${x}", "''", "<script>", "*/", "]"]


def facts_of(*keys: str, are_configured: bool = True) -> CacheFacts:
    return CacheFacts(
        "name", "./", 0, 0, None, (), is_ready=True, keys=keys, are_keys_configured=are_configured
    )


@pytest.mark.needs("nix-instantiate")
@pytest.mark.parametrize("are_configured", [True, False])
def test_nix_reads_in_a_flake_what_the_page_says(nix: NixSandbox, are_configured: bool) -> None:
    """Whatever a key is called; and the lines trust none that nobody configured."""
    keys = [str(PublicKey(name, bytes(32))) for name in NAMES]
    text = "\n".join(flake_lines(URL, facts_of(*keys, are_configured=are_configured)))
    run = nix.run("nix-instantiate", "--eval", "--strict", "--json", "-E", f"{{ {text} }}").check()
    trusted = {"extra-trusted-public-keys": keys} if are_configured else {}
    assert json.loads(run.stdout)["nixConfig"] == {"extra-substituters": [URL], **trusted}


@pytest.mark.parametrize("key", ["a\u202eb:x", "a b:x", "a#b:x", "a\nb:x", ""])
def test_no_key_is_offered_that_is_not_what_it_looks_like(key: str) -> None:
    """Nix would read another one, or a person would compare another one."""
    facts = facts_of(key, are_configured=False)
    assert conf_lines(URL, [facts]) == (f"extra-substituters = {URL}", "fallback = true")
    assert flake_lines(URL, facts) == ("nixConfig = {", f'  extra-substituters = [ "{URL}" ];', "};")
