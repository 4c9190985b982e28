"""A diagnosis: what is wrong is named with its remedy, and what was not looked at never passes."""

import io
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from nixcache_oci.cli.doctor import print_findings
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.maintenance.checks.finding import good, skipped, warning, wrong
from nixcache_oci.nix.signature import SecretKey
from tests.support.caches import write_caches
from tests.support.journey import put, settings_of
from tests.support.objects import store_object
from tests.support.proxy import ProxyProcess
from tests.support.registries import AnyRegistry, Ghcr, docker_registry
from tests.support.server_thread import listener

KEY = SecretKey.generate("doctor-1")
REPOSITORY = "octocat/hello/nix-cache"

Diagnosis = dict[str, tuple[str, str]]


class Doctor:
    """A machine where nothing is set, and its diagnosis.

    Attributes:
        etc: folder of its nix.conf.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys
        self.patch = patch
        self.set = patch.setenv
        self.read = capsys.readouterr
        self.etc = folder / "etc"
        self.etc.mkdir()
        for name in list(os.environ):
            if name.startswith("NIXCACHE_") or name.endswith(("_TOKEN", "_proxy", "_PROXY")):
                patch.delenv(name)
        for name, value in {"HOME": "home", "XDG_DATA_HOME": "data", "NIX_CONF_DIR": "etc"}.items():
            self.set(name, str(folder / value))
        self.set("NIXCACHE_INDEX_DIR", str(folder / "index"))
        self.set("NIXCACHE_PORT", str(free_port()))
        self.set("NIXCACHE_UPSTREAM", "")

    def settle(self, registry: AnyRegistry) -> None:
        """Set what a publisher sets."""
        secret = self._folder / "key.sec"
        secret.write_text(KEY.render())
        secret.chmod(0o600)
        for name, value in settings_of(registry, self._folder).items():
            self.set(name, value)
        self.set("NIXCACHE_SIGNING_KEY_FILE", str(secret))

    def diagnose(self, *arguments: str) -> Diagnosis:
        """Level and text of the worst finding of each check; the exit status agrees with them."""
        self.read()
        status = main(["doctor", "--json", *arguments])
        document = json.loads(self.read().out)
        order = ["skipped", "good", "warning", "error"]
        found: Diagnosis = {}
        for one in document["checks"]:
            text = f"{one['text']}; {one['remedy']}"
            before = found.get(one["check"], ("skipped", ""))
            found[one["check"]] = max(before, (one["level"], text), key=lambda pair: order.index(pair[0]))
        is_wrong = "error" in levels(found)
        assert status == (FAILED if is_wrong else DONE)
        assert document["healthy"] != is_wrong
        return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def levels(diagnosis: Diagnosis) -> set[str]:
    return {level for level, _ in diagnosis.values()}


@pytest.fixture(autouse=True)
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(tmp_path, monkeypatch, capsys)


@pytest.mark.needs("nix")
def test_a_healthy_client(doctor: Doctor, ghcr: Ghcr, tmp_path: Path) -> None:
    """What `use` writes is what `doctor` wants; before that, it says so, and without a key it wants none."""
    put(ghcr, [store_object("a"), store_object("b")], [KEY])
    for name, value in settings_of(ghcr, tmp_path).items():
        doctor.set(name, value)
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        doctor.set("NIXCACHE_PORT", proxy.url.rpartition(":")[2])
        before = doctor.diagnose()
        assert before["nix.conf: substituters"][0] == "error"
        assert "nixcache-oci use --apply" in before["nix.conf: substituters"][1]
        key = str(KEY.public_key)
        assert main(["use", "--apply", "--file", str(doctor.etc / "nix.conf"), "--public-key", key]) == DONE
        after = doctor.diagnose()
    assert levels(after) == {"good"}
    assert "signing key" not in after
    assert "push" not in after
    assert "1 segment, 2 paths" in after["index"][1]
    assert "private" in after["visibility"][1]


@pytest.mark.needs("nix")
def test_a_healthy_publisher(doctor: Doctor, ghcr: Ghcr) -> None:
    """A signing key makes a publisher; its upload is cancelled, and the registry holds what it held."""
    put(ghcr, [store_object("a")], [KEY])
    doctor.settle(ghcr)
    before = (ghcr.server.tags(REPOSITORY), ghcr.server.blobs(REPOSITORY), ghcr.server.versions(REPOSITORY))
    found = doctor.diagnose()
    after = (ghcr.server.tags(REPOSITORY), ghcr.server.blobs(REPOSITORY), ghcr.server.versions(REPOSITORY))
    assert levels(found) == {"good"}
    assert found["push"][0] == "good"
    assert "as recorded" in found["signing key"][1]
    assert "proxy" not in found
    assert after == before
    assert ghcr.server.count("upload-delete") == 1


@pytest.mark.needs("nix")
def test_what_a_registry_takes_is_tried_on_demand(doctor: Doctor, ghcr: Ghcr) -> None:
    """By --publisher, which says so, and not because a signing key is there: it writes."""
    put(ghcr, [store_object("a")], [KEY])
    doctor.settle(ghcr)
    ghcr.server.deletes = True
    manifests = ghcr.server.manifests(REPOSITORY)
    tried = {"tags", "chunks", "artifact type", "deletion"}
    assert not tried & doctor.diagnose().keys()
    found = doctor.diagnose("--publisher")
    assert levels(found) == {"good"}
    assert tried <= found.keys()
    assert ghcr.server.manifests(REPOSITORY) == manifests
    ghcr.server.is_linked_elsewhere = True
    assert {doctor.diagnose("--publisher")[check][0] for check in tried} == {"skipped"}


@pytest.mark.needs("docker-registry", "nix")
def test_docker_registry_is_left_as_it_was(doctor: Doctor) -> None:
    """An empty repository is no error, and stays one: no blob, no link, no session that holds bytes.

    Of a cancelled session this registry itself keeps the state of its hash, until it purges uploads.
    """
    with docker_registry() as registry:
        doctor.settle(registry)
        found = doctor.diagnose()
        left = [path for path in registry.server.data.rglob("*") if path.is_file()]
        assert all("hashstates" in path.parts for path in left)
        assert found["push"][0] == "good"
        assert "cancelled" in found["push"][1]
        assert found["pull"][0] == "warning"
        put(registry, [store_object("a")], [KEY])
        assert levels(doctor.diagnose()) == {"good"}


def test_public_and_anonymous(doctor: Doctor, ghcr: Ghcr) -> None:
    """No token is no error where none is needed, and one where it is."""
    put(ghcr, [store_object("a")], [KEY])
    for name, value in ghcr.settings.items():
        doctor.set(name, value)
    found = doctor.diagnose()
    assert found["token"][0] == "good"
    assert found["pull"][0] == "error"
    assert found["visibility"][0] == found["index"][0] == "skipped"
    ghcr.server.private = False
    found = doctor.diagnose()
    assert (found["pull"][0], found["index"][0]) == ("good", "good")
    assert "public" in found["visibility"][1]


def test_a_token_that_may_only_read(doctor: Doctor, ghcr: Ghcr, tmp_path: Path) -> None:
    """The token is good, and pushing is refused with what to do."""
    put(ghcr, [store_object("a")], [KEY])
    doctor.settle(ghcr)
    (tmp_path / "token").write_text(ghcr.server.read_token)
    found = doctor.diagnose()
    assert (found["token"][0], found["pull"][0], found["push"][0]) == ("good", "good", "error")
    assert "write access" in found["push"][1]


def test_a_package_of_another_repository(doctor: Doctor, ghcr: Ghcr) -> None:
    """GHCR hands out the token, and refuses the push: only trying tells."""
    doctor.settle(ghcr)
    ghcr.server.is_linked_elsewhere = True
    assert "Manage Actions access" in doctor.diagnose()["push"][1]


@pytest.mark.parametrize("is_private", [True, False])
def test_an_expired_token(doctor: Doctor, ghcr: Ghcr, *, is_private: bool) -> None:
    """It is wrong also where anybody may read, is named by its source, and shown nowhere."""
    put(ghcr, [store_object("a")], [KEY])
    ghcr.server.private = is_private
    doctor.settle(ghcr)
    doctor.patch.delenv("NIXCACHE_TOKEN_FILE")
    doctor.set("GITHUB_TOKEN", "ghp_SECRET")
    found = doctor.diagnose()
    assert found["token"][0] == "error"
    assert "classic personal token, from GITHUB_TOKEN" in found["token"][1]
    assert found["pull"][0] == ("error" if is_private else "good")
    assert found["push"][0] == "error"
    main(["doctor"])
    shown = doctor.read()
    assert "SECRET" not in shown.out + shown.err
    assert KEY.render().partition(":")[2] not in shown.out


def test_a_wrong_key(doctor: Doctor, ghcr: Ghcr, tmp_path: Path) -> None:
    """Of the cache's name and another; and a file that is none, or that others may read."""
    put(ghcr, [store_object("a")], [SecretKey.generate(KEY.name)])
    doctor.settle(ghcr)
    found = doctor.diagnose()
    assert found["signing key"][0] == "error"
    assert "another key of this name" in found["signing key"][1]
    (tmp_path / "key.sec").write_text("nonsense")
    assert "NIXCACHE_SIGNING_KEY_FILE" in doctor.diagnose()["signing key"][1]
    doctor.patch.delenv("NIXCACHE_SIGNING_KEY_FILE")
    doctor.set("NIX_SIGNING_KEY", KEY.render())
    assert "signing key" in doctor.diagnose()


