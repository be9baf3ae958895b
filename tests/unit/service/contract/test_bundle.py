"""Bundles and stores on disk: anything but the published content is refused, by file name."""

import json
import shutil

import pytest

from service.contract.bundle import Bundle
from service.contract.errors import BundleError, StoreError
from service.contract.store import ModelStore
from tests.support.bundles import build_bundle


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return build_bundle(tmp_path_factory.mktemp("store"))


@pytest.fixture
def copy(published, tmp_path):
    target = tmp_path / published.bundle.bundle_id
    shutil.copytree(published.bundle.path, target)
    return target


def refused(path, file, message):
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert caught.value.file.name == file
    assert message in str(caught.value)


def edit_manifest(path, **changes):
    raw = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(raw | changes))


def test_the_published_bundle_opens_under_its_own_digest(published):
    opened = Bundle.open(published.bundle.path)
    assert opened.path.name == opened.bundle_id == published.bundle.bundle_id
    assert opened.schema == published.schema


@pytest.mark.parametrize(
    "file", ["graphs/whole.weights", "golden.npz", "schema.json", "features/user_ids.txt"]
)
def test_a_truncated_file_is_refused(copy, file):
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[:-1])
    refused(copy, file.split("/")[-1], f"has {len(content) - 1} bytes, the manifest says {len(content)}")


def test_a_flipped_bit_is_refused(copy):
    content = bytearray((copy / "graphs/whole.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "graphs/whole.onnx").write_bytes(content)
    refused(copy, "whole.onnx", "is damaged: sha256")


def test_missing_and_extra_files_are_refused(copy):
    (copy / "notes.txt").write_text("x")
    refused(copy, "notes.txt", "is not listed in the manifest")
    (copy / "notes.txt").unlink()
    (copy / "golden.npz").unlink()
    refused(copy, "golden.npz", "is missing")


def test_foreign_json_newer_format_and_no_manifest_are_refused(copy):
    edit_manifest(copy, format_version=2)
    refused(copy, "manifest.json", "format version 2; this release reads up to 1")
    edit_manifest(copy, format="other")
    refused(copy, "manifest.json", "is not a ctr-bundle manifest (format is 'other')")
    (copy / "manifest.json").write_text("[]")
    refused(copy, "manifest.json", "does not hold a JSON object")
    (copy / "manifest.json").write_text('{"a')
    refused(copy, "manifest.json", "cannot be read as JSON")
    (copy / "manifest.json").unlink()
    refused(copy, "manifest.json", "is missing")


def test_an_edited_manifest_no_longer_fits_its_folder(copy):
    edit_manifest(copy, model="other")
    refused(copy, "manifest.json", "the folder says")


def test_an_alias_moves_only_to_what_verifies(tmp_path):
    first = build_bundle(tmp_path)
    store = ModelStore(tmp_path)
    second = build_bundle(tmp_path, alias="canary", seed=5)
    assert store.aliases() == {"stable": first.bundle.bundle_id, "canary": second.bundle.bundle_id}
    (second.bundle.path / "golden.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"golden\.npz"):
        store.set_alias("stable", second.bundle.bundle_id)
    assert store.resolve("stable") == first.bundle.bundle_id
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_publishing_the_same_content_twice_is_one_bundle(tmp_path):
    ids = {build_bundle(tmp_path).bundle.bundle_id for _ in range(2)}
    assert ModelStore(tmp_path).bundle_ids() == list(ids)


def test_resolve_takes_alias_id_and_prefix(published):
    store, whole = ModelStore(published.store), published.bundle.bundle_id
    assert {store.resolve(r) for r in ("stable", whole, whole[:6])} == {whole}
    for short in (whole[:5], "f" * 10):
        with pytest.raises(StoreError, match="has no bundle"):
            store.resolve(short)
    with pytest.raises(StoreError, match="must match"):
        store.set_alias("Not an alias", whole)
