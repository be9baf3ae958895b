"""The config tree: what is refused and how it is said, overrides, round trip, shipped files."""

from pathlib import Path

import pytest
import yaml

from training.config import ConfigError, load_config

SHIPPED = sorted((Path(__file__).parents[3] / "training" / "configs").glob("*.yaml"))
PLAIN = "name: a\nmodel: {type: mmoe, inputs: {tables: [{dim: 8}]}}\n"


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(PLAIN)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_configs_load_and_are_named_like_their_file(path):
    assert load_config(path).name == path.stem


def test_the_resolved_file_reads_back_equal(plain, tmp_path):
    config = load_config(plain, ["training.seed=3", "optimiser.dense.lr=1e-4", "model.dropout=0.25"])
    assert config.training.seed == 3
    assert config.optimiser.dense.lr == 1e-4
    assert config.model.dropout == 0.25
    (tmp_path / "b.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "b.yaml")
    assert again == config
    assert again.digest == config.digest
    assert again.digest != load_config(plain).digest


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.sed=3", r"unknown key training\.sed; did you mean seed\?"),
        ("trainin.epochs=1", r"unknown key trainin; did you mean training\?"),
        ("model.num_expert=3", r"unknown key model\.num_expert; did you mean num_experts"),
        (
            "model.inputs.tables=[{dimm: 3}]",
            r"unknown key model\.inputs\.tables\.0\.dimm; did you mean dim\?",
        ),
        ("calibration.zzz=3", r"unknown key calibration\.zzz; known are global_only, method,"),
        ("training.epochs=0", r"training\.epochs: input should be greater than 0, got 0"),
        ("training.monitor=auc", r"training\.monitor: .*'mean_auc'.*got 'auc'"),
        ("training.epochs.x=1", r"training\.epochs is 1, not a mapping"),
        ("model.type=nope", r"model: .*'nope'.*'mmoe', 'dcnv2'"),
        ("model=null", r"model: "),
        ("noequals", r"override 'noequals': expected dotted\.key=value"),
        ("a.b={", r"override 'a\.b=\{': the value is not valid YAML"),
    ],
)
def test_refusals_name_the_key(plain, override, message):
    overrides = ["training.epochs=1", override] if override.startswith("training.epochs.") else [override]
    with pytest.raises(ConfigError, match=message):
        load_config(plain, overrides)


def test_unusable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such config file"):
        load_config(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds a list, expected a mapping"):
        load_config(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "empty.yaml").write_text(yaml.safe_dump({"name": "a"}))
    with pytest.raises(ConfigError, match="model is missing"):
        load_config(tmp_path / "empty.yaml")
