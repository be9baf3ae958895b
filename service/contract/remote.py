"""A model store in an object store: the same bundles and `aliases.json` below an address that fsspec reads.

Reads and writes the address and a local store. Invariants: a bundle appears in the local store by one rename,
after every file of it has verified; remotely its manifest is written last and an alias moves after that, so
that a reader never follows an alias to half a bundle.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract.bundle import MANIFEST_FILE, Bundle
from service.contract.errors import BundleError, StoreError
from service.contract.files import write_atomic
from service.contract.store import ALIASES_FILE, ModelStore

ID_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull changed.

    Attributes:
        aliases: As they are now.
        new: Ids of bundles that were copied.
        removed: Ids of bundles that no alias has named since before the last change.
    """

    aliases: dict[str, str]
    new: tuple[str, ...]
    removed: tuple[str, ...]


class RemoteStore:
    """A store behind an address such as s3://bucket/models; keeps no state but the connection.

    Args:
        url: The address.

    Raises:
        StoreError: Nothing that is installed reads such an address.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # here: it is slow to import, and most commands need none

        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url}: {error}") from None

    def aliases(self) -> dict[str, str]:
        """Alias to bundle id.

        Raises:
            StoreError: It cannot be reached, or `aliases.json` is not an object of strings.
        """
        where = self._path(ALIASES_FILE)
        try:
            raw = json.loads(self._read(where))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise StoreError(f"{self.url}/{ALIASES_FILE}: cannot be read as JSON") from None
        if not isinstance(raw, dict) or not all(_is_id(value) for value in raw.values()):
            raise StoreError(f"{self.url}/{ALIASES_FILE}: must be an object of alias to bundle id")
        return raw

    def pull(self, store: ModelStore) -> Pulled:
        """Copy bundles that aliases name and the local store lacks, then take the aliases over.

        What neither the aliases of now nor those before this pull name is removed.

        Raises:
            StoreError: It cannot be reached, or an alias names what is not there.
            BundleError: A bundle does not verify. Either way the local store is as before.
        """
        aliases = self.aliases()
        before = store.aliases()
        new = sorted(set(aliases.values()) - set(store.bundle_ids()))
        for bundle_id in new:
            self._copy_here(bundle_id, store)
        if aliases == before:
            return Pulled(aliases, tuple(new), ())
        write_atomic(store.path / ALIASES_FILE, json.dumps(aliases, indent=1, sort_keys=True).encode())
        unnamed = sorted(set(store.bundle_ids()) - set(aliases.values()) - set(before.values()))
        for bundle_id in unnamed:
            shutil.rmtree(store.path / bundle_id, ignore_errors=True)
        return Pulled(aliases, tuple(new), tuple(unnamed))

    def push(self, store: ModelStore, reference: str, *, alias: str) -> str:
        """Copy a bundle of the local store there and point an alias at it.

        Two pushes at the same time may lose one of two changed aliases: object stores have no rename to agree
        by.

        Args:
            store: The local store.
            reference: Alias or id of the bundle in it.
            alias: To move there.

        Returns:
            The bundle's id.

        Raises:
            StoreError: Nothing answers to the reference, or the address cannot be written.
            BundleError: The bundle does not verify; nothing was copied.
        """
        bundle = store.open(reference)
        aliases = {**self.aliases(), alias: bundle.bundle_id}
        try:
            for name in [*sorted(bundle.manifest.files), MANIFEST_FILE]:
                target = self._path(f"{bundle.bundle_id}/{name}")
                self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(bundle.path / name), target)
            text = json.dumps(aliases, indent=1, sort_keys=True)
            self._files.pipe_file(self._path(ALIASES_FILE), text.encode())
        except OSError as error:
            raise StoreError(f"{self.url}: cannot be written ({type(error).__name__}: {error})") from None
        return bundle.bundle_id

    def _copy_here(self, bundle_id: str, store: ModelStore) -> None:
        store.path.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=store.path, prefix=".pulling-"))
        try:
            self._fetch(bundle_id, MANIFEST_FILE, partial)
            for name in _listed(partial / MANIFEST_FILE):
                self._fetch(bundle_id, name, partial)
            opened = Bundle.open(partial)
            if opened.bundle_id != bundle_id:
                raise BundleError(partial / MANIFEST_FILE, f"is of {opened.bundle_id}, not of {bundle_id}")
            partial.chmod(0o755)
            partial.rename(store.path / bundle_id)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _fetch(self, bundle_id: str, name: str, folder: Path) -> None:
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise BundleError(folder / MANIFEST_FILE, f"lists {name!r}, which lies outside the bundle")
        target.parent.mkdir(parents=True, exist_ok=True)
        remote = self._path(f"{bundle_id}/{name}")
        try:
            self._files.get_file(remote, str(target))
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{bundle_id}/{name}: is not there") from None
        except OSError as error:
            raise StoreError(f"{self.url}: cannot be read ({type(error).__name__}: {error})") from None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _read(self, path: str) -> bytes:
        try:
            # Not what a file system object remembers of earlier reads.
            self._files.invalidate_cache()
            content: bytes = self._files.cat_file(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{self.url}: cannot be read ({type(error).__name__}: {error})") from None
        return content


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) == ID_LENGTH and value.isalnum()


def _listed(manifest: Path) -> list[str]:
    """Names of files in a manifest that is not verified yet."""
    try:
        return sorted(json.loads(manifest.read_bytes())["files"])
    except (ValueError, KeyError, TypeError):
        raise BundleError(manifest, "is not a manifest") from None


__all__ = ["Pulled", "RemoteStore"]
