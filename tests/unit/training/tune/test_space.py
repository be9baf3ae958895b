"""Search spaces: what they draw, and what is refused with which words."""

from pathlib import Path

import optuna
import pytest

import training
from training.config import load_config
from training.tune.errors import TuneError
from training.tune.space import check_space, load_space, values_of

CONFIG = "name: base\nmodel: {type: mmoe, num_experts: 2, expert_widths: [8], tower_widths: [4]}\n"
CONFIGS = Path(training.__file__).parent / "configs"
SPACE = """\
optimiser.dense.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
model.num_experts: {low: 2, high: 4, int: true}
model.expert_widths: {choices: [[8], [16, 8]]}
"""


@pytest.fixture
def space_of(tmp_path):
    def load(text=SPACE):
        (tmp_path / "space.yaml").write_text(text)
        return load_space(tmp_path / "space.yaml")

    return load


@pytest.fixture
def config(tmp_path):
    (tmp_path / "base.yaml").write_text(CONFIG)
    return tmp_path / "base.yaml"


def test_values_keep_their_kind_and_stay_inside(space_of):
    space = space_of()
    trial = optuna.trial.FixedTrial(
        {"optimiser.dense.lr": 0.002, "model.num_experts": 3, "model.expert_widths": "[16, 8]"}
    )
    assert {key: axis.draw(trial, key) for key, axis in space.items()} == {
        "optimiser.dense.lr": 0.002,
        "model.num_experts": 3,
        "model.expert_widths": [16, 8],
    }


def test_the_configs_own_values_are_a_trial_where_the_space_holds_them(space_of, config):
    space = space_of()
    own = {"optimiser.dense.lr": 1e-3, "model.num_experts": 2, "model.expert_widths": "[8]"}
    assert values_of(load_config(config), space) == own
    assert values_of(load_config(config, ["model.num_experts=9"]), space) is None
    assert values_of(load_config(config, ["model.expert_widths=[4]"]), space) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {low: 1}", "a: Value error, it needs low and high, or choices"),
        ("a: {low: 2, high: 1}", "low 2.0 must be below high 1.0"),
        ("a: {low: 0, high: 1, log: true}", "a logarithmic range needs low above 0, it is 0.0"),
        ("a: {low: 0.5, high: 2, int: true}", "int needs whole ends, they are 0.5 and 2.0"),
        ("a: {choices: [1], low: 0}", "choices stand alone"),
        ("a: {choices: []}", "at least 1 item"),
        ("a: {step: 3}", "a.step: Extra inputs are not permitted"),
        ("[1]", "expected a mapping from dotted config keys"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(space_of, text, words):
    with pytest.raises(TuneError) as refused:
        space_of(text)
    assert words in str(refused.value)


def test_a_missing_space_is_named(tmp_path):
    with pytest.raises(TuneError, match="no such space file"):
        load_space(tmp_path / "gone.yaml")


def test_a_space_that_does_not_fit_the_config_is_refused_before_any_trial(space_of, config):
    check_space(space_of(), config, [])
    with pytest.raises(TuneError, match=r"space: model\.num_expert 1: .*unknown key model\.num_expert"):
        check_space(space_of("model.num_expert: {low: 1, high: 2, int: true}"), config, [])
    with pytest.raises(TuneError, match=r"training\.batch_size 0"):
        check_space(space_of("training.batch_size: {low: 0, high: 2, int: true}"), config, [])


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("space", sorted(CONFIGS.glob("spaces/*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_fit_every_shipped_config(space, config):
    check_space(load_space(space), config, [])
