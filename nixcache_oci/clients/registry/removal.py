"""Deletes manifests, as registries differ in what they refuse.

By the specification a manifest is deleted by its digest, with its tags. Google and Docker Hub refuse
what still has a tag: the tag goes first. They, Harbor, GitLab and ECR refuse what an image index lists: the
index has to go first, which is the caller's business. Statuses and codes differ. The latter are known by the
token service that their challenge names; GitLab and Forgejo share a name.

Sources: OCI distribution specification, "Deleting manifests"; the registries' code, documentation and answers
that users report (genuinetools/reg#136, gcr-cleaner#118 and #130; for challenges, GitLab's documentation,
containers/image, NVIDIA/enroot#59).
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final

from yarl import URL

from nixcache_oci.clients.http.errors import parse_error
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.errors import NotFoundError, ReferencedError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import parse_tag_or_digest

_DELETED: Final = frozenset({HTTPStatus.ACCEPTED, HTTPStatus.OK, HTTPStatus.NO_CONTENT})
_DENIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_REFUSED: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.CONFLICT,
        HTTPStatus.PRECONDITION_FAILED,
    }
)
# Statuses by which a registry says that a tag still points at a manifest.
_MAYBE_TAGGED: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT})
# Codes by which it says that an image index still lists it.
_REFERENCED: Final = frozenset(
    {"GOOGLE_MANIFEST_DANGLING_PARENT_IMAGE", "MANIFEST_REFERENCED", "VIOLATE_FOREIGN_KEY_CONSTRAINT"}
)
_KEEPS_LISTED: Final = re.compile(
    r"registry\.docker\.io .*|harbor-registry .*|container_registry .*/jwt/auth|ecr\.amazonaws\.com .*"
    r"|(?:.+-docker\.pkg\.dev|(?:.+\.)?gcr\.io) .*"
)


def keeps_listed(challenge: Mapping[str, str]) -> bool:
    """Tell by a challenge's parameters whether a registry deletes no manifest that an image index lists."""
    named = f"{challenge.get('service', '')} {challenge.get('realm', '')}"
    return _KEEPS_LISTED.fullmatch(named) is not None


async def delete_manifest(
    transport: Transport,
    base: str,
    digest: Digest,
    tags: Iterable[str],
    list_tags: Callable[[], Awaitable[list[str]]],
) -> None:
    """Delete a manifest and its tags; its blobs go when the registry collects garbage.

    Args:
        transport: to the registry.
        base: URL of the repository, ``https://host/v2/name``.
        digest: of the manifest.
        tags: that may point at it, in upper or lower case: deleted first where the registry insists on it.
        list_tags: lists the repository's tags.

    Raises:
        NotFoundError: there is no such manifest.
        ReferencedError: an image index still lists it; its tags may be gone.
        RegistryError: the registry does not delete it.
    """
    try:
        await _delete(transport, base, str(digest))
    except (NotFoundError, ReferencedError):
        raise
    except RegistryError as refusal:
        names = {tag.lower() for tag in tags}
        if refusal.status not in _MAYBE_TAGGED or not names:
            raise
        there = [tag for tag in await list_tags() if tag.lower() in names]
        if not there:
            raise
        for tag in there:
            await _delete_tag(transport, base, tag, refusal)
        try:
            await _delete(transport, base, str(digest))
        except (NotFoundError, ReferencedError):
            raise
        except RegistryError as second:
            if second.status not in _MAYBE_TAGGED:
                raise
            # It took the tag, so it is not for want of a right.
            raise ReferencedError(
                f"{second}; its tag is gone, so an image index may still list it",
                status=second.status,
                code=second.code,
            ) from None


async def _delete_tag(transport: Transport, base: str, tag: str, refusal: RegistryError) -> None:
    try:
        await _delete(transport, base, tag)
    except NotFoundError:
        pass  # another gc was faster
    except RegistryError as error:
        if error.is_temporary:
            raise
        raise RegistryError(
            f"{refusal}; nor was its tag taken away ({error.status} {error.code})".rstrip(),
            status=refusal.status,
            code=refusal.code,
        ) from None


async def _delete(transport: Transport, base: str, tag_or_digest: str) -> None:
    parse_tag_or_digest(tag_or_digest)
    call = Call(
        f"delete manifest {tag_or_digest}",
        "DELETE",
        URL(f"{base}/manifests/{tag_or_digest}", encoded=True),
        accepts=_DELETED | _REFUSED,
        may_be_absent=True,
    )
    try:
        answer = await transport.fetch(call)
    except NotFoundError:
        raise
    except RegistryError as error:
        if error.status not in _DENIED:
            raise
        if _is_about_index(error.code, str(error)):
            raise ReferencedError(str(error), status=error.status, code=error.code) from None
        text = f"{error}; the right to delete is separate from the right to push"
        raise RegistryError(text, status=error.status, code=error.code) from None
    if answer.status in _DELETED:
        return
    code, message = parse_error(answer.body)
    said = " ".join(filter(None, (str(answer.status), code, f"({message})" if message else "")))
    if answer.status == HTTPStatus.PRECONDITION_FAILED or _is_about_index(code, message):
        raise ReferencedError(
            str(transport.error(call, f"an image index still lists it: {said}")),
            status=answer.status,
            code=code,
        )
    reason = f"it is refused: {said}"
    if answer.status == HTTPStatus.METHOD_NOT_ALLOWED or code in {"", "UNSUPPORTED"}:
        reason = (
            f"this registry does not delete: {said}; its owner has to enable it (docker-registry:"
            " storage.delete.enabled: true, or REGISTRY_STORAGE_DELETE_ENABLED=true); it is kept until then"
        )
    raise RegistryError(str(transport.error(call, reason)), status=answer.status, code=code)


def _is_about_index(code: str, message: str) -> bool:
    """Tell whether a refusal is for the sake of what lists the manifest, not of its tag."""
    words = message.lower()
    return code in _REFERENCED or ("referenced" in words and "referenced by tag" not in words)
