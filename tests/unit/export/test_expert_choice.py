"""Which form chosen experts get: asked for, frozen where rows agree, refused where rows choose none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.bench_forms import broken_promises
from export.errors import RunError
from export.expert_forms import apply_masks, choose_expert_forms, with_static
from export.run_folder import Part, RunFolder
from tests.support.models import trained_model
from tests.support.schemas import full_schema
from training.engine.calibrate import identity_calibrator
from training.models.cesaa import Cesaa
from training.models.routed_experts import DenseExperts, GroupedExperts

SCHEMA = full_schema()
NAMES = SCHEMA.domains


def domain(**changes: Any) -> dict[str, Any]:
    """What a run measured of one domain."""
    plain = {
        "allowed": [0, 1, 2],
        "agreement": 0.99,
        "modal": [1, 2],
        "modal_weights": [0.75, 0.25],
        "changed_ratio": 0.02,
        "auc_change": -0.001,
        "static_auc_change": 0.0,
    }
    return plain | changes


def run_of(model: str = "cesaa", *, form: str = "whole", **changes: Any) -> RunFolder:
    """A run of one part, as far as forms look at it."""
    routing = {
        "num_experts": 4,
        "routing_mass": 0.98,
        "allowed": {"changed_ratio": 0.02, "total_auc": -0.0001, "domain_auc": 0.0, "gauc": None},
        "domains": {name: domain(**changes) for name in NAMES},
    }
    part = Part(
        key=form,
        form=form,  # type: ignore[arg-type]
        model=trained_model(model, SCHEMA),
        calibrator=identity_calibrator(NAMES),
        domains=(0,) if form == "domain" else tuple(range(len(NAMES) + 1)),
    )
    metrics = {"model": model} | ({"routing": routing} if model == "cesaa" else {})
    return RunFolder(Path("r"), (part,), SCHEMA, None, metrics, "")  # type: ignore[arg-type]


def chosen(run: RunFolder, form: Any, tmp_path: Path) -> tuple[Part, dict[str, Any]]:
    found, told = choose_expert_forms(run, form, tmp_path, lambda _: None)
    return found.parts[0], told[run.parts[0].key]


def ranker_of(part: Part) -> Cesaa:
    assert isinstance(part.model.ranker, Cesaa)
    return part.model.ranker


@pytest.mark.parametrize(("form", "kind"), [(None, GroupedExperts), ("dense", DenseExperts)])
def test_a_form_by_name_and_the_default(form: str | None, kind: type, tmp_path: Path):
    """Grouped unless told otherwise; held to the form that computes all experts; the run stays as it is."""
    run = run_of()
    part, told = chosen(run, form, tmp_path)

    assert ranker_of(part).routed_form is kind
    assert told["form"] == ("grouped" if form is None else form)
    assert part.reference is not None
    assert isinstance(part.reference.ranker, Cesaa)
    assert part.reference.ranker.routed_form is DenseExperts
    assert ranker_of(run.parts[0]).routed_form is GroupedExperts


def test_a_domain_whose_rows_agree_gets_a_frozen_set(tmp_path: Path):
    part, told = chosen(run_of(form="domain"), "auto", tmp_path)

    assert ranker_of(part).fixed == {0: ((1, 2), (0.75, 0.25))}
    assert (told["form"], told["auc_change"]) == ("static", 0.0)
    assert told["changed_ratio"] == pytest.approx(0.01)


def test_masks_and_what_they_cost():
    run, told = apply_masks(run_of())

    assert ranker_of(run.parts[0]).gate.allowed_experts == (*[(0, 1, 2)] * len(NAMES), (0, 1, 2, 3))
    assert told["whole"]["mean_experts"] == 3
    assert told["whole"]["changed_ratio"] == 0.02
    assert told["whole"]["auc_change"] == {"total_auc": -0.0001, "domain_auc": 0.0, "gauc": None}


def test_other_models_are_left_as_they_are(tmp_path: Path):
    run = run_of("mmoe")
    assert choose_expert_forms(run, None, tmp_path, lambda _: None) == (run, {})
    with pytest.raises(RunError, match="experts dense: rows of a model of type mmoe choose no experts"):
        choose_expert_forms(run, "dense", tmp_path, lambda _: None)
    with pytest.raises(RunError, match="expert masks: rows of a model of type mmoe choose no experts"):
        apply_masks(run)
    with pytest.raises(RunError, match="rows of a Mmoe choose no experts"):
        with_static(run.parts[0].model, 0, (0,), (1.0,))


def test_masks_need_a_run_that_measured_routing():
    run = run_of()
    del run.metrics["routing"]
    with pytest.raises(RunError, match="r has no routing among its metrics; train it again"):
        apply_masks(run)


def test_promises_of_the_bench():
    assert broken_promises({"batched": 8.0, "grouped": 2.0, "static": 2.0}) == []
    assert broken_promises({"batched": 8.0, "grouped": 2.5, "static": 2.0}) == [
        "grouped is 3.20 times as fast as batched; 3.5 is promised"
    ]
