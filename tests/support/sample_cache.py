"""A cache as one in use looks, for the page: names, sizes and records of all kinds, hostile ones too."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from nixcache_oci.cache.record import PinRecord, PublishRecord, Record
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.store_path import StorePath
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import CREATED, StoreObject, publish

KEY: Final = SecretKey.generate("example-cache-1")
SOURCE: Final = "https://github.com/example/project/commit/3f2a9c41d07be865aa10c2f7d6b94e5f08c1d2e3"
_SIZES: Final = {"hello-2.12.2": 231_000, "glibc-2.40-66": 31_400_000, "gcc-14.3.0-lib": 9_180_000}
_REFERENCES: Final = {
    "libunistring-1.4.1": ("glibc-2.40-66",),
    "libidn2-2.3.8": ("libunistring-1.4.1",),
    "gcc-14.3.0-lib": ("glibc-2.40-66",),
    "hello-2.12.1": ("glibc-2.40-66",),
    "hello-2.12.2": ("glibc-2.40-66",),
    "python3-3.13.7": ("glibc-2.40-66", "gcc-14.3.0-lib", "openssl-3.5.2"),
    "openssl-3.5.2": ("glibc-2.40-66",),
    "web-server-0.9.1": ("python3-3.13.7", "hello-2.12.2"),
    "nixos-system-web1-25.11": ("web-server-0.9.1", "gcc-14.3.0-lib"),
}
HOSTILE: Final = '<script>alert("x")</script>\' onload=\u202egnp.exe&lt; ' + "w" * 200
"""As the name of a root, or of a scope with dashes for spaces."""


def sample_path(name: str) -> StorePath:
    return StorePath("/nix/store", hash_part_of(name), name)


def _sample(name: str, references: Sequence[str] = ()) -> StoreObject:
    content = hashlib.shake_128(name.encode()).digest(min(_SIZES.get(name, 60_000), 400_000))
    one = store_object(name, contents=content)
    path = sample_path(name)
    others = tuple(sorted(sample_path(other).base_name for other in references))
    narinfo = replace(
        one.narinfo,
        store_path=path,
        references=others,
        deriver=f"{hash_part_of(f'{name}.drv')}-{name}.drv",
    )
    return StoreObject(narinfo, one.nar).signed(KEY)


def sample_objects() -> list[StoreObject]:
    names = {*_REFERENCES, *(other for some in _REFERENCES.values() for other in some)}
    return [_sample(name, _REFERENCES.get(name, ())) for name in sorted(names)]


def hostile_narinfo() -> NarInfo:
    """The oddest name that a store path can have."""
    return _sample("--" + "?=._+-" * 34).narinfo


async def publish_sample(repository: Repository, *, records: Sequence[Record] = ()) -> None:
    """Publish it in two parts, a month apart."""
    objects = sample_objects()
    old = [one for one in objects if one.narinfo.store_path.name in {"hello-2.12.1", "glibc-2.40-66"}]
    await publish(repository, old, created=CREATED - timedelta(days=31), keys=[KEY])
    built: list[Record] = [
        _built("main-x86_64-linux", "packages.x86_64-linux.hello", "hello-2.12.2", hours=0),
        _built("main-x86_64-linux", "packages.x86_64-linux.web-server", "web-server-0.9.1", hours=1),
        _built("main-x86_64-linux", "nixosConfigurations.web1", "nixos-system-web1-25.11", hours=2),
        _built("push/laptop", "python3", "python3-3.13.7", hours=3),
        PinRecord("release-1.0", sample_path("hello-2.12.1"), CREATED, "forever"),
        PinRecord("demo", sample_path("web-server-0.9.1"), CREATED, "for 5 revisions"),
    ]
    await publish(repository, objects, keys=[KEY], records=[*built, *records], source=SOURCE)


def hostile_records() -> list[Record]:
    """Everything of a record that is free text."""
    path = sample_path("hello-2.12.2")
    scope = HOSTILE.replace(" ", "-")
    return [
        PublishRecord(scope, "1", CREATED + timedelta(hours=9), ((HOSTILE, path),), (f"{HOSTILE}2",)),
        PinRecord(scope, path, CREATED, "forever"),
    ]


def _built(scope: str, name: str, path: str, *, hours: int) -> PublishRecord:
    time: datetime = CREATED + timedelta(hours=hours)
    return PublishRecord(scope, name, time, ((name, sample_path(path)),))
