"""A small synthetic data set, prepared once, and one finished run on it."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.support.runs import run_into
from training.config import load_config
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.synthetic import PRESETS, generate
from training.engine.fit import RunResult

CONFIG = """\
name: small
model:
  type: mmoe
  num_experts: 2
  expert_widths: [16]
  tower_widths: [8]
  dropout: 0.1
  inputs: {tables: [{dim: 8, unknown_rate: 0.02}]}
training:
  {epochs: 2, batch_size: 256, evaluations_per_epoch: 3, patience: 99, checkpoint_every_batches: 10,
   log_every_batches: 10, num_threads: 1, seed: 5, device: cpu}
optimiser:
  dense: {lr: 5.0e-3}
  tables: {lr: 5.0e-3}
"""


class Small(NamedTuple):
    """Raw data, prepared data, and a config for them."""

    raw: Path
    prepared: Path
    config: Path


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    generate(PRESETS["small"], folder / "raw")
    prepare(folder / "raw", folder / "prepared")
    (folder / "small.yaml").write_text(CONFIG)
    return Small(folder / "raw", folder / "prepared", folder / "small.yaml")


@pytest.fixture(scope="session")
def prepared(small) -> PreparedDataset:
    return PreparedDataset.open(small.prepared)


@pytest.fixture(scope="session")
def finished(small, prepared, tmp_path_factory) -> RunResult:
    return run_into(load_config(small.config), prepared, tmp_path_factory.mktemp("runs") / "finished")
