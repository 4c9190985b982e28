"""GitHub's REST API for packages, as far as deleting versions needs it."""

from collections.abc import Mapping
from datetime import UTC, datetime

from tests.support.ghcr_access import TokenService
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_routes import Target
from tests.support.ghcr_store import GhcrStore, HeldManifest, HeldRepository
from tests.support.ghcr_wire import Answer, json_answer

_MOST_PER_PAGE = 100
_NOT_FOUND = json_answer(404, {"message": "Not Found", "status": "404"})


class Packages:
    """Versions of a package: one for each manifest, newest first, untagged ones among them."""

    def __init__(self, manners: Manners, store: GhcrStore, tokens: TokenService) -> None:
        self._manners = manners
        self._store = store
        self._tokens = tokens

    def answer(
        self, target: Target, api_url: str, authorization: str | None, query: Mapping[str, str]
    ) -> Answer:
        refusal = self._refusal(target, authorization)
        if refusal:
            return refusal
        held = self._store.find(target.name)
        if held is None or not self._store.exists(target.name) or target.owner_kind != self._kind:
            return _NOT_FOUND
        if target.operation == "package-get":
            return json_answer(200, self._describe(target, held))
        if target.operation == "package-versions":
            return self._list(target, held, api_url, query)
        version = int(target.reference)
        if target.operation == "package-version-get":
            found = [manifest for manifest in held.manifests.values() if manifest.version == version]
            return json_answer(200, version_document(held, found[0])) if found else _NOT_FOUND
        change = (
            self._store.delete_version
            if target.operation == "package-delete"
            else self._store.restore_version
        )
        return Answer(204) if change(target.name, version) else _NOT_FOUND

    @property
    def _kind(self) -> str:
        return f"{self._manners.owner_kind}s"

    def _refusal(self, target: Target, authorization: str | None) -> Answer | None:
        scheme, _, token = (authorization or "").partition(" ")
        rights = self._tokens.rights_of(token) if scheme.lower() in {"bearer", "token"} else frozenset()
        if not rights:
            return json_answer(401, {"message": "Bad credentials" if token else "Requires authentication"})
        if target.operation in {"package-delete", "package-restore"} and "delete" not in rights:
            return json_answer(403, {"message": "Resource not accessible by integration"})
        return None

    def _describe(self, target: Target, held: HeldRepository) -> dict[str, object]:
        owner, _, name = target.name.partition("/")
        return {
            "name": name,
            "package_type": "container",
            "owner": {
                "login": owner,
                "type": "User" if self._manners.owner_kind == "user" else "Organization",
            },
            "version_count": len(held.manifests),
            "visibility": "private" if self._manners.private else "public",
        }

    def _list(self, target: Target, held: HeldRepository, api_url: str, query: Mapping[str, str]) -> Answer:
        size = min(int(query.get("per_page", "30")), _MOST_PER_PAGE)
        page = max(1, int(query.get("page", "1")))
        manifests = sorted(held.manifests.values(), key=lambda manifest: -manifest.version)
        shown = manifests[(page - 1) * size : page * size]
        headers = {}
        if page * size < len(manifests):
            owner, _, name = target.name.partition("/")
            address = f"{api_url}/{self._kind}/{owner}/packages/container/{name.replace('/', '%2F')}/versions"
            last = -(-len(manifests) // size)
            links = (("next", page + 1), ("last", last))
            headers["Link"] = ", ".join(
                f'<{address}?per_page={size}&page={number}>; rel="{relation}"' for relation, number in links
            )
        return json_answer(200, [version_document(held, manifest) for manifest in shown], headers)


def version_document(held: HeldRepository, manifest: HeldManifest) -> dict[str, object]:
    """Render one version as the REST API shows it."""
    pushed = datetime.fromtimestamp(manifest.pushed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": manifest.version,
        "name": str(manifest.digest),
        "created_at": pushed,
        "updated_at": pushed,
        "metadata": {"package_type": "container", "container": {"tags": held.tags_of(manifest.digest)}},
    }
