"""A store behind an address: what is pulled verifies, what fails changes nothing."""

from __future__ import annotations

import json

import fsspec
import pytest
from typer.testing import CliRunner

import export.cli
import service.cli
from service.contract.errors import BundleError, StoreError
from service.contract.remote import RemoteStore
from service.contract.store import ModelStore
from tests.support.bundles import build_bundle


@pytest.fixture
def url(tmp_path):
    """An address that keeps what is written as an object store does: no renames, no folders."""
    address = f"memory://{tmp_path.name}/models"
    yield address
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def published(tmp_path, url):
    """A bundle pushed there as stable."""
    bundle = build_bundle(tmp_path / "made").bundle
    RemoteStore(url).push(ModelStore(tmp_path / "made"), "stable", alias="stable")
    return bundle


def files(url):
    return fsspec.core.url_to_fs(url)


def test_what_was_pushed_can_be_pulled_and_opened(tmp_path, url, published):
    """A second pull finds nothing to do."""
    store = ModelStore(tmp_path / "pulled")

    first = RemoteStore(url).pull(store)
    second = RemoteStore(url).pull(store)

    assert first.new == (published.bundle_id,)
    assert (second.new, second.removed) == ((), ())
    assert store.open("stable").bundle_id == published.bundle_id


def test_a_pull_follows_aliases_and_removes_what_two_changes_have_left_behind(tmp_path, url, published):
    """The bundle that served until the last change stays: somebody may be serving it still."""
    store, made, remote = ModelStore(tmp_path / "pulled"), ModelStore(tmp_path / "made"), RemoteStore(url)
    remote.pull(store)
    ids = [published.bundle_id]
    for seed in (1, 2):
        ids.append(build_bundle(tmp_path / "made", seed=seed).bundle.bundle_id)
        remote.push(made, "stable", alias="stable")
        last = remote.pull(store)

    assert last.removed == (ids[0],)
    assert store.bundle_ids() == sorted(ids[1:])
    assert store.aliases() == {"stable": ids[2]}


def test_other_aliases_stay_when_one_is_pushed(tmp_path, url, published):
    """`canary` beside `stable`."""
    canary = build_bundle(tmp_path / "made", seed=1, alias="canary").bundle.bundle_id
    RemoteStore(url).push(ModelStore(tmp_path / "made"), "canary", alias="canary")

    assert RemoteStore(url).aliases() == {"canary": canary, "stable": published.bundle_id}


def test_a_damaged_bundle_leaves_the_last_good_one(tmp_path, url, published):
    """Neither the bundle nor the alias that names it is taken over."""
    store = ModelStore(tmp_path / "pulled")
    RemoteStore(url).pull(store)
    new = build_bundle(tmp_path / "made", seed=1).bundle.bundle_id
    RemoteStore(url).push(ModelStore(tmp_path / "made"), "stable", alias="stable")
    system, root = files(url)
    system.pipe_file(f"{root}/{new}/golden.npz", b"something else")

    with pytest.raises(BundleError, match=r"golden\.npz: has 14 bytes, the manifest says \d+"):
        RemoteStore(url).pull(store)

    assert store.aliases() == {"stable": published.bundle_id}
    assert sorted(path.name for path in store.path.iterdir()) == sorted([published.bundle_id, "aliases.json"])


def test_a_bundle_of_which_a_file_is_not_there_is_refused(tmp_path, url, published):
    """The error names the address of the file."""
    system, root = files(url)
    system.rm_file(f"{root}/{published.bundle_id}/schema.json")

    with pytest.raises(StoreError, match=rf"{url}/{published.bundle_id}/schema\.json: is not there"):
        RemoteStore(url).pull(ModelStore(tmp_path / "pulled"))


def test_a_bundle_under_the_name_of_another_is_refused(tmp_path, url, published):
    """Its content verifies, but it is not what the alias names."""
    system, root = files(url)
    other = "0" * 64
    system.copy(f"{root}/{published.bundle_id}", f"{root}/{other}", recursive=True)
    system.pipe_file(f"{root}/aliases.json", json.dumps({"stable": other}).encode())

    with pytest.raises(BundleError, match=f"is of {published.bundle_id}, not of {other}"):
        RemoteStore(url).pull(ModelStore(tmp_path / "pulled"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[]", "must be an object of alias to bundle id"),
        (b'{"stable": "../elsewhere"}', "must be an object of alias to bundle id"),
    ],
)
def test_aliases_that_are_none_are_refused(url, text, said):
    """An id is 64 letters and digits, so it is never a path."""
    system, root = files(url)
    system.pipe_file(f"{root}/aliases.json", text)

    with pytest.raises(StoreError, match=f"{url}/aliases.json: {said}"):
        RemoteStore(url).aliases()


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"nothing", "is not a manifest"),
        (b'{"files": {"../../passwd": {}}}', r"lists '\.\./\.\./passwd', which lies outside the bundle"),
    ],
)
def test_a_manifest_is_not_trusted_before_it_verifies(tmp_path, url, manifest, said):
    """It names files to be written here."""
    system, root = files(url)
    bundle_id = "a" * 64
    system.pipe_file(f"{root}/aliases.json", json.dumps({"stable": bundle_id}).encode())
    system.pipe_file(f"{root}/{bundle_id}/manifest.json", manifest)

    with pytest.raises(BundleError, match=said):
        RemoteStore(url).pull(ModelStore(tmp_path / "pulled"))


def test_an_address_that_nothing_reads_is_refused():
    """As is one whose package is not installed."""
    with pytest.raises(StoreError, match="nowhere://bucket"):
        RemoteStore("nowhere://bucket")


def test_what_cannot_be_reached_is_said(tmp_path, url, published, monkeypatch):
    """Reading, copying and writing fail alike: with the address and the cause."""
    remote, store = RemoteStore(url), ModelStore(tmp_path / "pulled")

    def refuse(*_args, **_options):
        raise PermissionError("no key")

    for method, act, verb in (
        ("get_file", lambda: remote.pull(store), "read"),
        ("put_file", lambda: remote.push(ModelStore(tmp_path / "made"), "stable", alias="x"), "written"),
        ("cat_file", remote.aliases, "read"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(remote._files, method, refuse)
            with pytest.raises(StoreError, match=rf"{url}: cannot be {verb} \(PermissionError: no key\)"):
                act()


def test_the_commands_push_and_pull(tmp_path, url, published):
    """From one folder to another by way of the address; a wrong address is exit code 1."""
    run = CliRunner().invoke
    pushed = run(export.cli.app, ["push", url, "--alias", "canary", "--store", str(tmp_path / "made")])
    pulled = run(service.cli.app, ["pull", url, "--store", str(tmp_path / "pulled")])
    wrong = run(service.cli.app, ["pull", "nowhere://bucket", "--store", str(tmp_path / "pulled")])

    assert pushed.exit_code == 0, pushed.output
    assert pulled.exit_code == 0, pulled.output
    assert f"pulled {published.bundle_id[:12]}" in pulled.output
    assert ModelStore(tmp_path / "pulled").aliases()["canary"] == published.bundle_id
    assert wrong.exit_code == 1
