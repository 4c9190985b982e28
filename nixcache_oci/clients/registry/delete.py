"""Deleting a manifest by its digest; its tags go with it, its blobs when the registry collects garbage.

Source: OCI distribution specification 1.1, "Deleting Manifests".
"""

from http import HTTPStatus
from typing import Final

from yarl import URL

from nixcache_oci.clients.registry.answer import parse_error
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest

_DELETED: Final = frozenset({HTTPStatus.ACCEPTED, HTTPStatus.OK, HTTPStatus.NO_CONTENT})
_DISABLED: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.METHOD_NOT_ALLOWED})
_DENIED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


async def delete_manifest(transport: Transport, base: str, digest: Digest) -> None:
    """Delete a manifest.

    Args:
        transport: to the registry, with tokens that allow deleting.
        base: URL of the repository, ``https://registry.example/v2/owner/name/nix-cache``.
        digest: of the manifest.

    Raises:
        NotFoundError: it is not there.
        RegistryError: the registry does not delete it.
    """
    call = Call(
        f"delete manifest {digest}",
        "DELETE",
        URL(f"{base}/manifests/{digest}", encoded=True),
        accepts=_DELETED | _DISABLED,
        may_be_absent=True,
    )
    try:
        answer = await transport.fetch(call)
    except NotFoundError:
        raise
    except RegistryError as error:
        if error.status not in _DENIED:
            raise
        text = f"{error}; the right to delete is separate from the right to push"
        raise RegistryError(text, status=error.status, code=error.code) from None
    if answer.status in _DISABLED:
        code, message = parse_error(answer.body)
        said = " ".join(filter(None, (str(answer.status), code, f"({message})" if message else "")))
        raise transport.error(
            call,
            f"this registry does not delete: {said}; its owner has to enable it (docker-registry:"
            " storage.delete.enabled: true, or REGISTRY_STORAGE_DELETE_ENABLED=true); it is kept until then",
            status=answer.status,
        )
