"""Commands on published bundles: verify by domain and batch, differences, new calibrators in a new bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import export.recalibrate
from export.cli import app
from export.diff import compare
from export.errors import ParityError
from export.recalibrate import RecalibrateError, recalibrate
from export.verify import rows_of, verify_graphs
from service.contract.bundle import GOLDEN_FILE
from service.contract.manifest import Calibration
from service.contract.store import ModelStore
from service.errors import GoldenError
from service.scoring.golden import read_golden
from service.scoring.predictor import Predictor
from tests.support.bundles import GRAPH_OF, build_bundle, make_schema
from tests.support.linear_graph import make_weights
from training.engine.calibrate import GLOBAL_ONLY, Calibrator

SEEDS = {"whole": 1, "cluster-1": 2}


def true_lines(arguments) -> None:
    """Let the manifest tell the lines that are in the graphs."""
    names = list(arguments["domains"])
    weights = {graph: make_weights(make_schema(), seed) for graph, seed in SEEDS.items()}
    for index, name in enumerate(names):
        own = weights[GRAPH_OF[name]]
        line = Calibration(scale=float(own.scale[index]), bias=float(own.bias[index]))
        entry = arguments["domains"][name]
        told = {"calibration": line, "metrics": {"test.auc": 0.7, "test.ece": 0.1}, "mean_score": 0.2}
        arguments["domains"][name] = entry.model_copy(update=told)
    own = weights["whole"]
    line = Calibration(scale=float(own.scale[-1]), bias=float(own.bias[-1]))
    arguments["unknown_domain"] = arguments["unknown_domain"].model_copy(update={"calibration": line})


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The small bundle; its graphs call their lines `scale` and `bias`."""
    monkeypatch.setattr(export.recalibrate, "CALIBRATOR_SCALE", "scale")
    monkeypatch.setattr(export.recalibrate, "CALIBRATOR_BIAS", "bias")
    return build_bundle(tmp_path / "store", change_manifest=true_lines)


def lines(domains: tuple[str, ...], *, shift: float = 1.0) -> Calibrator:
    """A scale and a bias for each domain and the fallback."""
    size = len(domains) + 1
    return Calibrator(
        domains, scale=np.linspace(0.5, 1.5, size), bias=np.full(size, shift), strength=GLOBAL_ONLY
    )


def test_every_domain_is_verified_alone_together_and_permuted(small):
    """Each row alone, the domain's rows, and in another order; differences stay below 1e-5."""
    found = verify_graphs(small.bundle)

    assert set(found) == {"whole", "cluster-1"}
    golden = read_golden(small.bundle.file(GOLDEN_FILE))
    for key, parity in found.items():
        num_domains = len(parity.domain_errors)
        assert parity.num_batches == 1 + len(golden[key].expected) + 2 * num_domains
        assert parity.max_error <= 1e-5


def test_a_graph_that_looks_at_neighbours_is_refused(small, monkeypatch):
    """Scores that depend on the size of the batch pass the whole replay and fail row by row."""
    run = Predictor.run
    sizes = {key: len(rows.expected) for key, rows in read_golden(small.bundle.file(GOLDEN_FILE)).items()}

    def shy(self, inputs):
        scores = run(self, inputs)
        return scores if len(scores) in sizes.values() else scores * np.float32(0.9)

    monkeypatch.setattr(Predictor, "run", shy)
    with pytest.raises(ParityError, match=r"graph '.*', domain index \d: a row scores .* in another batch"):
        verify_graphs(small.bundle)


def test_rows_of_a_call_keep_their_requests(small):
    """Chosen rows bring their requests, numbered anew, and no others."""
    graph = small.bundle.manifest.graphs["whole"]
    inputs = read_golden(small.bundle.file(GOLDEN_FILE))["whole"].inputs
    rows = [len(inputs["request_index"]) - 1, 0]

    own = rows_of(graph, inputs, rows)

    requests = inputs["request_index"][rows]
    np.testing.assert_array_equal(own["domain"][own["request_index"]], inputs["domain"][requests])
    np.testing.assert_array_equal(own["item_ints"], inputs["item_ints"][rows])
    assert len(own["domain"]) == len(np.unique(requests))


