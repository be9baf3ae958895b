"""The config of a pre-training: what ships loads, what is wrong is refused with its key."""

from pathlib import Path

import pytest

import training
from training.config import ConfigError
from training.hier.config import load_pretrain_config

CONFIGS = sorted((Path(training.__file__).parent / "configs" / "hier").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_load_again(path, tmp_path):
    config = load_pretrain_config(path, ["training.seed=3"])
    assert config.training.seed == 3
    again = tmp_path / "config.yaml"
    again.write_text(config.to_yaml())
    assert load_pretrain_config(again).digest == config.digest


@pytest.mark.parametrize(
    ("text", "overrides", "reason"),
    [
        ("name: a\nmodle: {}\n", [], "unknown key modle; did you mean model"),
        (
            "name: a\ngraph: {max_share: 2}\n",
            [],
            "graph.max_share: input should be less than or equal to 1, got 2",
        ),
        ("- 1\n", [], "holds a list, expected a mapping"),
        ("a: [\n", [], "not valid YAML"),
        ("name: a\n", ["training.seed"], "expected dotted.key=value"),
    ],
)
def test_wrong_configs_are_refused(tmp_path, text, overrides, reason):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_pretrain_config(path, overrides)
    with pytest.raises(ConfigError, match="no such config file"):
        load_pretrain_config(tmp_path / "none.yaml")
