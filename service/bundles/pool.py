"""The bundles that a routing file needs beside the default one, each loaded once.

Reads the model store. Invariant: two references to one bundle share its graphs and features; opening
fails as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from service.bundles.registry import LoadedBundle
from service.contract.errors import ContractError
from service.contract.store import ModelStore
from service.errors import RoutingError, StartupError


class BundlePool:
    """Loaded bundles by id.

    Args:
        store: Resolves references.
        load: Opens and verifies the bundle of an id; blocks.
    """

    def __init__(self, store: ModelStore, load: Callable[[str], LoadedBundle]) -> None:
        self._store = store
        self._load = load
        self._by_id: dict[str, LoadedBundle] = {}

    def resolve(self, references: Iterable[str]) -> dict[str, str]:
        """Ids of bundles by reference (alias, id or part of one).

        Raises:
            RoutingError: Nothing answers to one of them.
        """
        try:
            return {reference: self._store.resolve(reference) for reference in references}
        except ContractError as error:
            raise RoutingError(str(error)) from None

    def open(self, ids: Mapping[str, str], default: LoadedBundle) -> dict[str, LoadedBundle]:
        """Bundles by reference, each under its reference as alias; blocks while one is loaded.

        Args:
            ids: As resolved.
            default: The bundle that serves by default; not loaded again.

        Raises:
            RoutingError: One cannot be loaded; the message names the reference.
        """
        found = {**self._by_id, default.bundle_id: default}
        for reference, bundle_id in ids.items():
            if bundle_id not in found:
                try:
                    found[bundle_id] = self._load(bundle_id)
                except (ContractError, StartupError) as error:
                    raise RoutingError(f"bundle '{reference}' ({bundle_id[:12]}): {error}") from None
        self._by_id = found
        return {reference: replace(found[bundle_id], alias=reference) for reference, bundle_id in ids.items()}

    def keep(self, ids: Mapping[str, str]) -> None:
        """Let go of all bundles but these; requests on one of the others keep it alive until they end."""
        wanted = set(ids.values())
        self._by_id = {bundle_id: kept for bundle_id, kept in self._by_id.items() if bundle_id in wanted}


__all__ = ["BundlePool"]
