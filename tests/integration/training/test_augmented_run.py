"""Training on copied clicks: the run says what was copied, and judges the model on real rows alone."""

import numpy as np
import polars as pl
import pytest

from training.config import load_config
from training.data.augmented import augment_train
from training.data.dataset import RowReader
from training.data.errors import AugmentError
from training.data.prepared import PreparedDataset
from training.engine.artefacts import RunFolder
from training.engine.fit import run_training

AUGMENT = [
    "augment.ratio=0.1",
    "augment.cold_popularity=0.3",
    "augment.small_share=0.1",
    "augment.large_share=0.15",
    "augment.in_training=true",
    "training.epochs=1",
]


@pytest.fixture(scope="module")
def augmented(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "augmented"
    config = load_config(small.config, AUGMENT)
    return config, run_training(config, PreparedDataset.open(small.prepared), out)


def test_the_run_trains_on_copies_and_says_so(augmented, small):
    config, result = augmented
    prepared = PreparedDataset.open(small.prepared)
    expected = augment_train(prepared, rules=config.augment.rules(), seed=config.training.seed).summary()

    said = result.metrics["augment"]

    assert said == expected
    assert said["augmented_rows"] == int(0.1 * prepared.rows["train"]) > 0
    rows = prepared.rows["train"] + said["augmented_rows"]
    assert result.metrics["steps"] == -(-rows // config.training.batch_size)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_what_is_evaluated_are_the_real_rows(augmented, small, split):
    _, result = augmented
    prepared = PreparedDataset.open(small.prepared)
    real = next(RowReader(prepared, split).batches(100_000))

    scored = pl.read_parquet(RunFolder(result.folder.root).root / "predictions" / f"{split}.parquet")

    assert result.metrics[split]["rows"] == len(scored) == prepared.rows[split] == len(real)
    assert np.array_equal(scored["label"].to_numpy(), real.label)
    per_domain = {name: record["rows"] for name, record in result.metrics[split]["domains"].items()}
    assert per_domain == prepared.domain_rows[split]


def test_a_run_without_a_row_to_copy_ends_before_it_fills_its_folder(small, tmp_path):
    config = load_config(small.config, [*AUGMENT, "augment.large_share=1"])

    with pytest.raises(AugmentError, match="0 domains have more than 1"):
        run_training(config, PreparedDataset.open(small.prepared), tmp_path / "run")
    assert not (tmp_path / "run").exists()