def test_new_lines_make_a_new_bundle_with_the_same_tables(small):
    """Scores are the new lines on the old logits; weights are the same files; stale figures are gone."""
    store = ModelStore(small.store)
    wanted = lines(small.schema.domains)

    made = recalibrate(small.bundle, wanted, store, alias="canary")

    assert store.aliases()["canary"] == made.bundle_id != small.bundle.bundle_id
    for name in ("graphs/whole.weights", "features/item_ints.npy"):
        assert made.file(name).samefile(small.bundle.file(name))
    entry = made.manifest.domains["sport"]
    assert (entry.calibration.scale, entry.calibration.bias) == (pytest.approx(0.5 + 1 / 3), 1.0)
    assert (entry.metrics, entry.mean_score) == ({"test.auc": 0.7}, None)
    before, after = (read_golden(b.file(GOLDEN_FILE))["whole"] for b in (small.bundle, made))
    domains = before.inputs["domain"][before.inputs["request_index"]]
    old = make_weights(small.schema, SEEDS["whole"])
    logit = np.log(before.expected / (1 - before.expected)).astype(float)
    inner = (logit - old.bias[domains]) / old.scale[domains]
    np.testing.assert_allclose(after.expected, wanted.apply(inner, domains), atol=1e-5)
    assert max(parity.max_error for parity in verify_graphs(made).values()) <= 1e-5


def test_lines_of_other_domains_are_refused(small):
    """The message names one that differs."""
    with pytest.raises(RecalibrateError, match=r"different domains, e\.g\. \['music', 'opera'\]"):
        recalibrate(small.bundle, lines(("home", "sport", "opera")), ModelStore(small.store), alias=None)


def test_a_graph_without_named_lines_is_refused(small, monkeypatch):
    """It says which graph, and nothing is published."""
    monkeypatch.setattr(export.recalibrate, "CALIBRATOR_BIAS", "calibrator_bias")
    store = ModelStore(small.store)
    with pytest.raises(RecalibrateError, match="graph 'whole' does not hold its calibrators by name"):
        recalibrate(small.bundle, lines(small.schema.domains), store, alias=None)
    assert len(store.bundle_ids()) == 1


def test_a_manifest_that_tells_other_lines_is_found_out(tmp_path, monkeypatch):
    """New golden scores come from the manifest's lines, so wrong ones do not pass."""
    monkeypatch.setattr(export.recalibrate, "CALIBRATOR_SCALE", "scale")
    monkeypatch.setattr(export.recalibrate, "CALIBRATOR_BIAS", "bias")
    odd = build_bundle(tmp_path / "store")  # says 1 and 0 everywhere

    with pytest.raises(GoldenError, match="golden row"):
        recalibrate(odd.bundle, lines(odd.schema.domains), ModelStore(odd.store), alias=None)


def test_differences_are_told_by_domain(small):
    """Figures, score shifts; nothing where nothing differs."""
    assert compare(small.bundle, small.bundle).shifts["home"].largest <= 1e-5
    made = recalibrate(small.bundle, lines(small.schema.domains), ModelStore(small.store), alias=None)
    found = compare(small.bundle, made)

    assert found.same_schema
    assert (found.features, found.domains_gone, found.domains_new) == ((), (), ())
    assert found.figures["home"] == {"test.ece": (0.1, None)}
    assert set(found.shifts) | set(found.not_compared) == set(GRAPH_OF)
    assert {"home", "music"} <= set(found.shifts)
    assert all(shift.largest > 1e-3 for shift in found.shifts.values())


def test_the_commands_print_what_they_find(small, tmp_path):
    """verify, inspect, recalibrate, diff by way of the command line."""
    file = tmp_path / "calibration.json"
    lines(small.schema.domains).save(file)
    assert json.loads(file.read_text())["domains"]["home"]["bias"] == 1.0

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--store", str(small.store)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "cluster-1" in said("verify")
    assert "Graphs" in said("inspect")
    assert "calibrators of" in said("recalibrate", "--calibration", str(file), "--alias", "canary")
    told = said("diff", "stable", "canary")
    assert "schema: the same" in told
    assert "domain home: test.ece 0.1000 -> none" in told
