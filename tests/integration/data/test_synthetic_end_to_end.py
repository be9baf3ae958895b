"""The generator's folder goes through preparation as it is, and with statistics added."""

import numpy as np
import yaml

from service.contract.schema import Entity
from training.data.dataset import RowReader
from training.data.prepare import prepare
from training.data.synthetic import PRESETS, generate
from training.metrics.auc import auc


def test_synthetic_folder_is_prepared_and_read(tmp_path):
    config = PRESETS["small"]
    generate(config, tmp_path / "raw")

    plain = prepare(tmp_path / "raw", tmp_path / "plain")
    file = tmp_path / "raw" / "dataset.yaml"
    keys = [{"key": ["user_id"]}, {"key": ["item_id"]}, {"key": ["brand", "domain"], "parent": True}]
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"statistics": {"keys": keys}}))
    prepared = prepare(tmp_path / "raw", tmp_path / "out")

    assert plain.rows == prepared.rows
    assert sum(plain.rows.values()) == config.num_rows
    assert plain.schema.num_domains == config.num_domains
    assert plain.data_digest != prepared.data_digest
    test = next(RowReader(prepared, "test").batches(100_000))
    assert np.isfinite(test.true_probability).all()
    best = auc(test.label, test.true_probability)
    column = prepared.layout(Entity.ITEM).slot("item_id_rate_label", "values").start
    assert 0.5 < auc(test.label, test.item_floats[:, column]) < best
    assert prepared.info["leak_check"]["splits_in_time_order"] is True
