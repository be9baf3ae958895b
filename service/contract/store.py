"""A model store: a folder of bundles and `aliases.json`, which gives some of them a movable name.

An alias moves by one atomic rename, and only to a bundle that verifies. Readers watch one small file
and never scan folders of weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from service.contract.bundle import Bundle, BundleWriter
from service.contract.errors import BundleError, StoreError
from service.contract.files import write_atomic

ALIASES_FILE = "aliases.json"
ALIAS_PATTERN = re.compile(r"^[a-z][a-z0-9_-]{0,39}$")
MIN_PREFIX = 6


class ModelStore:
    """Access to one store folder. Holds no state: every call reads the folder anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def writer(self) -> BundleWriter:
        """A writer that publishes into this store."""
        return BundleWriter(self.path)

    def bundle_ids(self) -> list[str]:
        """Ids of all published bundles, sorted."""
        if not self.path.is_dir():
            return []
        return sorted(p.name for p in self.path.iterdir() if p.is_dir() and len(p.name) == 64)

    def aliases(self) -> dict[str, str]:
        """Alias to bundle id.

        Raises:
            StoreError: `aliases.json` is not an object of strings.
        """
        file = self.path / ALIASES_FILE
        try:
            raw = json.loads(file.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise StoreError(f"{file}: cannot be read as JSON ({type(error).__name__})") from None
        if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
            raise StoreError(f"{file}: must be an object of alias to bundle id")
        return raw

    def resolve(self, reference: str) -> str:
        """Bundle id for an alias, an id, or an id's prefix of at least 6 characters.

        Raises:
            StoreError: Nothing, or more than one bundle, answers to the reference.
        """
        aliases = self.aliases()
        if reference in aliases:
            return aliases[reference]
        ids = self.bundle_ids()
        found = [i for i in ids if len(reference) >= MIN_PREFIX and i.startswith(reference)]
        if len(found) == 1:
            return found[0]
        if found:
            raise StoreError(f"'{reference}' fits {len(found)} bundles of {self.path}; give more of the id")
        names = ", ".join(sorted(aliases)) or "none"
        raise StoreError(f"{self.path} has no bundle '{reference}'; {len(ids)} bundles, aliases: {names}")

    def open(self, reference: str, *, verify: bool = True) -> Bundle:
        """Open the bundle behind an alias or id.

        Raises:
            StoreError: Nothing answers to the reference, or its folder is gone.
            BundleError: The bundle is corrupt, truncated, foreign or too new.
        """
        bundle_id = self.resolve(reference)
        path = self.path / bundle_id
        if not path.is_dir():
            raise StoreError(f"{self.path}: alias '{reference}' points at {bundle_id}, which is not there")
        return Bundle.open(path, verify=verify)

    def set_alias(self, alias: str, reference: str) -> str:
        """Point an alias at a bundle, after verifying it.

        Returns:
            The bundle's id.

        Raises:
            StoreError: The alias is malformed or nothing answers to the reference.
            BundleError: The bundle does not verify; the alias stays where it was.
        """
        if not ALIAS_PATTERN.match(alias):
            raise StoreError(f"alias '{alias}' must match {ALIAS_PATTERN.pattern}")
        bundle = self.open(reference)
        if bundle.path.name != bundle.bundle_id:
            raise BundleError(bundle.path, f"is not named by its digest {bundle.bundle_id}")
        aliases = {**self.aliases(), alias: bundle.bundle_id}
        text = json.dumps(aliases, indent=1, sort_keys=True)
        write_atomic(self.path / ALIASES_FILE, text.encode())
        return bundle.bundle_id