def test_every_bad_setting_is_named(doctor: Doctor) -> None:
    """Not only the first; what looks like a setting and is none, too; and the rest is still looked at."""
    doctor.set("NIXCACHE_PORT", "many")
    doctor.set("NIXCACHE_REPO", "no repo!")
    doctor.set("NIXCACHE_LOG_LEVEL", "loud")
    doctor.set("NIXCACHE_PRORITY", "1")
    assert main(["doctor", "--client", "--publisher"]) == FAILED
    out = doctor.read().out
    assert "NIXCACHE_PORT 'many'" in out
    assert "NIXCACHE_REPO 'no repo!'" in out
    assert "NIXCACHE_LOG_LEVEL 'loud'" in out
    assert "did you mean NIXCACHE_PRIORITY?" in out
    assert "- pull: skipped: the settings name no repository" in out
    assert "- proxy: skipped" in out
    assert "nix: " in out


@pytest.mark.parametrize("host", ["registry.invalid", "127.0.0.1:1"])
def test_no_network(doctor: Doctor, host: str) -> None:
    """What failed is named, and nothing behind it passes."""
    doctor.set("NIXCACHE_REGISTRY", host)
    doctor.set("NIXCACHE_REPO", "o/n")
    found = doctor.diagnose()
    failed = "registry" if host.startswith("127") else "name resolution"
    assert found[failed][0] == "error"
    assert "is the registry's name right" in found[failed][1]
    assert "[Errno" not in found[failed][1]
    behind = {name: found[name][0] for name in ("token", "clock", "pull", "visibility", "index")}
    assert set(behind.values()) == {"skipped"}


