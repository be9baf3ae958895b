"""Which models this process serves, by name and version: the default bundle, then those of experiments.

A model is a bundle's name, a version a bundle's id. Reads what serves at the moment; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.bundles.registry import LoadedBundle
from service.errors import UnknownModel
from service.routing.table import RoutingTable
from service.serving import Serving

MIN_VERSION = 6  # characters of a bundle's id that may stand for it


def served_bundles(serving: Serving) -> dict[str, LoadedBundle]:
    """Bundles by id, the default first.

    Raises:
        NotReady: None is there (yet).
    """
    scorer, _ = serving.require()
    found = {scorer.loaded.bundle_id: scorer.loaded}
    if serving.routing is not None:
        for loaded in _routed(serving.routing.table):
            found.setdefault(loaded.bundle_id, loaded)
    return found


def find_bundle(serving: Serving, name: str, version: str | None = None) -> LoadedBundle:
    """The bundle of a model, in a version or else the first that serves.

    Args:
        serving: What this process can do.
        name: Of the model.
        version: Id of a bundle, or at least 6 characters of its beginning.

    Raises:
        NotReady: Nothing is served (yet).
        UnknownModel: Not under that name, or not in that version.
    """
    scorer, _ = serving.require()
    if version is None and scorer.loaded.bundle.manifest.name == name:
        return scorer.loaded
    bundles = served_bundles(serving).values()
    of_name = [loaded for loaded in bundles if loaded.bundle.manifest.name == name]
    if not of_name:
        names = ", ".join(sorted({f"'{loaded.bundle.manifest.name}'" for loaded in bundles}))
        raise UnknownModel(f"no model {name[:60]!r} is served; there is {names}", value=name[:60])
    if version is None:
        return of_name[0]
    fitting = [b for b in of_name if len(version) >= MIN_VERSION and b.bundle_id.startswith(version)]
    if len(fitting) != 1:
        versions = ", ".join(loaded.version for loaded in of_name)
        raise UnknownModel(
            f"model '{name}' has no version {version[:64]!r}; there is {versions}", value=version[:64]
        )
    return fitting[0]


def _routed(table: RoutingTable) -> Iterator[LoadedBundle]:
    for route in (*table.domains.values(), table.unlisted):
        yield route.plain.target.scorer.loaded
        for target in route.arms.values():
            yield target.scorer.loaded


__all__ = ["find_bundle", "served_bundles"]
