"""A bundle on disk: an immutable folder named by the digest of its content.

    manifest.json  schema.json  graphs/  golden.npz  features/  card.md

`Bundle.open` reads and verifies; `BundleWriter` collects files and publishes them with one rename.
Invariant: a folder whose name is a bundle id holds exactly the files its manifest lists, or opening
it fails with a `BundleError` that names the file.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from service.contract.errors import BundleError, SchemaError
from service.contract.files import sha256_file, sync_directory
from service.contract.manifest import FORMAT, FORMAT_VERSION, FileEntry, Manifest
from service.contract.schema import FeatureSchema

MANIFEST_FILE = "manifest.json"
SCHEMA_FILE = "schema.json"
GOLDEN_FILE = "golden.npz"
CARD_FILE = "card.md"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: Its folder.
        manifest: As stored.
        schema: As stored; its digest equals `manifest.schema_digest`.
    """

    path: Path
    manifest: Manifest
    schema: FeatureSchema

    @property
    def bundle_id(self) -> str:
        """Sha256 (hex) that names the bundle."""
        return self.manifest.bundle_id

    def file(self, name: str) -> Path:
        """Path of a listed file.

        Raises:
            BundleError: The manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(self.path / name, "is not listed in the manifest")
        return self.path / name

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Self:
        """Open a bundle.

        Args:
            path: The bundle's folder.
            verify: Also compare the sha256 of every file; sizes and presence are always checked.

        Raises:
            BundleError: A file is missing, damaged, foreign, or of a newer format.
        """
        manifest = _read_manifest(path / MANIFEST_FILE)
        if len(path.name) == 64 and path.name != manifest.bundle_id:
            raise BundleError(
                path / MANIFEST_FILE, f"its digest is {manifest.bundle_id}, the folder says {path.name}"
            )
        _check_files(path, manifest, verify=verify)
        schema = _read_schema(path / SCHEMA_FILE, manifest)
        _check_references(path, manifest, schema)
        return cls(path, manifest, schema)


class BundleWriter:
    """Collects the files of a new bundle in a hidden folder beside its final place.

    Use as a context manager; what was not published is removed on exit.

        with BundleWriter(store) as writer:
            (writer.path / "graphs").mkdir()
            ...
            bundle = writer.publish(lambda files: Manifest(..., files=files), schema)
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._path: Path | None = None

    def __enter__(self) -> Self:
        self._parent.mkdir(parents=True, exist_ok=True)
        self._path = Path(tempfile.mkdtemp(dir=self._parent, prefix=".building-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)

    @property
    def path(self) -> Path:
        """Folder to write the files into."""
        if self._path is None:
            raise RuntimeError("BundleWriter is used outside its context")
        return self._path

    def publish(
        self, make_manifest: Callable[[dict[str, FileEntry]], Manifest], schema: FeatureSchema
    ) -> Bundle:
        """Write schema and manifest, make everything durable, rename into place.

        Args:
            make_manifest: Gets the entry of every file written so far.
            schema: The schema the graphs were built for.

        Returns:
            The published bundle, opened and verified. Publishing the same content again is a no-op.

        Raises:
            BundleError: The content does not verify.
        """
        (self.path / SCHEMA_FILE).write_text(schema.model_dump_json(indent=1))
        entries: dict[str, FileEntry] = {}
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            file.chmod(0o644)
            _sync_file(file)
            entries[file.relative_to(self.path).as_posix()] = FileEntry(
                sha256=sha256_file(file), num_bytes=file.stat().st_size
            )
        manifest = make_manifest(entries)
        (self.path / MANIFEST_FILE).write_bytes(manifest.canonical())
        (self.path / MANIFEST_FILE).chmod(0o644)
        _sync_file(self.path / MANIFEST_FILE)
        Bundle.open(self.path)
        final = self._parent / manifest.bundle_id
        if not final.exists():
            self.path.chmod(0o755)
            self.path.rename(final)
            self._path = None
            sync_directory(self._parent)
        return Bundle.open(final)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read_manifest(path: Path) -> Manifest:
    raw = _read_json(path)
    if raw.get("format") != FORMAT:
        raise BundleError(path, f"is not a {FORMAT} manifest (format is {raw.get('format')!r})")
    version = raw.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise BundleError(path, f"has format version {version!r}; this release reads up to {FORMAT_VERSION}")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise BundleError(path, f"is not a valid manifest: {_first_problem(error)}") from None


def _read_schema(path: Path, manifest: Manifest) -> FeatureSchema:
    try:
        schema = FeatureSchema.model_validate(_read_json(path))
    except ValidationError as error:
        raise BundleError(path, f"is not a valid schema: {_first_problem(error)}") from None
    except SchemaError as error:
        raise BundleError(path, f"is not a valid schema: {error}") from None
    if schema.digest != manifest.schema_digest:
        raise BundleError(path, f"has digest {schema.digest}, the manifest says {manifest.schema_digest}")
    return schema


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(path, "is missing") from None
    except (ValueError, OSError) as error:
        raise BundleError(path, f"cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(raw, dict):
        raise BundleError(path, "does not hold a JSON object")
    return raw


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def _check_files(path: Path, manifest: Manifest, *, verify: bool) -> None:
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(file, "is missing")
        size = file.stat().st_size
        if size != entry.num_bytes:
            raise BundleError(file, f"has {size} bytes, the manifest says {entry.num_bytes}")
        if verify and (found := sha256_file(file)) != entry.sha256:
            raise BundleError(file, f"is damaged: sha256 {found}, the manifest says {entry.sha256}")
    listed = {*manifest.files, MANIFEST_FILE}
    for file in path.rglob("*"):
        if file.is_file() and file.relative_to(path).as_posix() not in listed:
            raise BundleError(file, "is not listed in the manifest")


def _check_references(path: Path, manifest: Manifest, schema: FeatureSchema) -> None:
    """Everything the manifest points at exists, and it speaks of the schema's domains."""
    where = path / MANIFEST_FILE
    if set(manifest.domains) != set(schema.domains):
        odd = sorted(set(manifest.domains) ^ set(schema.domains))[:3]
        raise BundleError(where, f"manifest and schema disagree on domains, e.g. {odd}")
    for name, domain in manifest.domains.items():
        if domain.index != schema.domain_index(name):
            raise BundleError(where, f"domain '{name}' has index {domain.index}, not the schema's")
    used = {domain.graph for domain in manifest.domains.values()} | {manifest.unknown_domain.graph}
    if missing := used - set(manifest.graphs):
        raise BundleError(where, f"names graphs it does not hold: {sorted(missing)}")
    files = {f for graph in manifest.graphs.values() for f in (graph.file, *graph.external_files)}
    files |= {f for snap in manifest.features.values() for f in (snap.ids, snap.ints, snap.floats)}
    files |= {GOLDEN_FILE, SCHEMA_FILE}
    if missing := files - set(manifest.files):
        raise BundleError(path / sorted(missing)[0], "is used by the manifest but not listed in its files")
