"""Checkpoints: atomic, belonging to one run, refused when damaged; digests of weights."""

import errno

import pytest
import torch

from training.engine import files
from training.engine.checkpoint import CheckpointFile, load_tensors, weights_digest
from training.engine.errors import CheckpointError
from training.engine.files import write_text


def _file(tmp_path, **identity):
    return CheckpointFile(tmp_path / "checkpoint" / "last.pt", identity=identity or {"config": "c1"})


def test_round_trip(tmp_path):
    store = _file(tmp_path)
    assert not store.exists()
    store.save({"step": 3, "weights": torch.arange(3.0), "nested": [{"a": (1, None)}]})
    state = store.load()
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(3.0))
    assert state["nested"] == [{"a": (1, None)}]


def test_a_failed_write_keeps_the_checkpoint_before_it(tmp_path, monkeypatch):
    store = _file(tmp_path)
    store.save({"step": 1})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot write the checkpoint: .*No space left"):
        store.save({"step": 2})
    monkeypatch.undo()
    assert store.load()["step"] == 1
    assert [p.name for p in store.path.parent.iterdir()] == ["last.pt"]


def test_another_runs_checkpoint_is_refused(tmp_path):
    _file(tmp_path, config="c1", data="d1").save({})
    with pytest.raises(CheckpointError, match="another run: data is 'd1' there and 'd2' here"):
        _file(tmp_path, config="c1", data="d2").load()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_damage_is_refused(tmp_path, content):
    store = _file(tmp_path)
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged or not of this program"):
        store.load()


def test_a_cut_off_checkpoint_is_refused(tmp_path):
    store = _file(tmp_path)
    store.save({"weights": torch.zeros(1000)})
    store.path.write_bytes(store.path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        store.load()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt: no such file"):
        load_tensors(tmp_path / "nothing.pt")


def test_code_is_never_run(tmp_path):
    torch.save({"f": print}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="damaged or not of this program"):
        load_tensors(tmp_path / "evil.pt")


def test_digest_sees_every_bit_name_and_shape_but_not_the_order():
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3, dtype=torch.int64)}
    digest = weights_digest(base)
    assert digest == weights_digest({"b": base["b"], "a": base["a"].clone()})
    nudged = torch.nextafter(base["a"], torch.tensor(9.0))
    assert digest != weights_digest(base | {"a": nudged})
    assert digest != weights_digest(base | {"a": base["a"].reshape(2, 1)})
    assert digest != weights_digest({"c": base["a"], "b": base["b"]})


def test_text_is_replaced_whole(tmp_path):
    write_text(tmp_path / "deep" / "x.txt", "old")
    write_text(tmp_path / "deep" / "x.txt", "new")
    assert (tmp_path / "deep" / "x.txt").read_text() == "new"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.txt"]