def test_a_registry_that_speaks_no_tls(doctor: Doctor, ghcr: Ghcr) -> None:
    """The remedy is how to write it, and no guess beside that."""
    doctor.settle(ghcr)
    host = os.environ["NIXCACHE_REGISTRY"].removeprefix("http://")
    doctor.set("NIXCACHE_REGISTRY", f"https://{host}")
    level, text = doctor.diagnose()["registry"]
    assert level == "error"
    assert text.endswith(f" is written http://{host}; ")


def test_a_token_service_that_stands_still(doctor: Doctor, ghcr: Ghcr) -> None:
    """Each question has its time, here a short one."""
    doctor.settle(ghcr)
    doctor.patch.setattr("nixcache_oci.clients.registry.probe._SECONDS", 0.2)
    ghcr.server.fault("token", "stall")
    assert "no answer within" in doctor.diagnose()["token"][1]


def test_a_registry_that_stands_still(doctor: Doctor) -> None:
    """A connection is no answer."""
    doctor.patch.setattr("nixcache_oci.clients.registry.probe._SECONDS", 0.2)
    doctor.set("NIXCACHE_REPO", "o/n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        doctor.set("NIXCACHE_REGISTRY", f"127.0.0.1:{silent.getsockname()[1]}")
        assert "no answer within" in doctor.diagnose()["registry"][1]


def test_a_damaged_table(doctor: Doctor, ghcr: Ghcr) -> None:
    """It can be pulled, and not be read: `verify` tells more."""
    put(ghcr, [store_object("a")], [KEY])
    doctor.settle(ghcr)
    for digest in ghcr.server.blobs(REPOSITORY):
        ghcr.server.corrupt_blob(digest)
    found = doctor.diagnose()
    assert (found["pull"][0], found["index"][0]) == ("good", "error")


def test_a_clock_that_is_off(doctor: Doctor, ghcr: Ghcr) -> None:
    """By the registry's own Date, without which nothing is said; all else is looked at."""
    put(ghcr, [store_object("a")], [KEY])
    doctor.settle(ghcr)
    assert doctor.diagnose()["clock"][0] == "good"
    an_hour_ago = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    ghcr.server.fault("ping", "status", status=401, headers={"Date": an_hour_ago})
    found = doctor.diagnose()
    assert found["clock"][0] == "error"
    assert "ahead of" in found["clock"][1]
    assert found["pull"][0] == "good"
    ghcr.server.fault("ping", "status", status=401, headers={"Date": "yesterday"})
    assert doctor.diagnose()["clock"][0] == "warning"


@pytest.mark.parametrize("status", [500, 404, 302])
def test_no_registry(doctor: Doctor, ghcr: Ghcr, status: int) -> None:
    """What answers is none, or not well."""
    doctor.settle(ghcr)
    ghcr.server.fault("ping", "status", status=status)
    found = doctor.diagnose()
    assert found["registry"][0] == "error"
    assert found["pull"][0] == "skipped"


@pytest.mark.parametrize("variable", ["NIXCACHE_TOKEN_FILE", "NIXCACHE_UPSTREAM_FILE"])
def test_a_secret_that_others_may_read(doctor: Doctor, tmp_path: Path, variable: str) -> None:
    """A file keeps a password from other users only if they may not read it."""
    secret = tmp_path / "secret"
    secret.write_text("https://user:hunter2@cache.example\n")
    doctor.set(variable, str(secret))
    for mode, level in ((0o644, "warning"), (0o640, "warning"), (0o600, "good")):
        secret.chmod(mode)
        found = doctor.diagnose()["settings"]
        assert found[0] == level
        assert ("others may read it" in found[1]) == (level == "warning")
        assert "hunter2" not in str(found)


def test_a_file_of_upstreams_is_read(doctor: Doctor, tmp_path: Path) -> None:
    """What would stop the proxy's start is named."""
    doctor.set("NIXCACHE_UPSTREAM_FILE", str(tmp_path / "gone"))
    level, text = doctor.diagnose()["settings"]
    assert level == "error"
    assert "NIXCACHE_UPSTREAM_FILE" in text


@pytest.mark.needs("nix")
def test_somebody_else_listens(doctor: Doctor) -> None:
    """Any user may hold the port: no remedy asks to do as it says, and nothing that it says is endless."""
    evil = f"evil-1:{'A' * 43}="
    status = {"registry": "evil/" * 100_000, "entries": 1, "index": {"ready": True}, "public_keys": {}}
    answers = {
        "/health": "ok",
        "/_status": json.dumps(status),
        "/nix-cache-info": f"StoreDir: /nix/store\nPriority: {'9' * 5000}\n",
        "/public-key": evil + "\n" + "B" * 100_000,
    }
    with listener(answers) as url:
        doctor.set("NIXCACHE_PORT", url.rpartition(":")[2])
        found = doctor.diagnose("--client")
    assert "any user of this machine can listen" in found["proxy: cache"][1]
    assert found["proxy: nix-cache-info"][0] == "warning"
    level, text = found["nix.conf: trusted-public-keys"]
    assert level == "error"
    assert "proves nothing" in text
    assert evil not in text.partition("; get the key")[2]
    assert max(len(text) for _, text in found.values()) < 2000


def test_a_token_file_that_is_gone(doctor: Doctor, ghcr: Ghcr, tmp_path: Path) -> None:
    """Who names a file means it: nothing is asked anonymously."""
    doctor.settle(ghcr)
    (tmp_path / "token").unlink()
    found = doctor.diagnose()
    assert found["token"][0] == "error"
    assert found["pull"][0] == found["push"][0] == "skipped"
    assert ghcr.server.requests == []


def test_a_cancel_that_is_refused(doctor: Doctor, ghcr: Ghcr) -> None:
    """The right to push is there all the same, and it is said what becomes of the session."""
    doctor.settle(ghcr)
    ghcr.server.fault("upload-delete", "status", status=405, times=None)
    level, text = doctor.diagnose()["push"]
    assert level == "good"
    assert "left to expire" in text


def test_a_free_port(doctor: Doctor) -> None:
    """Only the proxy knows it: said once, and nothing passes that hangs on it."""
    doctor.set("NIXCACHE_PORT", "0")
    found = doctor.diagnose()
    assert found["proxy"][0] == "error"
    assert {found[name][0] for name in found if name.startswith(("proxy:", "nix.conf"))} == {"skipped"}


def test_another_server_at_the_proxys_port(doctor: Doctor, ghcr: Ghcr) -> None:
    """What answers need not be a proxy."""
    doctor.set("NIXCACHE_PORT", ghcr.server.host.rpartition(":")[2])
    found = doctor.diagnose()
    assert found["proxy"][0] == "error"
    assert found["proxy: cache"][0] == "skipped"


@pytest.mark.parametrize("is_chosen", [True, False])
def test_a_proxy_of_another_cache(doctor: Doctor, tmp_path: Path, *, is_chosen: bool) -> None:
    """Wrong where a cache was named; else the proxy may have settings of its own, as a service has."""
    if is_chosen:
        doctor.set("NIXCACHE_REGISTRY", f"oci:{tmp_path / 'here'}")
    with ProxyProcess(tmp_path / "proxy", NIXCACHE_REGISTRY=f"oci:{tmp_path / 'there'}") as proxy:
        doctor.set("NIXCACHE_PORT", proxy.url.rpartition(":")[2])
        found = doctor.diagnose()
    assert found["proxy"][0] == "good"
    assert found["proxy: cache"][0] == ("error" if is_chosen else "warning")


@pytest.mark.needs("nix")
def test_a_nix_conf_that_nix_refuses(doctor: Doctor) -> None:
    """Nix's own words, and no guess at the rest."""
    (doctor.etc / "nix.conf").write_text("fallback=true\n")
    found = doctor.diagnose()
    refused = [text for level, text in found.values() if level == "error" and "fallback=true" in text]
    assert refused
    assert found["nix.conf: fallback"][0] == "skipped"


def test_without_nix(doctor: Doctor, tmp_path: Path) -> None:
    """There is nothing to point at the proxy."""
    doctor.set("PATH", str(tmp_path))
    found = doctor.diagnose()
    assert found["nix"][0] == "error"
    assert found["nix.conf: substituters"][0] == "skipped"


def test_a_dead_upstream(doctor: Doctor) -> None:
    """It is named without its password; one that answers, if only that it has nothing, is well."""
    with listener({}) as alive:
        doctor.set("NIXCACHE_UPSTREAM", alive)
        assert doctor.diagnose()["upstream"][0] == "good"
        dead = f"127.0.0.1:{free_port()}"
        doctor.set("NIXCACHE_UPSTREAM", f"{alive} http://user:hunter2@{dead}")
        level, text = doctor.diagnose()["upstream"]
    assert level == "warning"
    assert f"http://{dead}/ does not answer" in text
    assert "hunter2" not in text
    assert "upstream" not in doctor.diagnose("--publisher")


def test_the_same_number_as_list(doctor: Doctor, ghcr: Ghcr) -> None:
    """A path that two segments list is one path, in every verb."""
    put(ghcr, [store_object("a")], [KEY])
    put(ghcr, [store_object("a"), store_object("b")], [KEY])
    doctor.settle(ghcr)
    index = doctor.diagnose()["index"][1]
    assert "2 segments, 2 paths" in index
    main(["list"])
    assert ": 2 paths, " in doctor.read().err
    main(["verify"])
    assert "checking 2 paths" in doctor.read().err


def test_the_settings_by_default(doctor: Doctor) -> None:
    """Where nothing is set, that is what is said."""
    for name in ("NIXCACHE_INDEX_DIR", "NIXCACHE_PORT", "NIXCACHE_UPSTREAM"):
        doctor.patch.delenv(name)
    assert doctor.diagnose("--publisher")["settings"][1].startswith("using defaults")


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", "✓!✗-"), ("ascii", "+!x-"), ("latin-1", "+!x-")])
def test_marks(encoding: str, marks: str) -> None:
    """What the terminal cannot show is not sent to it; no text can forge a line."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    findings = [good("a", "1"), warning("b", "é…\n✓ c: 3", "do"), wrong("d", "4"), *skipped(["e"], "5")]
    print_findings("head", findings, stream)
    stream.seek(0)
    lines = stream.read().splitlines()
    assert lines[0] == "head"
    assert "".join(line[0] for line in lines[1:-1] if not line.startswith(" ")) == marks
    assert lines[-1] == "1 error, 1 warning"


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, is_coloured: bool) -> None:
    """The mark has one on a terminal that shows colours, and nothing has one elsewhere."""
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    for name in {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"} - environment.keys():
        monkeypatch.delenv(name, raising=False)
    for stream, has_colour in ((_Terminal(), is_coloured), (io.StringIO(), False)):
        print_findings("head", [wrong("a", "x" * 300, "do [bold]this[/bold]")], stream)
        shown = stream.getvalue()
        assert ("\x1b[1;31m" in shown) == has_colour
        assert "x" * 300 in shown
        assert "do [bold]this[/bold]" in shown


@pytest.mark.needs("nix")
def test_each_cache_is_looked_at(doctor: Doctor, ghcr: Ghcr, tmp_path: Path) -> None:
    """Findings name the cache; one that is wrong takes nothing from the others."""
    put(ghcr, [store_object("a")], [KEY])
    doctor.settle(ghcr)
    path = write_caches(
        tmp_path / "caches.toml",
        [{"registry": ghcr.server.host, "repo": "o/missing", "public-keys": [str(KEY.public_key)]}],
    )
    doctor.set("NIXCACHE_CACHES_FILE", str(path))
    found = doctor.diagnose("--client")
    host = ghcr.server.host
    assert "1 segment, 1 path" in found[f"index of {host}/octocat/hello/nix-cache"][1]
    assert found[f"pull of {host}/octocat/hello/nix-cache"][0] == "good"
    assert found[f"pull of {host}/o/missing/nix-cache"][0] != "good"
