"""Study files: what they become, and what is refused with which words."""

from pathlib import Path

import pytest

from training.config import ConfigError
from training.study.errors import PlanError
from training.study.plan import load_plan, overrides

CONFIG = "name: base\nmodel: {type: mmoe, num_experts: 2, expert_widths: [8], tower_widths: [4]}\n"
STUDY = """\
name: sizes
seeds: [4, 2]
reference: [small]
set: {training.batch_size: 64, training.epochs: 3}
variants:
  - {name: small, config: base.yaml}
  - {name: large, config: base.yaml, set: {model.expert_widths: [32, 16], training.epochs: 2}}
"""
STUDIES = Path(__file__).parents[4] / "training" / "configs" / "studies"


@pytest.fixture
def plan_of(tmp_path):
    (tmp_path / "base.yaml").write_text(CONFIG)

    def load(text=STUDY):
        (tmp_path / "study.yaml").write_text(text)
        return load_plan(tmp_path / "study.yaml")

    return load


def test_all_variants_of_a_seed_come_before_the_next_seed(plan_of):
    plan = plan_of()
    assert [(run.variant, run.seed) for run in plan.runs] == [
        ("small", 4), ("large", 4), ("small", 2), ("large", 2),
    ]  # fmt: skip
    assert plan.references == ("small",)


def test_a_variants_keys_win_over_the_studys_and_every_run_has_its_seed(plan_of):
    small, large, *_ = (run.config for run in plan_of().runs)
    assert (small.training.batch_size, small.training.epochs, small.training.seed) == (64, 3, 4)
    assert (large.training.batch_size, large.training.epochs, large.name) == (64, 2, "large")
    assert large.model.expert_widths == (32, 16)
    assert small.training.num_threads == 1


def test_seeds_and_variants_can_be_chosen(plan_of):
    plan = plan_of()
    assert [(r.variant, r.seed) for r in plan.select(num_seeds=1)] == [("small", 4), ("large", 4)]
    assert {r.variant for r in plan.select(only=["large"])} == {"large"}
    with pytest.raises(PlanError, match=r"seeds 3: the study has 2, \[4, 2\]"):
        plan.select(num_seeds=3)
    with pytest.raises(PlanError, match="no variant 'huge'; the study has small, large"):
        plan.select(only=["huge"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("reference: [small]", "reference: [tiny]", "reference 'tiny' is no variant; there are small, large"),
        ("name: large", "name: small", "variant 'small' is there twice"),
        ("seeds: [4, 2]", "seeds: [4, 4]", "seed 4 is there twice"),
        ("seeds: [4, 2]", "seeds: []", "seeds: Tuple should have at least 1 item"),
        ("name: sizes", "title: sizes", "name: Field required"),
        (STUDY, "[1, 2]", "holds a list, expected a mapping"),
        (STUDY, "a: [", "cannot be read as YAML"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(plan_of, old, new, words):
    with pytest.raises(PlanError, match=words.replace("[", r"\[")):
        plan_of(STUDY.replace(old, new))


def test_a_missing_study_or_a_wrong_key_of_a_config_is_named(plan_of, tmp_path):
    with pytest.raises(PlanError, match="no such study file"):
        load_plan(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"unknown key training\.epoch; did you mean epochs"):
        plan_of(STUDY.replace("training.epochs: 2", "training.epoch: 2"))


@pytest.mark.parametrize("value", [3, 1e-05, "auto", [64, 32], None, True, {"lr": 0.1}])
def test_a_value_of_any_kind_reaches_the_config_whole(value):
    import yaml

    (line,) = overrides({"a.b": value})
    key, _, text = line.partition("=")
    assert (key, yaml.safe_load(text)) == ("a.b", value)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_whole_and_compare_equal_numbers_of_clusters(path):
    plan = load_plan(path)
    assert plan.name == path.stem
    assert len(plan.seeds) == 5
    for name in plan.variants:
        configs = [r.config.clustering for r in plan.runs if r.variant == name]
        clusterings = {c.num_clusters for c in configs if c.version != "none"}
        assert len(clusterings) <= 1
        assert "auto" not in clusterings
    assert len({r.config.model_dump_json() for r in plan.runs}) == len(plan.runs)
